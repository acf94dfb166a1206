"""Resolution of ``ckpt_path`` to a run folder and a checkpoint."""

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
#: Hydra's name for the folder with the composed configuration.
CONFIG_FOLDER = ".hydra"


def resolve_run(ckpt_path: object, file: str) -> Path | None:
    """Return the run folder that ``ckpt_path`` refers to; all commands use this function.

    Args:
        ckpt_path: a run folder; a folder of runs, such as a sweep's, for its best run by the
            monitored value; or "last", for the newest run under ``runs`` that has ``file`` and is
            not a job of a sweep.
        file: the checkpoint that the run must have, ``BEST`` or ``LAST``.

    Returns:
        The run folder; None if ``ckpt_path`` is a file or does not exist.

    Raises:
        UserError: it is empty or a list, there is no such run, or the best of several can't be
            determined.
    """
    if not isinstance(ckpt_path, str | int | Path) or ckpt_path == "":  # "" is the current folder
        raise UserError(
            f"ckpt_path={ckpt_path} must be a checkpoint, a run folder, a folder of runs, or last"
        )
    if str(ckpt_path) == "last":
        runs = [path for path in Path("runs").rglob(file) if not _is_job(path.parent.parent)]
        if not runs:
            raise UserError(
                f"ckpt_path=last: no run under {Path('runs').absolute()} has a {file} (jobs of "
                "sweeps are ignored)"
            )
        return max(runs, key=lambda path: path.stat().st_mtime).parent.parent
    folder = Path(str(ckpt_path))
    if not folder.is_dir():
        return None
    if (folder / file).is_file():
        return folder
    runs = [] if (folder / "result.json").is_file() else list(folder.rglob(file))
    if not runs:
        raise UserError(f"ckpt_path={ckpt_path}: there is no {file} in {folder} or below")
    return runs[0].parent.parent if len(runs) == 1 else _best_run(runs, ckpt_path)


def _is_job(run: Path) -> bool:
    """Whether a run is a job of a sweep."""
    return (run.parent / "sweep.json").is_file()


def last_checkpoint(ckpt_path: str | int | Path, folder: Path) -> Path:
    """Return the checkpoint from which a training resumes.

    Args:
        ckpt_path: a file, or what :func:`resolve_run` accepts. "last" is the checkpoint in
            ``folder``, since :func:`run_directory` has already chosen that folder.
        folder: folder of this run.

    Raises:
        UserError: there is no such checkpoint.
    """
    run = folder if str(ckpt_path) == "last" else resolve_run(ckpt_path, LAST)
    if run is None:
        return Path(str(ckpt_path))
    if not (run / LAST).is_file():
        raise UserError(f"ckpt_path={ckpt_path}: there is no {LAST} in {run}, so nothing to resume")
    return run / LAST


def best_checkpoint(ckpt_path: str | int | Path) -> Path:
    """Return the checkpoint to evaluate or to predict with.

    Args:
        ckpt_path: a file, or what :func:`resolve_run` accepts.

    Raises:
        UserError: there is no such checkpoint, or the runs in the folder monitored different
            values, or were validated on different movies.
    """
    run = resolve_run(ckpt_path, BEST)
    return Path(str(ckpt_path)) if run is None else run / BEST


def _best_run(checkpoints: list[Path], ckpt_path: object) -> Path:
    """Return the best completed run among those with these checkpoints."""
    results = {path.parent.parent: read_result(path.parent.parent) for path in checkpoints}
    scored = {
        run: result
        for run, result in results.items()
        if result is not None
        and result["status"] == "completed"
        and result.get("monitor_value") is not None
    }
    if not scored:
        raise UserError(
            f"ckpt_path={ckpt_path}: no run in it has completed; name one of its "
            f"{len(checkpoints)} runs"
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
    """Whether the runs' validation movies differ, as far as their results show.

    Results of older versions don't identify the movies. With folds, ``learnt_from`` is the same as
    without, but validation is larger, so the number of validation movies is compared, too.
    """
    learnt_from, num_movies = set(), set()
    for result in results:
        scores = result.get("val")
        learnt_from.add(result.get("learnt_from"))
        num_movies.add(scores.get("num_movies") if isinstance(scores, Mapping) else None)
    return any(len(values - {None}) > 1 for values in (learnt_from, num_movies))


def run_directory(ckpt_path: str | None, default: str) -> str:
    """Return the folder of a single run: the folder of the run to resume, or else ``default``.

    Args:
        ckpt_path: what :func:`resolve_run` accepts. A run that begins from a file gets a new
            folder. Errors are ignored here and reported later.
        default: folder of a run that does not resume another in its folder.
    """
    try:
        run = None if ckpt_path is None else resolve_run(ckpt_path, LAST)
    except UserError:
        run = None
    return default if run is None else str(run)


def starting_point(ckpt_path: str | None, folder: Path) -> str | None:
    """Return the ``ckpt_path`` that a run in this folder starts from; None for a new run.

    A new run is refused in a folder that already has one. If Slurm has requeued the same job, the
    run is resumed instead.

    Raises:
        UserError: the folder already has a run; the message says what to do.
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
            f"folder with hydra.run.dir, or resume the run with ckpt_path={folder}"
        )
    return None
