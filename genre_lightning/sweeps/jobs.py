"""Sweeps that can be continued: what a job does beside training, and a sweep beside its jobs.

Hydra's sweepers and launchers are used as they are. Every job decides for itself, from its folder,
whether it has to run, so the same holds in one process, in several and on a cluster. Nothing heavy
is imported before a job really trains.
"""

from __future__ import annotations

import atexit
import csv
import gc
import inspect
import json
import logging
import math
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from genre_lightning.errors import UserError
from genre_lightning.files import whole_file
from genre_lightning.runs.naming import (
    chosen_overrides,
    is_harmless,
    key_of,
    parsed,
    read_command,
    sweep_name,
)
from genre_lightning.runs.result import is_running, read_result, recorded_run, starting_point
from genre_lightning.sweeps.devices import claimed, claims_folder, gpu_names, limit_spinning
from genre_lightning.sweeps.processes import (
    check_started,
    is_member,
    processes_to_start,
    run_in_processes,
)

#: Seconds between two looks at what the jobs have written.
PATIENCE = 0.2

Train = Callable[[DictConfig, Path, dict[str, Any]], None]


# Jobs.


def job_label(overrides: Sequence[str], sweep: Path) -> str:
    """What the terminal calls a job: its overrides of the swept keys."""
    return chosen_overrides(overrides, read_command(sweep)["keys"]) or "defaults"


class Journal:
    """What the jobs of one command tell each other and the terminal: a line of JSON for each event.

    Args:
        sweep: the sweep's folder.
    """

    def __init__(self, sweep: Path) -> None:
        self.path = sweep / "jobs.jsonl"

    def write(self, status: str, **event: Any) -> None:
        line = json.dumps({"status": status, **event}) + "\n"
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line)  # at once: several processes append

    def read(self) -> list[dict[str, Any]]:
        text = self.path.read_text("utf-8") if self.path.exists() else ""
        return [json.loads(line) for line in text.splitlines(True) if line.endswith("\n")]

    def is_stopped(self, fail_fast: bool) -> bool:
        """Whether no further job is to start."""
        reasons = {"stopping", "failed"} if fail_fast else {"stopping"}
        return any(event["status"] in reasons for event in self.read())


def run_job(cfg: DictConfig, train: Train) -> float | None:
    """Run one training, by itself or as a job of a sweep, and leave its story in the run folder.

    A job of a sweep that is finished is not run again, and one that has a ``last.ckpt`` goes on
    from it. One that fails is recorded, and the others go on. What it prints goes into a file in
    its folder.

    Args:
        cfg: the composed configuration.
        train: fits the model and fills the result, given configuration, run folder and result.

    Returns:
        The monitored value; None for a job without one.
    """
    limit_spinning()
    job = HydraConfig.get()
    folder = Path(job.runtime.output_dir)
    if job.mode == RunMode.MULTIRUN and not is_member():
        return _run_in_sweep(cfg, train, folder)
    try:
        check_started(job)
        if not is_member():
            cfg.ckpt_path = starting_point(cfg.ckpt_path, folder)
        result = _run(cfg, train, folder)
    except UserError as error:
        if is_member():
            raise
        raise SystemExit(f"error: {error}") from None
    value: float | None = result["monitor_value"]
    return value


def _run(cfg: DictConfig, train: Train, folder: Path) -> Mapping[str, Any]:
    """Train here, or in as many processes as the trainer asks for; give what was recorded."""
    count = processes_to_start(cfg.trainer)
    if count > 0:
        return run_in_processes(count, inspect.getfile(train), cfg, folder)
    job = HydraConfig.get()
    with recorded_run(folder, cfg.monitor, cfg.seed, list(job.overrides.task)) as result:
        train(cfg, folder, result)
    return result


def _run_in_sweep(cfg: DictConfig, train: Train, folder: Path) -> float | None:
    job = HydraConfig.get()
    sweep = Path(job.runtime.cwd) / job.sweep.dir
    command = read_command(sweep)
    journal = Journal(sweep)
    label = job_label(job.overrides.task, sweep)

    def tell(status: str, **more: Any) -> None:
        journal.write(status, job=label, folder=folder.name, **more)

    cfg.sweep.name = command["name"]
    OmegaConf.update(cfg, "callbacks.progress_bar", None, force_add=True)
    OmegaConf.update(cfg, "trainer.enable_progress_bar", False, force_add=True)
    try:
        earlier = read_result(folder)
        if earlier is not None and earlier["status"] == "completed":
            tell("already finished", **_score(earlier))
            value: float | None = earlier["monitor_value"]
            return value
        if journal.is_stopped(cfg.sweep.fail_fast):
            tell("not started")
            return None
        if is_running(folder):
            tell("running elsewhere")
            return None
        tell("started", pid=os.getpid(), host=socket.gethostname())
        epochs = None
        last = folder / "checkpoints" / "last.ckpt"
        if last.exists():
            cfg.ckpt_path = str(last)
            epochs = _epochs(folder)
        with (
            _output_into(folder / f"{job.job.name}.log"),
            _own_gpu(cfg, job.job.num),
        ):
            result = _run(cfg, train, folder)
        pruned = bool(result.get("pruned"))
        seconds = result["seconds"]
        tell("completed", resumed=epochs, seconds=seconds, pruned=pruned, **_score(result))
        value = result["monitor_value"]
        return value
    except (KeyboardInterrupt, SystemExit) as stop:
        tell("interrupted")
        if "SLURM_JOB_ID" in os.environ:
            raise  # the job may be queued again
        if (os.getpid(), socket.gethostname()) == (command["pid"], command["host"]):
            tell("stopping", code=stop.code if isinstance(stop, SystemExit) else 130)
        return None
    except Exception as error:  # noqa: BLE001 - recorded and told at the end: the others go on
        tell("failed", error=f"{type(error).__name__}: {error}")
        return None
    finally:
        _free_memory()


def _score(result: Mapping[str, Any]) -> dict[str, Any]:
    return {"monitor": result["monitor"], "monitor_value": result["monitor_value"]}


def _epochs(folder: Path) -> int:
    """Epochs that a run has behind it."""
    try:
        with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
            return sum(1 for _ in csv.DictReader(file))
    except FileNotFoundError:
        return 0


@contextmanager
def _output_into(path: Path) -> Iterator[None]:
    """Send what is printed, warned and raised to a file, to which Hydra already sends the log."""
    root = logging.getLogger()
    for handler in root.handlers[:]:
        if type(handler) is logging.StreamHandler:
            root.removeHandler(handler)  # Hydra puts it back after the job
    file = path.open("a", encoding="utf-8", buffering=1)
    with file, redirect_stdout(file), redirect_stderr(file):
        try:
            yield
        except Exception:
            traceback.print_exc()
            raise


@contextmanager
def _own_gpu(cfg: DictConfig, number: int) -> Iterator[None]:
    """Give the job a GPU that fewest jobs use, where there are several and it wants any one."""
    import torch

    count = torch.cuda.device_count()
    wants = cfg.trainer.accelerator in ("auto", "gpu", "cuda") and cfg.trainer.devices in (1, "1")
    if not wants or count < 2:
        yield
        return
    with claimed(gpu_names(count), claims_folder(), number % count) as index:
        cfg.trainer.devices = [index]
        yield


def _free_memory() -> None:
    """Give back what the job held; its network and data are rings of references."""
    gc.collect()
    _keep_imports()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


@cache
def _keep_imports() -> None:
    """Once: what the imports made stays, and looking through it took .2 s a job."""
    gc.freeze()
    # Or it would not be freed at the end, and extension modules complain of that line by line.
    atexit.register(gc.unfreeze)


# The sweep.


class SweepCallback(Callback):
    """What a sweep does beside its jobs: a line for each, the leaderboard, the exit code.

    One sweep is run by one command at a time. Ctrl-C and SIGTERM let the running jobs save and end,
    and start no other; a second one ends all at once.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return SweepCallback, ()  # the copies that go to other processes watch nothing

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        from filelock import FileLock, Timeout  # a single run, or none, does without

        try:
            check_started(config.hydra)
        except UserError as error:
            raise SystemExit(f"error: {error}") from None
        sweeper = config.hydra.sweeper
        params = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
        task = list(config.hydra.overrides.task)
        overrides = {key_of(override): override for override in parsed([*params, *task])}
        keys = [
            key
            for key, override in overrides.items()
            if override.is_sweep_override() or key in (sweeper.get("params") or {})
        ]
        for key in filter(is_harmless, keys):
            raise SystemExit(f"error: {key} changes no result, so there is no sweep over it")
        self.folder = Path(config.hydra.sweep.dir)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock = FileLock(self.folder / ".sweep.lock", timeout=0)
        try:
            self.lock.acquire()
        except Timeout:
            raise SystemExit(f"error: another command is running the sweep {self.folder}") from None
        self.total = sweeper.get("n_trials") or _number_of_jobs(overrides.values())
        command = {
            "name": self.folder.name,
            "overrides": task,
            "keys": keys,
            "named_by_command": self.folder.name == sweep_name(None, task, sweeper),
            "total": self.total,
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "pid": os.getpid(),
            "host": socket.gethostname(),
        }
        with whole_file(self.folder / "sweep.json") as file:
            json.dump(command, file, indent=2)
        self.journal = Journal(self.folder)
        self.journal.path.unlink(missing_ok=True)
        self.terminal = sys.stdout  # in a job it is something else
        self.shown = self.ended = 0
        print(f"Sweep {self.folder.name}: {self.total} jobs in {self.folder}", flush=True)
        atexit.register(self._unfinished)
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        self.handlers = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.handlers[number] = signal.signal(number, self._stop)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        self._restore_signals()
        self.over.set()
        self.thread.join()
        self._show()
        atexit.unregister(self._unfinished)
        try:
            self._leaderboard()
        except Exception as error:
            traceback.print_exc()  # Hydra would make a warning of it
            raise SystemExit(1) from error
        finally:
            self.lock.release()
        code = self._summary()
        if code:
            raise SystemExit(code)

    def _leaderboard(self) -> None:
        from rich.console import Console

        from genre_lightning.comparison.leaderboard import (
            compare,
            print_leaderboard,
            write_leaderboard,
        )

        comparison = compare([self.folder])
        write_leaderboard(self.folder, comparison)
        print_leaderboard(comparison, Console(markup=False, emoji=False))

    def _summary(self) -> int:
        """Print what became of the jobs; return the exit code."""
        events = [event for event in self.journal.read() if event["status"] != "started"]
        counts = Counter(event["status"] for event in events)
        stops = [event["code"] for event in events if event["status"] == "stopping"]
        del counts["stopping"]
        resumed = sum(event.get("resumed") is not None for event in events)
        parts = [f"{number} {status}" for status, number in counts.items()]
        if resumed:
            parts.append(f"{resumed} of them resumed")
        print(f"{self.folder}: {', '.join(parts)}")
        if set(counts) <= {"completed", "already finished"}:
            return 0
        print("The same command goes on from here: what is finished is not run again.", flush=True)
        return int(stops[0] or 1) if stops else 1

    def _watch(self) -> None:
        while not self.over.wait(PATIENCE):
            self._show()

    def _show(self) -> None:
        events = self.journal.read()
        for event in events[self.shown :]:
            if event["status"] in ("started", "stopping", "not started"):
                continue
            self.ended += 1
            print(line(event, self.ended, self.total), file=self.terminal, flush=True)
        self.shown = len(events)

    def _stop(self, number: int, frame: object) -> None:
        self._restore_signals()
        self.journal.write("stopping", code=128 + number)
        events = self.journal.read()
        ended = {event.get("folder") for event in events if event["status"] != "started"}
        for event in events:
            elsewhere = (
                event.get("pid") != os.getpid() and event.get("host") == socket.gethostname()
            )
            if event["status"] == "started" and event["folder"] not in ended and elsewhere:
                try:
                    os.kill(event["pid"], signal.SIGTERM)
                except ProcessLookupError:
                    continue
        print("Stopping: the running jobs save and end.", file=self.terminal, flush=True)

    def _restore_signals(self) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def _unfinished(self) -> None:
        print(
            "The sweep has not ended. The same command goes on from here: what is finished is not "
            "run again.",
            file=self.terminal,
            flush=True,
        )


def line(event: Mapping[str, Any], number: int, total: int) -> str:
    """What the terminal shows of a job that has ended."""
    parts = [f"[{number}/{total}] {event['job']}"]
    if event.get("pruned"):
        parts.append("pruned")
    if event["status"] not in ("completed", "failed"):
        parts.append(event["status"])
    if event["status"] == "failed":
        parts.append(f"failed: {' '.join(event['error'].split())}")
    if event.get("monitor_value") is not None:
        parts.append(f"{event['monitor']} {event['monitor_value']:.4g}")
    if "seconds" in event:
        parts.append(f"{event['seconds']:.0f} s")
    if event.get("resumed") is not None:
        parts.append(f"(resumed after {event['resumed']} epochs)")
    return "  ".join(parts)


def _number_of_jobs(overrides: Iterable[Override]) -> int:
    """Of a grid."""
    return math.prod(
        sum(1 for _ in override.sweep_string_iterator()) if override.is_discrete_sweep() else 1
        for override in overrides
        if override.is_sweep_override()
    )
