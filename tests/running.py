"""Training in this process, or in a new one that can be killed; reading the files of a run."""

from __future__ import annotations

import csv
import importlib
import json
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger

from genre_lightning.checkpoint.model import TrainedModel
from genre_lightning.inputs.encode import encode_items
from tests.forking import start_process


def train_in(repository: Path, folder: Path, overrides: list[str]) -> dict[str, Any]:
    """Train as train.py does, without its start-up time, and return the result."""
    from hydra import compose, initialize_config_dir
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import open_dict

    from genre_lightning.runs.composing import speed_up_composition
    from genre_lightning.runs.result import recorded_run
    from train import train

    folder.mkdir(parents=True, exist_ok=True)
    before = HydraConfig.instance().cfg
    with speed_up_composition():
        with initialize_config_dir(str(repository / "conf"), version_base="1.3"):
            cfg = compose("train", overrides, return_hydra_config=True)
        with open_dict(cfg):
            cfg.hydra.runtime.output_dir = str(folder)
            HydraConfig.instance().set_config(cfg)
            del cfg.hydra
        try:
            with recorded_run(folder, cfg.monitor, cfg.seed, overrides) as result:
                train(cfg, folder, result)
        finally:
            # Later tests must not see this config.
            HydraConfig.instance().cfg = before
    return result


def start_training(
    repository: Path,
    folder: Path,
    overrides: list[str],
    before: Callable[..., None] | None = None,
    *arguments: Any,
) -> ForkServerProcess:
    """Start :func:`train_in` in a new process, forked from one that has imported everything.

    The new process first calls ``before(*arguments)``, a function of an importable module.
    """
    return start_process(_child, repository, folder, overrides, before, arguments)


def _child(
    repository: Path,
    folder: Path,
    overrides: list[str],
    before: Callable[..., None] | None,
    arguments: tuple[Any, ...],
) -> None:
    if before is not None:
        before(*arguments)
    with (folder.parent / f"{folder.name}.log").open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        train_in(repository, folder, overrides)


def train_sequentially(
    repository: Path, runs: Sequence[tuple[Path, list[str], tuple[Any, ...]]], module: str
) -> list[int]:
    """Train one after another, each time in a new process as in :func:`start_training`.

    The processes are forked from one that has imported a further module, which takes seconds.

    Args:
        repository: folder of the scripts.
        runs: folder, overrides, and ``(before, *arguments)`` of each run.
        module: the further module that all runs need.

    Returns:
        The exit code of each run: its status, or minus the signal that killed it.
    """
    statuses = runs[0][0].with_name("statuses.json")
    process = start_process(_turns, repository, runs, module, statuses)
    process.join()
    assert process.exitcode == 0, f"{module} can't be imported"
    exit_codes: list[int] = json.loads(statuses.read_text("utf-8"))
    return exit_codes


def _turns(
    repository: Path,
    runs: Sequence[tuple[Path, list[str], tuple[Any, ...]]],
    module: str,
    statuses: Path,
) -> None:
    importlib.import_module(module)
    exit_codes = []
    for folder, overrides, before in runs:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                _child(repository, folder, overrides, before[0] if before else None, before[1:])
                status = 0
            except BaseException:  # noqa: BLE001 - as multiprocessing does
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        exit_codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    statuses.write_text(json.dumps(exit_codes), "utf-8")


def start_script(
    repository: Path,
    script: str,
    place: Path,
    overrides: list[str],
    before: Callable[..., None] | None = None,
    *arguments: Any,
) -> ForkServerProcess:
    """Run train.py or evaluate.py as a user does, in a process forked as in :func:`start_training`.

    Args:
        repository: folder of the scripts.
        script: "train" or "evaluate".
        place: working directory, created if needed. The output goes to a file beside it, which
            :func:`printed` reads.
        overrides: arguments of the command line.
        before: function of an importable module, called first in the new process.
        arguments: arguments of ``before``.
    """
    place.mkdir(parents=True, exist_ok=True)
    return start_process(_command, repository, script, place, overrides, before, arguments)


def _command(
    repository: Path,
    script: str,
    place: Path,
    overrides: list[str],
    before: Callable[..., None] | None,
    arguments: tuple[Any, ...],
) -> None:
    log = os.open(_printed(place), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.pop("HYDRA_FULL_ERROR", None)
    os.chdir(place)
    if before is not None:
        before(*arguments)
    sys.argv = [str(repository / f"{script}.py"), *overrides]
    importlib.import_module(script).main()


def _printed(place: Path) -> Path:
    return place.with_name(f"{place.name}.printed")


def printed(place: Path) -> str:
    """Output of the commands in this working directory since the last call of this function."""
    file = _printed(place)
    text = file.read_text("utf-8", "replace")
    file.write_text("")
    return text


def at_step(moment: int, action: Callable[[], None]) -> pytest.MonkeyPatch:
    """Call ``action`` in the ``moment``-th training or validation step from now, until undo()."""
    from genre_lightning.training.module import GenreModule

    count = 0

    def counted(step: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            nonlocal count
            count += 1
            if count == moment:
                action()
            return step(*arguments)

        return run

    patch = pytest.MonkeyPatch()
    for name in ("training_step", "validation_step"):
        patch.setattr(GenreModule, name, counted(getattr(GenreModule, name)))
    return patch


class CallsLogger(Logger):
    """Records the calls of all loggers of this class."""

    calls: ClassVar[list[str]] = []
    name = version = "calls"

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.calls.append("test" if "test/loss" in metrics else "epoch")

    def log_hyperparams(self, *_: Any) -> None:
        self.calls.append("settings")

    def finalize(self, status: str) -> None:
        self.calls.append(status)


class SlowEpochs(pl.Callback):
    """Sleeps in each epoch, so that there is time to kill a run without using a core."""

    def on_train_epoch_start(self, *_: Any) -> None:
        time.sleep(0.1)


def kill_at(moment: int) -> None:
    """Kill this process with SIGKILL at this step."""
    at_step(moment, lambda: os.kill(os.getpid(), signal.SIGKILL))


def act_as_slurm_task(tools: Path, task: int = 0, tasks: int = 1, port: int = 0) -> None:
    """Act as a task of a Slurm job that is about to be preempted.

    SIGUSR1, which tells the task to requeue the job, comes in the third step of the last task and
    in the fourth step of the others. SIGTERM comes in the fifth step.
    """
    os.environ.update(
        SLURM_JOB_ID="7", SLURM_JOB_NAME="train", SLURM_NTASKS=str(tasks), SLURM_PROCID=str(task),
        SLURM_LOCALID=str(task), SLURM_NODEID="0", SLURM_NNODES="1",
        SLURM_NTASKS_PER_NODE=str(tasks), MASTER_PORT=str(port),
        PATH=f"{tools}{os.pathsep}{os.environ['PATH']}",
    )  # fmt: skip
    at_step(3 if task == tasks - 1 else 4, lambda: os.kill(os.getpid(), signal.SIGUSR1))
    at_step(5, lambda: os.kill(os.getpid(), signal.SIGTERM))


def limit_file_size(size: int, awaited: Path) -> None:
    """Wait until the file ``awaited``, written in the background, exists; then limit file sizes."""
    deadline = time.monotonic() + 60
    while not awaited.exists():
        assert time.monotonic() < deadline, f"{awaited} was not written"
        time.sleep(0.01)
    _, hard_limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard_limit))


def kill_while_saving_after(moment: int, size: int, awaited: Path) -> None:
    """From this step on, let the kernel kill this process when a file exceeds ``size`` bytes."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        limit_file_size(size, awaited)

    at_step(moment, limit)


def differences(one: Any, other: Any, place: str = "") -> Iterator[str]:
    """Describes each place at which two nested containers are not exactly equal."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in {**one, **other}:
            if key not in one or key not in other:
                yield f"{place}.{key} in one alone"
            else:
                yield from differences(one[key], other[key], f"{place}.{key}")
    elif isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        if len(one) != len(other):
            yield f"{place}: {len(one)} and {len(other)} long"
        for number, (a, b) in enumerate(zip(one, other, strict=False)):
            yield from differences(a, b, f"{place}[{number}]")
    elif isinstance(one, torch.Tensor):
        if one.dtype != other.dtype or not torch.equal(one, other):
            yield f"{place}: {one} and {other}"
    elif one != other:
        yield f"{place}: {one!r} and {other!r}"


def checkpoint(folder: Path, name: str = "last") -> dict[str, Any]:
    """A checkpoint without its times and paths, which differ between equal runs."""
    loaded: dict[str, Any] = torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)
    history = loaded["callbacks"]["History"]
    del history["seconds"], history["epoch_seconds"]
    for row in history["rows"]:
        del row["seconds"]
    for key, state in loaded["callbacks"].items():
        if key.startswith("ModelCheckpoint"):
            del state["dirpath"]
            state["best_model_path"] = Path(state["best_model_path"]).name
            state["kth_best_model_path"] = Path(state["kth_best_model_path"]).name
            state["best_k_models"] = list(state["best_k_models"].values())
    return loaded


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [{**row, "seconds": ""} for row in csv.DictReader(file)]


def recorded(folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((folder / "result.json").read_text("utf-8"))
    return result


def assert_same_run(one: Path, other: Path) -> None:
    for name in ("last", "best"):
        assert list(differences(checkpoint(one, name), checkpoint(other, name))) == []
    assert rows(one) == rows(other)
    for key in ("status", "val", "test", "monitor_value", "epochs", "num_parameters"):
        assert recorded(one)[key] == recorded(other)[key], key


def logits(model: TrainedModel) -> torch.Tensor:
    """Logits that a tiny fusion model gives two movies, only the first of which has a poster."""
    pixels = (np.arange(32 * 32 * 3).reshape(32, 32, 3) % 7 * 36).astype(np.uint8)
    items: dict[str, list[Any]] = {
        "title_tfidf": ["Lost Kiss (1968)", "Sheriff of Ohio, The (1955)"],
        "poster_resnet": [pixels, None],
    }
    with torch.inference_mode():
        result: torch.Tensor = model.network(encode_items(model.inputs, items), 2)
    return result
