"""Files of a run folder: written whole or not at all; result.json says what became of the run."""

from __future__ import annotations

import json
import math
import os
import platform
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from genre_lightning import __version__
from genre_lightning.errors import UserError
from genre_lightning.files import whole_file

PACKAGES = (
    "torch",
    "pytorch-lightning",
    "torchmetrics",
    "hydra-core",
    "scikit-learn",
    "numpy",
    "pillow",
)
STATUSES = ("completed", "failed", "interrupted")
LOCK = ".lock"
LAST = "checkpoints/last.ckpt"


def package_versions() -> dict[str, str]:
    """Versions of Python, this package and what its numbers depend on."""
    from importlib.metadata import version

    others = {name: version(name) for name in PACKAGES}
    return {"python": platform.python_version(), "genre-lightning": __version__, **others}


@contextmanager
def recorded_run(
    folder: Path, monitor: str, seed: int, overrides: list[str]
) -> Iterator[dict[str, Any]]:
    """Keep ``result.json`` true while the block runs and when it ends, however it ends.

    The file is written at once, with the status "interrupted": what is true should the process be
    killed. One that says "completed" stays until the block, going on with that run, has written
    something, so that an attempt which is refused changes nothing. While the block runs the folder
    is locked, which :func:`is_running` sees. Of several processes that train together only the
    first locks and writes.

    Args:
        folder: the run folder.
        monitor: name of the value that tells which checkpoint is best.
        seed: of the run.
        overrides: of the command line.

    Yields:
        The result, for the block to add to. Its status becomes "completed", "interrupted" (Ctrl-C,
        SIGTERM) or "failed" with the error, which is raised again. ``epochs``, ``seconds``,
        ``attempts`` and ``wandb_run_id`` go on from those of an earlier attempt in this folder.

    Raises:
        UserError: another process runs in this folder, or its ``result.json`` is not ours.
    """
    result: dict[str, Any] = {
        "status": "interrupted",
        "monitor": monitor,
        "monitor_value": None,
        "epochs": 0,
        "attempts": 1,
        "seconds": 0.0,
        "train_samples_per_second": None,
        "num_parameters": None,
        "seed": seed,
        "overrides": overrides,
        "versions": package_versions(),
        "wandb_run_id": None,
        "val": {},
        "test": {},
    }
    if not is_first_process():
        with signals_raise():
            yield result
        return
    with _lock(folder), signals_raise():
        earlier = read_result(folder) or {}
        result["attempts"] = int(earlier.get("attempts") or 0) + 1
        result["seconds"] = before = float(earlier.get("seconds") or 0.0)
        result["epochs"] = int(earlier.get("epochs") or 0)
        result["wandb_run_id"] = earlier.get("wandb_run_id")
        if earlier.get("status") != "completed":
            write_result(folder, result)
        started = time.perf_counter()
        try:
            yield result
            result["status"] = "completed"
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            result["status"] = "failed"
            result["error"] = f"{type(error).__name__}: {error}"
            raise
        finally:
            result["seconds"] = round(before + time.perf_counter() - started, 3)
            done = result["status"] == "completed"
            # Where the disk is full the file goes on saying "interrupted", which is no lie, and the
            # error that is under way tells more than one about this file.
            with suppress(*() if done else (OSError, UserError)):
                if done or earlier.get("status") != "completed" or read_result(folder) != earlier:
                    write_result(folder, result)


def flat_settings(config: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """A nested configuration under flat dotted names: ``optimizer.lr``, ``model.dropout``.

    Args:
        config: plain data; a list, and a mapping without entries, is a value.
        prefix: put before each name.
    """
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= flat_settings(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def is_first_process() -> bool:
    """Whether this is the first, or the only one, of the processes that train together."""
    names = ("RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK")
    return all(int(os.environ.get(name, 0)) == 0 for name in names)


def under_slurm() -> bool:
    """Whether this is a job of Slurm, whose signals mean other things."""
    return "SLURM_JOB_ID" in os.environ


def is_running(folder: str | Path) -> bool:
    """Whether a process is training in this run folder now.

    A folder that may not be written is taken for one at rest.
    """
    path = Path(folder) / LOCK
    if not path.exists():
        return False
    from filelock import FileLock, Timeout  # whoever asks for help or the config does without

    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:
        return False


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
                ", so nothing to go on from"
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
    then it goes on.

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
            f"folder by hydra.run.dir, or go on with it by ckpt_path={folder}"
        )
    return None


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    # A moment's patience: is_running takes the lock to try it.
    lock = FileLock(folder / LOCK, timeout=2)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(
            f"another process is training in {folder}: wait for it or stop it, or name another "
            "folder by hydra.run.dir"
        ) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def signals_raise() -> Iterator[None]:
    """Let SIGTERM and Ctrl-C end the block by SystemExit, with the exit code of such an end.

    Not SIGTERM under Slurm, where Lightning answers the signal by queueing the job again.
    """
    signals = [signal.SIGINT, *([] if under_slurm() else [signal.SIGTERM])]
    if threading.current_thread() is not threading.main_thread():
        signals = []

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def read_result(folder: str | Path) -> dict[str, Any] | None:
    """What ``result.json`` of a run folder says; None where there is none.

    Raises:
        UserError: it is not JSON, or not a run's result; the message names the file.
    """
    path = Path(folder) / "result.json"
    try:
        result = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read: {error}") from error
    if not isinstance(result, dict) or result.get("status") not in STATUSES:
        raise UserError(f"{path} is not the result of a run: it has no status of {STATUSES}")
    return result


def write_result(folder: str | Path, result: dict[str, Any]) -> None:
    """Write ``result.json`` into a run folder, whole or not at all.

    Numbers that JSON has no word for (nan, infinities) become null.
    """
    text = json.dumps(_finite(result), indent=2, allow_nan=False)
    with whole_file(Path(folder) / "result.json") as file:
        file.write(text + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
