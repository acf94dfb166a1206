"""Hydra callback of a sweep: progress lines, signals, the leaderboard and the exit code."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from genre_lightning.errors import UserError
from genre_lightning.files import FullDiskError, remove_unfinished, whole_file
from genre_lightning.runs.command_line import at_end, folder_of
from genre_lightning.runs.naming import (
    as_given,
    command_name,
    read_command,
    result_settings,
    sweep_overrides,
)
from genre_lightning.runs.process import (
    catch_signals,
    ending_signals,
    exit_when_process_ends,
    release_signals,
    stop_callbacks,
    under_slurm,
)
from genre_lightning.runs.quoting import shell_command
from genre_lightning.runs.settings import changes_no_result
from genre_lightning.sweeps.composing import cache_job_configs
from genre_lightning.sweeps.journal import SAME_JOB, Journal, event_line
from genre_lightning.sweeps.processes import check_distributed_launch
from genre_lightning.wording import counted

#: Files in a sweep's folder before any job starts.
SWEEP_FILES = ("multirun.yaml", "sweep.json", "study.db", ".sweep.lock")
#: Seconds between two reads of the jobs' journal.
POLL_SECONDS = 0.2
RESUME_HINT = "The same command resumes it: finished jobs are not run again."


class SweepCallback(Callback):
    """Prints a line per job, handles signals, writes the leaderboard and sets the exit code.

    Only one command at a time can run a sweep. On Ctrl-C, SIGTERM or a closed terminal the running
    jobs save and end, and no others start; a second Ctrl-C or SIGTERM ends all at once. If the
    command is killed, its jobs in other processes on this machine end as well. Slurm's jobs do not,
    since they are not processes of the command.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        # Copies of the callback in other processes do only this.
        return _restore_in_job, (os.getpid(), socket.gethostname())

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        try:
            self._start(config)
        except (UserError, OSError) as error:  # which Hydra would turn into a warning
            raise SystemExit(f"error: {error}") from None

    def _start(self, config: DictConfig) -> None:
        check_distributed_launch(config.hydra)
        overrides = sweep_overrides(config.hydra)
        keys = [key for key, override in overrides.items() if override.is_sweep_override()]
        _check_swept(keys, overrides.values())
        self.folder = Path(config.hydra.sweep.dir)
        _check_folders(config, overrides.values())
        # Only studies have n_trials. A study is checked before anything is written.
        num_trials = config.hydra.sweeper.get("n_trials")
        if num_trials is None:
            self.total = _num_jobs(overrides.values())
        else:
            self.total = max(
                num_trials, _count_trials(self.folder, config.hydra, overrides.values())
            )
        self._lock_folder()
        self._write_command(config, keys, overrides)
        self._begin_watching()
        # Optuna's jobs are not composed beforehand to check them.
        checks_first = config.hydra.sweeper._target_.endswith(".BasicSweeper")
        self.restore_composition = cache_job_configs(keep=checks_first)
        stop_callbacks.append(self._report_stop)
        self.handlers = catch_signals({signal.SIGTERM, *ending_signals()}, self._stop)
        if config.hydra.launcher._target_.endswith(".JoblibLauncher"):
            _end_workers_with_command()
        if config.hydra.launcher._target_.endswith(".LocalLauncher"):  # of submitit
            from genre_lightning.sweeps.submitit_local import shield_controllers_from_signals

            at_end.callback(shield_controllers_from_signals())
        at_end.callback(self._end)

    def _lock_folder(self) -> None:
        """Create the sweep's folder if needed, and lock it for this command."""
        from filelock import FileLock, Timeout  # not needed without a sweep

        self.created_folders = [
            path for path in (self.folder, *self.folder.parents) if not path.exists()
        ]
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock = FileLock(self.folder / ".sweep.lock", timeout=0)
        try:
            self.lock.acquire()
        except Timeout:
            raise UserError(
                f"another command is running the sweep {self.folder}: wait for it or stop it, or "
                "name another sweep by sweep.name"
            ) from None
        remove_unfinished(self.folder)

    def _write_command(
        self, config: DictConfig, keys: Sequence[str], overrides: Mapping[str, Override]
    ) -> None:
        """Write sweep.json, and the configuration as Hydra does."""
        command = {
            "name": self.folder.name,
            "overrides": as_given(config.hydra.overrides.task),
            "keys": keys,
            "log_scales": _log_scales(overrides),
            **self._first_command(overrides.values()),
            "total": self.total,
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "pid": os.getpid(),
            "host": socket.gethostname(),
        }
        with whole_file(self.folder / "sweep.json") as file:
            json.dump(command, file, indent=2)
        # Hydra does so next, but its error for a full disk doesn't say what to do.
        with whole_file(self.folder / "multirun.yaml") as file:
            file.write(OmegaConf.to_yaml(config))

    def _begin_watching(self) -> None:
        """Start to show what the jobs write to the journal."""
        self.journal = Journal(self.folder)
        self.journal.path.unlink(missing_ok=True)
        self.terminal = sys.stdout  # within a job, stdout is redirected
        self.shown = self.ended = 0
        self.watch_ended = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        # Hydra keeps what every job returns until the end of the sweep. Nothing uses the
        # configurations in it, which take a quarter of a megabyte.
        job_return.cfg = job_return.hydra_cfg = None

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        self._stop_watching()
        self._show()
        try:
            self._leaderboard()
        except FullDiskError as error:
            raise SystemExit(f"error: {error}. {RESUME_HINT}") from None
        except Exception as error:
            traceback.print_exc()  # Hydra would turn it into a warning
            raise SystemExit(1) from error
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
        from genre_lightning.comparison.reading import is_run_folder

        if not any(is_run_folder(path) for path in self.folder.iterdir()):
            return  # stopped before any job began
        comparison = compare([self.folder])
        write_leaderboard(self.folder, comparison)
        print_leaderboard(comparison, Console(markup=False, emoji=False))

    def _summary(self) -> int:
        """Print a summary of the jobs; return the exit code."""
        events = [event for event in self.journal.read() if event["status"] != "started"]
        counts = Counter(event["status"] for event in events)
        stops = [event["code"] for event in events if event["status"] == "stopping"]
        del counts["stopping"]
        resumed = sum(event.get("resumed") is not None for event in events)
        parts = [f"{number} {status}" for status, number in counts.items()]
        if resumed:
            parts.append(f"{resumed} of them resumed")
        print(f"{shell_command(self.folder)}: {', '.join(parts)}")
        if set(counts) <= {"completed", "already finished", SAME_JOB}:
            return 0
        print(RESUME_HINT, flush=True)
        return int(stops[0] or 1) if stops else 1

    def _stop_watching(self) -> None:
        release_signals(self.handlers)
        if self._report_stop in stop_callbacks:
            stop_callbacks.remove(self._report_stop)
        self.restore_composition()
        self.watch_ended.set()
        self.thread.join()

    def _watch(self) -> None:
        while not self.watch_ended.wait(POLL_SECONDS):
            self._show()

    def _show(self) -> None:
        events = self.journal.read()
        if events and not self.shown:
            folder = shell_command(self.folder)
            jobs = counted(self.total, "job")
            text = f"Sweep {self.folder.name}: {jobs} in {folder}"
            print(text, file=self.terminal, flush=True)
        for event in events[self.shown :]:
            if event["status"] in ("started", "stopping", "not started"):
                continue
            self.ended += 1
            print(event_line(event, self.ended, self.total), file=self.terminal, flush=True)
        self.shown = len(events)

    def _stop(self, number: int, frame: object) -> None:
        release_signals(self.handlers)
        self.journal.write("stopping", code=128 + number)
        events = self.journal.read()

        def job_of(event: Mapping[str, Any]) -> tuple[Any, Any]:
            # The process is needed, too: of two jobs with the same values one ends at once.
            return event.get("folder"), event.get("pid")

        ended = {job_of(event) for event in events if event["status"] != "started"}
        for event in events:
            is_other_process = (
                event.get("pid") != os.getpid() and event.get("host") == socket.gethostname()
            )
            if event["status"] == "started" and job_of(event) not in ended and is_other_process:
                try:
                    os.kill(event["pid"], signal.SIGTERM)
                except ProcessLookupError:
                    continue
        self._report_stop()

    def _report_stop(self) -> None:
        print("Stopping: the running jobs save and end.", file=self.terminal, flush=True)

    def _end(self) -> None:
        """Stop everything that the sweep has started in this process, however it has ended."""
        ended = self.watch_ended.is_set()
        self._stop_watching()
        self.lock.release()
        if ended:
            return
        if not self.journal.read():
            self._remove_folder()
            return
        print(f"The sweep has not ended. {RESUME_HINT}", file=self.terminal, flush=True)

    def _remove_folder(self) -> None:
        """Remove the new folder of a sweep whose first job could not be configured."""
        if self.folder not in self.created_folders:
            return
        for name in SWEEP_FILES:
            (self.folder / name).unlink(missing_ok=True)
        with suppress(OSError):  # not empty: something else uses it
            for path in self.created_folders:
                path.rmdir()

    def _first_command(self, overrides: Iterable[Override]) -> dict[str, Any]:
        """Return the first command's settings of all jobs, and the folder in which it was given."""
        try:
            first = read_command(self.folder)
        except FileNotFoundError:
            cwd = Path.cwd()
            fixed = result_settings(overrides, cwd)
            # A relative path stays valid if both folders are moved.
            return {"fixed": fixed, "given_in": os.path.relpath(cwd, self.folder)}
        return {key: first[key] for key in ("fixed", "given_in") if key in first}


def _restore_in_job(command: int, host: str) -> SweepCallback:
    """Unpickle the callback in a process that runs a job, and let the process end with the command.

    Args:
        command: ID of the process that runs the sweep.
        host: name of that process's machine.
    """
    if host == socket.gethostname() and not under_slurm():
        exit_when_process_ends(command)
    return SweepCallback()


def _end_workers_with_command() -> None:
    """Make joblib's worker processes end with this one, even those that wait for a job.

    Otherwise they wait for minutes, or forever: each of them holds both ends of the pipe that jobs
    come through, and the lock that they need before they end may have died with the command.
    """
    from multiprocessing.resource_tracker import ensure_running

    from joblib import register_parallel_backend
    from joblib.parallel import LokyBackend

    class Backend(LokyBackend):
        def configure(self, *arguments: Any, **options: Any) -> Any:
            with _held_in_workers():
                ensure_running()  # at its start, Python's own tracker lets SIGINT pass again
            with _held_in_workers():
                return super().configure(*arguments, **options)

        def submit(self, *arguments: Any, **options: Any) -> Any:
            with _held_in_workers():
                return super().submit(*arguments, **options)

    register_parallel_backend(
        "loky", partial(Backend, initializer=_init_worker, initargs=(os.getpid(),))
    )


def _terminal_signals() -> list[signal.Signals]:
    """The signals that a terminal sends to all of its processes; none on Windows."""
    return [signal.SIGINT, signal.SIGHUP] if hasattr(signal, "pthread_sigmask") else []


@contextmanager
def _held_in_workers() -> Iterator[None]:
    """Hold a terminal's signals back in processes that the block starts.

    They would end a worker that is still starting, and joblib would raise an error about it. This
    process gets them as before, at the block's end.
    """
    if not _terminal_signals():
        yield
        return
    earlier = signal.pthread_sigmask(signal.SIG_BLOCK, _terminal_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, earlier)


def _init_worker(command: int) -> None:
    exit_when_process_ends(command)
    # These reach every process of a terminal. The command handles them, and signals the jobs.
    for number in _terminal_signals():
        signal.signal(number, signal.SIG_IGN)
    if _terminal_signals():
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _terminal_signals())


def _check_swept(keys: Iterable[str], overrides: Iterable[Override]) -> None:
    """Refuse a sweep over a setting that changes no result, or over no values."""
    for key in filter(changes_no_result, keys):
        raise UserError(f"{key} changes no result, so it can't be swept")
    for override in overrides:
        if override.is_discrete_sweep() and not list(override.sweep_string_iterator()):
            raise UserError(f"{override.input_line} has no values, so there are no jobs")


def _check_folders(config: DictConfig, overrides: Iterable[Override]) -> None:
    """Refuse a user's hydra.sweep.subdir by which two jobs would share a folder."""
    subdir = OmegaConf.to_container(config.hydra.sweep)["subdir"]  # type: ignore[index, call-overload]
    if "${job_folder:" in subdir:
        return
    if "n_trials" in config.hydra.sweeper:
        raise UserError(
            "hydra.sweep.subdir can't be set with sweep=optuna, which finds its trials by the "
            "usual names: leave it out"
        )
    (grid,) = BasicSweeper.split_arguments(list(overrides), None)
    jobs: dict[str, list[str]] = {}
    restore_composition = cache_job_configs(keep=False)
    try:
        for number, job in enumerate(grid):
            cfg = GlobalHydra.instance().config_loader().load_sweep_config(config, job)
            with open_dict(cfg):
                cfg.hydra.job.num, cfg.hydra.job.id = number, str(number)
            name = os.path.normpath(folder_of(cfg, "sweep") / cfg.hydra.sweep.subdir)
            other = jobs.setdefault(name, job)
            if other != job:
                raise UserError(
                    f"hydra.sweep.subdir={subdir} gives jobs the same folder, such as "
                    f"{' '.join(sorted({*other} - {*job}))} and "
                    f"{' '.join(sorted({*job} - {*other}))}: leave it out, or add "
                    "${hydra:job.num}"
                )
    except (HydraException, OmegaConfBaseException):
        return  # Hydra raises it again, before the first job
    finally:
        restore_composition()
        HydraConfig.instance().set_config(config)


def _log_scales(overrides: Mapping[str, Override]) -> dict[str, bool]:
    """Return the keys that are drawn from a range, and whether its scale is logarithmic."""
    intervals: dict[str, Any] = {
        key: override.value() for key, override in overrides.items() if override.is_interval_sweep()
    }
    return {key: "log" in values.tags for key, values in intervals.items()}


def _count_trials(folder: Path, hydra: Any, overrides: Iterable[Override]) -> int:
    """Count the trials of the study that this command continues; refuse it if it can't."""
    try:
        from genre_lightning.sweeps.study import count_trials, search_space, study_errors
    except ModuleNotFoundError as error:
        if error.name != "optuna":
            raise
        raise UserError('this sweep needs Optuna: pip install "genre-lightning[optuna]"') from error
    with study_errors(folder):
        return count_trials(folder, command_name(hydra), search_space(overrides))


def _num_jobs(overrides: Iterable[Override]) -> int:
    """Return the number of jobs of a grid."""
    return math.prod(
        sum(1 for _ in override.sweep_string_iterator()) if override.is_discrete_sweep() else 1
        for override in overrides
        if override.is_sweep_override()
    )
