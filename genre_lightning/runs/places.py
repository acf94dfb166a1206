"""Where a run is and what it begins with: which checkpoint and which folder ``ckpt_path`` means."""

from __future__ import annotations

import os
from pathlib import Path

from genre_lightning.errors import UserError
from genre_lightning.runs.result import read_result

LAST = "checkpoints/last.ckpt"


def newest_checkpoint(place: Path) -> Path | None:
    """The ``last.ckpt`` of a run folder, or the newest one of the run folders anywhere below it."""
    own = place / LAST
    found = [own] if own.is_file() else place.rglob(LAST)
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def find_checkpoint(ckpt_path: str | Path, folder: Path) -> Path:
    """The file that the option ``ckpt_path`` means.

    Args:
        ckpt_path: a file; a folder, for the newest run in it; or "last", for this run's own.
        folder: of this run.

    Raises:
        UserError: there is none.
    """
    last = str(ckpt_path) == "last"
    place = folder if last else Path(ckpt_path)
    if last or place.is_dir():
        found = newest_checkpoint(place)
        if found is None or (last and found != place / LAST):
            raise UserError(
                f"ckpt_path={ckpt_path}: there is no {LAST} in {place}{'' if last else ' or below'}"
                ", so nothing to resume"
            )
        return found
    return place


def run_directory(ckpt_path: str | None, default: str) -> str:
    """Where a single run is to write: in the folder of the run that ``ckpt_path`` names.

    Args:
        ckpt_path: "last" for the newest under ``runs``, or a folder for the newest in it. A file is
            only where a run begins, and one that isn't there is named later.
        default: the folder for all others.
    """
    place = Path("runs" if ckpt_path == "last" else ckpt_path or "")
    found = newest_checkpoint(place) if ckpt_path and place.is_dir() else None
    return default if found is None else str(found.parent.parent)


def starting_point(ckpt_path: str | None, folder: Path) -> str | None:
    """The ``ckpt_path`` that a run in this folder begins with.

    A new run is refused in a folder that holds one, unless Slurm has queued the same job again:
    then it is resumed.

    Raises:
        UserError: naming the folder and what to do.
    """
    if ckpt_path is not None:
        return ckpt_path
    status = (read_result(folder) or {}).get("status")
    last = (folder / LAST).is_file()
    if status != "completed" and last and int(os.environ.get("SLURM_RESTART_COUNT", 0)) > 0:
        return "last"
    if status == "completed" or last:
        raise UserError(
            f"{folder} holds a run already ({status or 'without a result.json'}): name another "
            f"folder by hydra.run.dir, or resume it by ckpt_path={folder}"
        )
    return None
