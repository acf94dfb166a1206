"""Files of a run folder: written whole or not at all; result.json says what became of the run."""

from __future__ import annotations

import json
import math
import os
import platform
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

from genre_lightning import __version__

PACKAGES = (
    "torch",
    "pytorch-lightning",
    "torchmetrics",
    "hydra-core",
    "scikit-learn",
    "numpy",
    "pillow",
)


def package_versions() -> dict[str, str]:
    """Versions of Python, this package and what its numbers depend on."""
    others = {name: version(name) for name in PACKAGES}
    return {"python": platform.python_version(), "genre-lightning": __version__, **others}


@contextmanager
def recorded_run(
    folder: Path, monitor: str, seed: int, overrides: list[str]
) -> Iterator[dict[str, Any]]:
    """Write ``result.json`` when the block ends, however it ends.

    Args:
        folder: the run folder.
        monitor: name of the value that tells which checkpoint is best.
        seed: of the run.
        overrides: of the command line.

    Yields:
        The result, for the block to add to. Its status becomes "completed", "interrupted" (Ctrl-C,
        SIGTERM) or "failed" with the error, which is raised again.
    """
    started = time.perf_counter()
    result: dict[str, Any] = {
        "status": "failed",
        "monitor": monitor,
        "monitor_value": None,
        "epochs": 0,
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
    try:
        with _sigterm_raises():
            yield result
        result["status"] = "completed"
    except (KeyboardInterrupt, SystemExit):
        result["status"] = "interrupted"
        raise
    except BaseException as error:
        result["error"] = f"{type(error).__name__}: {error}"
        raise
    finally:
        result["seconds"] = round(time.perf_counter() - started, 3)
        if int(os.environ.get("LOCAL_RANK", 0)) == 0 and int(os.environ.get("NODE_RANK", 0)) == 0:
            write_result(folder, result)


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Let SIGTERM end the block by SystemExit, where it would end the process on the spot.

    Not under Slurm, where Lightning answers the signal by queueing the job again.
    """
    if threading.current_thread() is not threading.main_thread() or "SLURM_JOB_ID" in os.environ:
        yield
        return

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def whole_file(path: Path) -> Iterator[TextIO]:
    """Open a text file that appears under its name once it is whole, and not otherwise.

    Whatever stood there before stays until then, also when the block raises or is killed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            yield file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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
