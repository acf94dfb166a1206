"""Where a run is and what it begins with: which checkpoint and which folder ``ckpt_path`` means."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from genre_lightning.errors import UserError
from genre_lightning.runs.result import read_result
from genre_lightning.runs.settings import usual_mode

BEST = "checkpoints/best.ckpt"
LAST = "checkpoints/last.ckpt"
#: Of the composed configuration, as Hydra calls it.
CONFIG_FOLDER = ".hydra"


def resolve_run(ckpt_path: str | Path, file: str) -> Path | None:
    """The run folder that ``ckpt_path`` means: one rule for every command.

    Args:
        ckpt_path: a run folder; a folder of runs, such as a sweep's, for its best run by the
            monitored value; or "last", for the newest run under ``runs`` that has the file and is
            no job of a sweep.
        file: the checkpoint that is needed of it, ``BEST`` or ``LAST``.

    Returns:
        None for a file, and for what is not there.

    Raises:
        UserError: no run is meant, or it can't be told which.
    """
    if str(ckpt_path) == "last":
        runs = [path for path in Path("runs").rglob(file) if not _is_job(path.parent.parent)]
        if not runs:
            raise UserError(
                f"ckpt_path=last: no run under {Path('runs').absolute()} has a {file} (jobs of "
                "sweeps are not meant)"
            )
        return max(runs, key=lambda path: path.stat().st_mtime).parent.parent
    place = Path(ckpt_path)
    if not place.is_dir():
        return None
    if (place / file).is_file():
        return place
    runs = [] if (place / "result.json").is_file() else list(place.rglob(file))
    if not runs:
        raise UserError(f"ckpt_path={ckpt_path}: there is no {file} in {place} or below")
    return runs[0].parent.parent if len(runs) == 1 else _best_of(runs, ckpt_path)


def _is_job(run: Path) -> bool:
    """Whether a run is a job of a sweep."""
    return (run.parent / "sweep.json").is_file()


def last_checkpoint(ckpt_path: str | Path, folder: Path) -> Path:
    """The file from which a training resumes.

    Args:
        ckpt_path: a file, or what :func:`resolve_run` takes; "last" is this run's own by now, since
            :func:`run_directory` has chosen its folder.
        folder: of this run.

    Raises:
        UserError: there is none.
    """
    run = folder if str(ckpt_path) == "last" else resolve_run(ckpt_path, LAST)
    if run is None:
        return Path(ckpt_path)
    if not (run / LAST).is_file():
        raise UserError(f"ckpt_path={ckpt_path}: there is no {LAST} in {run}, so nothing to resume")
    return run / LAST


def best_checkpoint(ckpt_path: str | Path) -> Path:
    """The file that is scored, or predicts, where ``ckpt_path`` is given.

    Args:
        ckpt_path: a file, or what :func:`resolve_run` takes.

    Raises:
        UserError: there is none, or the runs in the folder monitored different values, or were
            validated on different movies.
    """
    run = resolve_run(ckpt_path, BEST)
    return Path(ckpt_path) if run is None else run / BEST


def _best_of(found: list[Path], ckpt_path: str | Path) -> Path:
    """Of several runs, by their checkpoints, the best one that has completed."""
    results = {path.parent.parent: read_result(path.parent.parent) for path in found}
    scored = {
        run: result
        for run, result in results.items()
        if result is not None
        and result["status"] == "completed"
        and result.get("monitor_value") is not None
    }
    if not scored:
        raise UserError(
            f"ckpt_path={ckpt_path}: no run in it has completed; name one of its {len(found)} runs"
        )
    monitors = sorted({str(result["monitor"]) for result in scored.values()})
    if len(monitors) > 1:
        raise UserError(
            f"ckpt_path={ckpt_path}: its runs monitored {' and '.join(monitors)}, which can't be "
            "compared; name one of the runs"
        )
    if _were_validated_on_different_movies(scored.values()):
        raise UserError(
            f"ckpt_path={ckpt_path}: its runs were validated on different movies, so their values "
            "can't be compared; name one of the runs. genre-compare shows them"
        )
    sign = -1.0 if usual_mode(monitors[0]) == "min" else 1.0
    return max(scored, key=lambda run: sign * float(scored[run]["monitor_value"]))


def _were_validated_on_different_movies(results: Iterable[Mapping[str, Any]]) -> bool:
    """Whether the movies that chose the best epochs differ, as far as the runs' results say.

    Older ones don't say which movies there were. Those of folds are all of train and validation,
    the same movies as without folds, so their number counts as well.
    """
    learnt_from, numbers = set(), set()
    for result in results:
        scores = result.get("val")
        learnt_from.add(result.get("learnt_from"))
        numbers.add(scores.get("num_movies") if isinstance(scores, Mapping) else None)
    return any(len(said - {None}) > 1 for said in (learnt_from, numbers))


def run_directory(ckpt_path: str | None, default: str) -> str:
    """Where a single run is to write: in the folder of the run that ``ckpt_path`` means.

    Args:
        ckpt_path: what :func:`resolve_run` takes. A file is only where a run begins, and what isn't
            there is named later.
        default: the folder for all others.
    """
    try:
        run = None if ckpt_path is None else resolve_run(ckpt_path, LAST)
    except UserError:
        run = None
    return default if run is None else str(run)


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
