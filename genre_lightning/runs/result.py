"""result.json in a run folder: the run's state while it is running, and its outcome."""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from genre_lightning import __version__
from genre_lightning.errors import TrainingError, UserError
from genre_lightning.files import remove_unfinished, whole_file
from genre_lightning.runs.lock import locked
from genre_lightning.runs.process import is_first_process, raise_on_signals

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


def package_versions() -> dict[str, str]:
    """Versions of Python, this package and the packages that affect results."""
    return {"python": platform.python_version(), "genre-lightning": __version__, **_installed()}


@cache
def _installed() -> dict[str, str]:
    # Reads files, so it is cached for the jobs of a sweep.
    from importlib.metadata import version

    return {name: version(name) for name in PACKAGES}


@contextmanager
def recorded_run(
    folder: Path,
    monitor: str,
    seed: int,
    overrides: list[str],
    check: Callable[[], object] = lambda: None,
) -> Iterator[dict[str, Any]]:
    """Keep ``result.json`` correct while the block runs and after it ends, even if it fails.

    The file is written at the start with the status "interrupted", which is correct if the process
    is killed. If it says "completed", it stays until the block, which resumes that run, has written
    something. A refused attempt to resume changes nothing. The folder is locked while the block
    runs, see :func:`genre_lightning.runs.lock.is_running`. In distributed training, only the first
    process locks and writes.

    Args:
        folder: the run folder.
        monitor: name of the value that determines the best checkpoint.
        seed: the run's seed.
        overrides: overrides of the command line.
        check: called once the folder is locked, before anything in it is changed. If it raises an
            error, the folder stays unchanged.

    Yields:
        The result, for the block to fill. Its status becomes "completed", "interrupted" (Ctrl-C,
        SIGTERM, SIGHUP) or "failed" with the error, which is raised again. ``epochs``, ``seconds``,
        ``attempts`` and ``wandb_run_id`` continue those of an earlier attempt in this folder.

    Raises:
        UserError: another process is running in this folder, or its ``result.json`` is not a run's
            result.
    """
    result = _new_result(monitor, seed, overrides)
    if not is_first_process():
        with raise_on_signals():
            yield result
        return
    with locked(folder), raise_on_signals():
        check()
        for path in (folder, folder / "checkpoints"):
            remove_unfinished(path)
        earlier = read_result(folder) or {}
        _continue_from(earlier, result)
        if earlier.get("status") != "completed":
            write_result(folder, result)
        initial = read_result(folder)
        earlier_seconds, started = result["seconds"], time.perf_counter()
        try:
            yield result
            result["status"] = "completed"
        except BaseException as error:
            result["seconds"] = _seconds_since(started, earlier_seconds)
            # On a full disk the file keeps the status "interrupted", which is correct, and the
            # original error says more than one about this file.
            with suppress(OSError, UserError):
                begun = read_result(folder) != initial
                _write_unfinished(folder, result, earlier, begun, error)
            raise
        result["seconds"] = _seconds_since(started, earlier_seconds)
        write_result(folder, result)


def _new_result(monitor: str, seed: int, overrides: list[str]) -> dict[str, Any]:
    """The initial result of a run; for the arguments see :func:`recorded_run`."""
    return {
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


def _continue_from(earlier: Mapping[str, Any], result: dict[str, Any]) -> None:
    """Copy the values that continue from an earlier attempt, which is empty if there was none."""
    result["attempts"] = int(earlier.get("attempts") or 0) + 1
    result["seconds"] = float(earlier.get("seconds") or 0.0)
    result["epochs"] = int(earlier.get("epochs") or 0)
    result["wandb_run_id"] = earlier.get("wandb_run_id")


def _seconds_since(started: float, earlier_seconds: float) -> float:
    """Seconds of all attempts; ``started`` is the perf_counter at the start of this one."""
    return round(earlier_seconds + time.perf_counter() - started, 3)


def _write_unfinished(
    folder: Path,
    result: dict[str, Any],
    earlier: dict[str, Any],
    begun: bool,
    error: BaseException,
) -> None:
    """Write the result of an attempt that ``error`` ended.

    Once training has begun, this attempt's result is written. Before that, a completed run stays
    completed, and a refused attempt keeps the earlier attempt's result.

    Args:
        folder: the run folder.
        result: this attempt's result; gets the error, unless that is an interruption.
        earlier: the previous attempt's result; empty for none.
        begun: whether this attempt wrote a result while it was running.
        error: the error that ended this attempt.
    """
    if not isinstance(error, KeyboardInterrupt | SystemExit):
        result["status"] = "failed"
        result["error"] = f"{type(error).__name__}: {error}"
    if begun or not earlier:
        write_result(folder, result)
    elif earlier["status"] != "completed":
        refused = isinstance(error, UserError) and not isinstance(error, TrainingError)
        write_result(folder, earlier if refused else result)


def read_result(folder: str | Path) -> dict[str, Any] | None:
    """Read ``result.json`` of a run folder; None if there is none.

    Raises:
        UserError: the file can't be read, or is not a run's result; the message names it.
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
    """Write ``result.json`` into a run folder, completely or not at all.

    Numbers that JSON can't represent (nan, infinities) become null.
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
