"""Running a job of a sweep or a single run: whether it has to run, its lock, log and result.

Hydra's sweepers and launchers are used unchanged. Every job decides from its own folder whether it
has to run, so jobs work alike in one process, in several and on a cluster. Nothing heavy is
imported before a job really trains.
"""

from __future__ import annotations

import csv
import gc
import inspect
import logging
import os
import socket
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from genre_lightning.cores import share_cores
from genre_lightning.errors import UserError
from genre_lightning.files import FULL_DISK_ERRNOS, AppendedText, FullDiskError, full_disk
from genre_lightning.garbage import freeze_imports
from genre_lightning.quiet import quiet_libraries
from genre_lightning.runs.checks import check_settings
from genre_lightning.runs.ckpt_path import LAST, starting_point
from genre_lightning.runs.config import changed_config, recorded_config
from genre_lightning.runs.ending import completed_message, interrupted_message, resuming_overrides
from genre_lightning.runs.lock import FolderInUseError, is_running
from genre_lightning.runs.naming import as_given, changed_settings, read_command
from genre_lightning.runs.process import hold_signals, is_first_process
from genre_lightning.runs.quoting import relative_to_cwd, shell_command
from genre_lightning.runs.result import read_result, recorded_run
from genre_lightning.sweeps.composing import cache_job_configs
from genre_lightning.sweeps.devices import claim_device, claims_folder, gpu_names
from genre_lightning.sweeps.journal import SAME_JOB, Journal, job_label
from genre_lightning.sweeps.processes import (
    check_distributed_launch,
    is_spawned_process,
    processes_to_start,
    run_in_processes,
)
from genre_lightning.wording import first_few

Train = Callable[[DictConfig, Path, dict[str, Any]], None]

#: Maximum number of changed settings that an error names.
MAX_NAMED_SETTINGS = 4
#: The command whose jobs this process runs, and what these jobs share.
_shared: tuple[Any, dict[str, Any]] = (None, {})


def shared_by_jobs() -> dict[str, Any]:
    """Return the dict that the jobs of one command share within this process.

    It is empty at the first job. A run that is not a job of a sweep gets a new one at each call.
    """
    command, shared = _shared
    return {} if command is None else shared


def _reset_shared_data(command: object) -> None:
    """Forget what jobs of another command shared; ``command`` is None outside of a sweep."""
    global _shared
    if command is None or command != _shared[0]:
        _shared = (command, {})


def run_job(cfg: DictConfig, train: Train) -> float | None:
    """Run one training, by itself or as a job of a sweep, and record it in the run folder.

    A finished job of a sweep is not run again, and a job that has a ``last.ckpt`` resumes from it.
    A failure is recorded, and the other jobs still run. A job's output goes into a file in its
    folder.

    Args:
        cfg: the composed configuration.
        train: fits the model and fills in the result, given configuration, run folder and result.

    Returns:
        The monitored value; None for a job without one.
    """
    share_cores()
    # On a full disk a log line is dropped silently: a file that can't be written ends the run.
    logging.raiseExceptions = False
    job = HydraConfig.get()
    folder = Path(job.runtime.output_dir)
    # Commands that don't train, such as genre-ask, report their end themselves.
    shows_message = is_first_process() and not is_spawned_process() and "ckpt_path" in cfg
    is_single = job.mode != RunMode.MULTIRUN or is_spawned_process()
    try:
        if not is_single:
            return _run_in_sweep(cfg, train, folder)
        result = run_once(cfg, train)
    except (UserError, OSError) as error:
        if is_spawned_process() or not (
            isinstance(error, UserError) or error.errno in FULL_DISK_ERRNOS
        ):
            raise
        raise SystemExit(f"error: {_error_message(error, folder, is_single)}") from None
    except SystemExit:
        if shows_message and is_single:
            print(interrupted_message(folder, as_given(job.overrides.task)), flush=True)
        raise
    if shows_message:
        print(completed_message(folder, result, cfg), flush=True)
    value: float | None = result["monitor_value"]
    return value


def _error_message(error: UserError | OSError, folder: Path, is_single: bool) -> str:
    """Return the message for an error, with the command that resumes the run if there is one.

    Args:
        error: a UserError, or the system's error for a full disk.
        folder: the run folder.
        is_single: the run is not a job of a sweep.
    """
    if not isinstance(error, UserError):
        error = full_disk(Path(str(error.filename or folder)), error)
    if isinstance(error, FullDiskError) and is_single and (folder / LAST).is_file():
        overrides = as_given(HydraConfig.get().overrides.task)
        resume = shell_command(*resuming_overrides(folder, overrides))
        return f"{error}. Then go on by {resume}"
    return str(error)


def run_once(cfg: DictConfig, train: Train) -> Mapping[str, Any]:
    """Run one training that is not a job of a sweep.

    Args:
        cfg: see :func:`run_job`.
        train: see :func:`run_job`.

    Returns:
        The content of its ``result.json``.

    Raises:
        UserError: it can't run here, or with these settings.
    """
    job = HydraConfig.get()
    folder = Path(job.runtime.output_dir)
    _reset_shared_data(None)
    check_distributed_launch(job)
    earlier = None if is_spawned_process() else read_result(folder)
    # Commands without checkpoints, such as genre-ask, continue in their folder.
    if not is_spawned_process() and "ckpt_path" in cfg:
        cfg.ckpt_path = starting_point(cfg.ckpt_path, folder)
    return _run(cfg, train, folder, earlier)


def _run(
    cfg: DictConfig, train: Train, folder: Path, earlier: Mapping[str, Any] | None
) -> Mapping[str, Any]:
    """Train here, or in as many processes as the trainer asks for; return the recorded result.

    Args:
        cfg: the configuration.
        train: see :func:`run_job`.
        folder: the run folder.
        earlier: the content of its ``result.json`` when it was decided how this run starts.
    """
    count = processes_to_start(cfg.get("trainer") or {})
    if count > 0:
        return run_in_processes(count, inspect.getfile(train), cfg, folder)

    def check_unchanged() -> None:
        if not is_spawned_process() and read_result(folder) != earlier:
            raise FolderInUseError(
                f"another process has just trained in {folder}: run the command again"
            )

    overrides = as_given(HydraConfig.get().overrides.task)
    recorded = recorded_run(folder, cfg.monitor, cfg.seed, overrides, check_unchanged)
    with recorded as result, quiet_libraries():
        check_settings(cfg)  # those of a sweep's job are known only now
        with recorded_config(cfg, folder) if is_first_process() else nullcontext():
            train(cfg, folder, result)
    return result


def _run_in_sweep(cfg: DictConfig, train: Train, folder: Path) -> float | None:
    """Run one job of a sweep if it has to run, and write its outcome to the sweep's journal.

    Args:
        cfg: see :func:`run_job`.
        train: see :func:`run_job`.
        folder: the job's folder.

    Returns:
        The monitored value, also of a job that was already finished; None for a job that failed,
        was interrupted, or runs elsewhere.

    Raises:
        KeyboardInterrupt: the job was interrupted under Slurm.
        SystemExit: the job was stopped by a signal under Slurm.
    """
    job = HydraConfig.get()
    sweep = Path(job.runtime.cwd) / job.sweep.dir
    command = read_command(sweep)
    cache_job_configs(keep=False)  # for the next job of this process, if it is a worker
    _reset_shared_data([str(sweep), *(command[key] for key in ("host", "pid", "started"))])
    reporter = _JobReporter(Journal(sweep), job_label(as_given(job.overrides.task), sweep), folder)
    cfg.sweep.name = command["name"]
    _hide_progress_bar(cfg)
    try:
        return _train_if_needed(cfg, train, folder, reporter)
    except (KeyboardInterrupt, SystemExit) as stop:
        reporter.report("interrupted")
        if "SLURM_JOB_ID" in os.environ:
            raise  # the job may be queued again
        if reporter.is_process_of(command):
            reporter.report("stopping", code=stop.code if isinstance(stop, SystemExit) else 130)
    except FolderInUseError:
        reporter.report_in_use()
    except Exception as error:  # noqa: BLE001 - recorded and reported; the other jobs still run
        reporter.report("failed", error=f"{type(error).__name__}: {error}")
    finally:
        _free_memory()
    return None


class _JobReporter:
    """Writes one job's events to the sweep's journal, with the process that reports them.

    Args:
        journal: the sweep's journal.
        label: name of the job in the terminal.
        folder: the job's folder.
    """

    def __init__(self, journal: Journal, label: str, folder: Path) -> None:
        self.journal = journal
        self._label = label
        self._folder = folder.name
        self._process = {"pid": os.getpid(), "host": socket.gethostname()}

    def is_process_of(self, event: Mapping[str, Any]) -> bool:
        """Whether an event, or the sweep's command, is of this process."""
        return self._process == {key: event[key] for key in self._process}

    def report(self, status: str, **more: Any) -> None:
        """Write an event.

        Raises:
            FullDiskError: the disk is full.
        """
        self.journal.write(status, job=self._label, folder=self._folder, **self._process, **more)

    def report_in_use(self) -> None:
        """Write that another process trains in the folder, for this command or another one."""
        started = [event for event in self.journal.read() if event["status"] == "started"]
        elsewhere = [event["folder"] for event in started if not self.is_process_of(event)]
        self.report(SAME_JOB if self._folder in elsewhere else "running elsewhere")


def _hide_progress_bar(cfg: DictConfig) -> None:
    """Leave the terminal to the sweep, which shows a line for each job."""
    if cfg.get("trainer") is not None:
        OmegaConf.update(cfg, "trainer.enable_progress_bar", False, force_add=True)


def _train_if_needed(
    cfg: DictConfig, train: Train, folder: Path, reporter: _JobReporter
) -> float | None:
    """Train unless the job is finished, the sweep is stopped, or another process trains it.

    Args:
        cfg: see :func:`run_job`.
        train: see :func:`run_job`.
        folder: the job's folder.
        reporter: gets the decision and the score.

    Returns:
        The monitored value; None where the job was not trained.

    Raises:
        FolderInUseError: another process has meanwhile begun to train it.
        Exception: whatever the training raises.
    """
    earlier = read_result(folder)
    if earlier is not None and earlier["status"] == "completed":
        overrides = as_given(HydraConfig.get().overrides.task)
        reporter.report("already finished", **finished_job(folder, earlier, cfg, overrides))
        value: float | None = earlier["monitor_value"]
        return value
    if reporter.journal.is_stopped(cfg.sweep.fail_fast):
        reporter.report("not started")
        return None
    if is_running(folder):
        reporter.report_in_use()
        return None
    reporter.report("started")
    epochs = None
    last = folder / LAST
    if last.exists():
        cfg.ckpt_path = str(last)
        epochs = _num_epochs(folder)
    job = HydraConfig.get().job
    with _redirect_output(folder / f"{job.name}.log"), _claim_gpu(cfg, job.num):
        result = _run(cfg, train, folder, earlier)
    reporter.report(
        "completed",
        resumed=epochs,
        seconds=result["seconds"],
        pruned=bool(result.get("pruned")),
        **_score(result),
    )
    value = result["monitor_value"]
    return value


def finished_job(
    folder: Path, result: Mapping[str, Any], cfg: DictConfig, overrides: Sequence[str]
) -> dict[str, Any]:
    """Return what the event of a finished job reports.

    Args:
        folder: the job's folder.
        result: the content of its ``result.json``.
        cfg: the job's configuration, composed now.
        overrides: the job's overrides.

    Raises:
        UserError: the run in the folder had another configuration.
    """
    earlier = result.get("overrides", [])
    differences = changed_config(folder, cfg, earlier, overrides)
    if differences:
        raise UserError(
            f"{relative_to_cwd(folder)} was trained with other settings than the command now has: "
            f"{first_few(differences, MAX_NAMED_SETTINGS)}; name another sweep by sweep.name, or "
            "move this folder away to train the job again"
        )
    return {"changed": changed_settings(earlier, overrides), **_score(result)}


def _score(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a job's result that its event reports."""
    return {"monitor": result["monitor"], "monitor_value": result["monitor_value"]}


def _num_epochs(folder: Path) -> int:
    """Return the number of epochs that a run has finished."""
    try:
        with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
            return sum(1 for row in csv.DictReader(file) if row.get("seconds"))
    except FileNotFoundError:
        return 0


@contextmanager
def _redirect_output(path: Path) -> Iterator[None]:
    """Redirect output, warnings and tracebacks to the file to which Hydra already logs."""
    root = logging.getLogger()
    for handler in root.handlers[:]:
        if type(handler) is logging.StreamHandler:
            root.removeHandler(handler)  # Hydra puts it back after the job
    with AppendedText(path) as file, redirect_stdout(file), redirect_stderr(file):
        try:
            yield
        except Exception:
            with suppress(FullDiskError):  # the error being raised says more
                traceback.print_exc()
            raise


@contextmanager
def _claim_gpu(cfg: DictConfig, number: int) -> Iterator[None]:
    """Give the job the least used GPU, if there are several and it asks for any one of them."""
    if cfg.get("trainer") is None:
        yield
        return
    with hold_signals(), freeze_imports():
        import torch

    count = torch.cuda.device_count()
    any_gpu = cfg.trainer.accelerator in ("auto", "gpu", "cuda") and cfg.trainer.devices in (1, "1")
    if not any_gpu or count < 2:
        yield
        return
    with claim_device(gpu_names(count), claims_folder(), number % count) as index:
        cfg.trainer.devices = [index]
        yield


def _free_memory() -> None:
    """Free the job's memory; its network and data contain reference cycles."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
