"""Where a run is and what it begins with: which checkpoint and which folder ``ckpt_path`` means."""

from __future__ import annotations

import os
from pathlib import Path

from genre_lightning.errors import UserError
from genre_lightning.runs.result import read_result
from genre_lightning.runs.settings import usual_mode

BEST = "checkpoints/best.ckpt"
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


def best_checkpoint(ckpt_path: str | Path) -> Path:
    """The file that is scored, or predicts, where ``ckpt_path`` is given.

    Args:
        ckpt_path: a file; a run folder, for its best checkpoint; a folder of runs, such as a
            sweep's, for that of its best run by the monitored value; or "last", for the best
            checkpoint of the newest run under ``runs``.

    Raises:
        UserError: there is none, or the runs in the folder monitored different values.
    """
    last = str(ckpt_path) == "last"
    place = Path("runs") if last else Path(ckpt_path)
    if place.is_file() or not (last or place.is_dir()):
        return place
    own = place / BEST
    if own.is_file():
        return own
    found = list(place.rglob(BEST)) if place.is_dir() else []
    if not found:
        raise UserError(f"ckpt_path={ckpt_path}: there is no {BEST} in {place} or below")
    if last:
        return max(found, key=lambda path: path.stat().st_mtime)
    return _best_of(found, ckpt_path)


def _best_of(found: list[Path], ckpt_path: str | Path) -> Path:
    """Of several runs' best checkpoints that of the best run which has completed."""
    results = {path: read_result(path.parent.parent) for path in found}
    scored = {
        path: result
        for path, result in results.items()
        if result is not None
        and result["status"] == "completed"
        and result.get("monitor_value") is not None
    }
    if not scored:
        raise UserError(f"ckpt_path={ckpt_path}: no run in it has completed; name a file")
    monitors = sorted({str(result["monitor"]) for result in scored.values()})
    if len(monitors) > 1:
        raise UserError(
            f"ckpt_path={ckpt_path}: its runs monitored {' and '.join(monitors)}, which can't be "
            "compared; name one of the runs"
        )
    sign = -1.0 if usual_mode(monitors[0]) == "min" else 1.0
    return max(scored, key=lambda path: sign * float(scored[path]["monitor_value"]))


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
