"""What a sweep does beside its jobs: a line for each, signals, the leaderboard, the exit code."""

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
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from genre_lightning.errors import UserError
from genre_lightning.files import FullDiskError, remove_unfinished, whole_file
from genre_lightning.runs.command_line import at_end
from genre_lightning.runs.naming import (
    command_name,
    read_command,
    result_settings,
    sweep_overrides,
)
from genre_lightning.runs.process import (
    catch_signals,
    end_with,
    ending_signals,
    release_signals,
    under_slurm,
    when_stopping,
)
from genre_lightning.runs.quoting import shell_command
from genre_lightning.runs.settings import changes_no_result
from genre_lightning.sweeps.composing import compose_what_jobs_share_once
from genre_lightning.sweeps.journal import SAME, Journal, line
from genre_lightning.sweeps.processes import check_started

#: Files of a sweep's folder that are there before any job is.
WRITTEN = ("multirun.yaml", "sweep.json", "study.db", ".sweep.lock")
#: Seconds between two looks at what the jobs have written.
LOOK_EVERY = 0.2
RESUMES = "The same command resumes it: what is finished is not run again."


class SweepCallback(Callback):
    """What a sweep does beside its jobs: a line for each, the leaderboard, the exit code.

    One sweep is run by one command at a time. Ctrl-C, SIGTERM and a terminal that is closed let the
    running jobs save and end, and start no other; a second Ctrl-C or SIGTERM ends all at once.
    Should the command be killed, its jobs in other processes of this machine end as well. Not
    those of Slurm, which are no processes of the command.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        # The copies that go to other processes do nothing else.
        return _in_a_job, (os.getpid(), socket.gethostname())

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        try:
            self._start(config)
        except (UserError, OSError) as error:  # of which Hydra would make a warning
            raise SystemExit(f"error: {error}") from None

    def _start(self, config: DictConfig) -> None:
        check_started(config.hydra)
        overrides = sweep_overrides(config.hydra)
        keys = [key for key, override in overrides.items() if override.is_sweep_override()]
        _check_swept(keys, overrides.values())
        self.folder = Path(config.hydra.sweep.dir)
        # Of a study; what it refuses leaves everything as it is.
        chosen = config.hydra.sweeper.get("n_trials")
        if chosen is None:
            self.total = _number_of_jobs(overrides.values())
        else:
            self.total = max(chosen, _trials_so_far(self.folder, config.hydra, overrides.values()))
        self._take_folder()
        self._write_command(config, keys, overrides)
        self._begin_watching()
        # Of Optuna's jobs none is composed to be checked before.
        checks_first = config.hydra.sweeper._target_.endswith(".BasicSweeper")
        self.compose_again = compose_what_jobs_share_once(keep=checks_first)
        when_stopping.append(self._tell_of_stop)
        self.handlers = catch_signals({signal.SIGTERM, *ending_signals()}, self._stop)
        if config.hydra.launcher._target_.endswith(".JoblibLauncher"):
            _have_workers_end_with_us()
        if config.hydra.launcher._target_.endswith(".LocalLauncher"):  # of submitit
            from genre_lightning.sweeps.submitit_local import start_controllers_apart

            at_end.callback(start_controllers_apart())
        at_end.callback(self._end)

    def _take_folder(self) -> None:
        """Make the sweep's folder if needed, and hold it as the one command that runs there."""
        from filelock import FileLock, Timeout  # a single run, or none, does without

        self.made = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
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
            "overrides": list(config.hydra.overrides.task),
            "keys": keys,
            "log_scales": _log_scales(overrides),
            **self._first(overrides.values()),
            "total": self.total,
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "pid": os.getpid(),
            "host": socket.gethostname(),
        }
        with whole_file(self.folder / "sweep.json") as file:
            json.dump(command, file, indent=2)
        # Hydra does so next, and where the disk is full without a word on what to do.
        with whole_file(self.folder / "multirun.yaml") as file:
            file.write(OmegaConf.to_yaml(config))

    def _begin_watching(self) -> None:
        """Show from now on what the jobs write to the journal."""
        self.journal = Journal(self.folder)
        self.journal.path.unlink(missing_ok=True)
        self.terminal = sys.stdout  # in a job it is something else
        self.shown = self.ended = 0
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        # Hydra keeps what every job returns until the end of the sweep. Its configurations, of a
        # quarter of a megabyte, are asked for by nobody.
        job_return.cfg = job_return.hydra_cfg = None

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        self._stop_watching()
        self._show()
        try:
            self._leaderboard()
        except FullDiskError as error:
            raise SystemExit(f"error: {error}. {RESUMES}") from None
        except Exception as error:
            traceback.print_exc()  # Hydra would make a warning of it
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
        """Print what became of the jobs; return the exit code."""
        events = [event for event in self.journal.read() if event["status"] != "started"]
        counts = Counter(event["status"] for event in events)
        stops = [event["code"] for event in events if event["status"] == "stopping"]
        del counts["stopping"]
        resumed = sum(event.get("resumed") is not None for event in events)
        parts = [f"{number} {status}" for status, number in counts.items()]
        if resumed:
            parts.append(f"{resumed} of them resumed")
        print(f"{shell_command(self.folder)}: {', '.join(parts)}")
        if set(counts) <= {"completed", "already finished", SAME}:
            return 0
        print(RESUMES, flush=True)
        return int(stops[0] or 1) if stops else 1

    def _stop_watching(self) -> None:
        release_signals(self.handlers)
        if self._tell_of_stop in when_stopping:
            when_stopping.remove(self._tell_of_stop)
        self.compose_again()
        self.over.set()
        self.thread.join()

    def _watch(self) -> None:
        while not self.over.wait(LOOK_EVERY):
            self._show()

    def _show(self) -> None:
        events = self.journal.read()
        if events and not self.shown:
            place = shell_command(self.folder)
            text = f"Sweep {self.folder.name}: {self.total} jobs in {place}"
            print(text, file=self.terminal, flush=True)
        for event in events[self.shown :]:
            if event["status"] in ("started", "stopping", "not started"):
                continue
            self.ended += 1
            print(line(event, self.ended, self.total), file=self.terminal, flush=True)
        self.shown = len(events)

    def _stop(self, number: int, frame: object) -> None:
        release_signals(self.handlers)
        self.journal.write("stopping", code=128 + number)
        events = self.journal.read()

        def job(event: Mapping[str, Any]) -> tuple[Any, Any]:
            # By its process as well: of two with the same values one ends at once.
            return event.get("folder"), event.get("pid")

        ended = {job(event) for event in events if event["status"] != "started"}
        for event in events:
            elsewhere = (
                event.get("pid") != os.getpid() and event.get("host") == socket.gethostname()
            )
            if event["status"] == "started" and job(event) not in ended and elsewhere:
                try:
                    os.kill(event["pid"], signal.SIGTERM)
                except ProcessLookupError:
                    continue
        self._tell_of_stop()

    def _tell_of_stop(self) -> None:
        print("Stopping: the running jobs save and end.", file=self.terminal, flush=True)

    def _end(self) -> None:
        """Leave nothing that goes on in this process, however the sweep has ended."""
        ended = self.over.is_set()
        self._stop_watching()
        self.lock.release()
        if ended:
            return
        if not self.journal.read():
            self._undo()
            return
        print(f"The sweep has not ended. {RESUMES}", file=self.terminal, flush=True)

    def _undo(self) -> None:
        """Leave nothing of a sweep whose first job could not even be configured."""
        if self.folder not in self.made:
            return
        for name in WRITTEN:
            (self.folder / name).unlink(missing_ok=True)
        with suppress(OSError):  # no longer empty: someone else needs it
            for path in self.made:
                path.rmdir()

    def _first(self, overrides: Iterable[Override]) -> dict[str, Any]:
        """Of the first command that ran this sweep: what was the same for all jobs, and where."""
        try:
            before = read_command(self.folder)
        except FileNotFoundError:
            here = Path.cwd()
            fixed = result_settings(overrides, here)
            # As a way from there, which stays where both are moved.
            return {"fixed": fixed, "given_in": os.path.relpath(here, self.folder)}
        return {key: before[key] for key in ("fixed", "given_in") if key in before}


def _in_a_job(command: int, host: str) -> SweepCallback:
    """What a process that runs a job is given of the callback.

    Args:
        command: number of the process that runs the sweep.
        host: its machine.
    """
    if host == socket.gethostname() and not under_slurm():
        end_with(command)
    return SweepCallback()


def _have_workers_end_with_us() -> None:
    """Have joblib's worker processes end with this one, those that wait for a job as well.

    Left alone, they wait for minutes, or for ever: each of them holds both ends of the pipe that
    jobs come through, and the lock that they ask before they end may have died with the command.
    """
    from joblib import register_parallel_backend
    from joblib.parallel import LokyBackend

    register_parallel_backend(
        "loky", partial(LokyBackend, initializer=_begin_worker, initargs=(os.getpid(),))
    )


def _begin_worker(command: int) -> None:
    end_with(command)
    # These reach every process of a terminal. The command answers them, and tells the jobs.
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def _check_swept(keys: Iterable[str], overrides: Iterable[Override]) -> None:
    """Refuse a sweep over what changes no result, or over no value at all."""
    for key in filter(changes_no_result, keys):
        raise UserError(f"{key} changes no result, so there is no sweep over it")
    for override in overrides:
        if override.is_discrete_sweep() and not list(override.sweep_string_iterator()):
            raise UserError(f"{override.input_line} holds no value, so there is no job")


def _log_scales(overrides: Mapping[str, Override]) -> dict[str, bool]:
    """Keys that are drawn from a range, and whether its scale is logarithmic."""
    drawn: dict[str, Any] = {
        key: override.value() for key, override in overrides.items() if override.is_interval_sweep()
    }
    return {key: "log" in values.tags for key, values in drawn.items()}


def _trials_so_far(folder: Path, hydra: Any, overrides: Iterable[Override]) -> int:
    """How many trials the study has that this command continues, refused if it can't be."""
    try:
        from genre_lightning.sweeps.study import search_space, study_errors, trials_so_far
    except ModuleNotFoundError as error:
        if error.name != "optuna":
            raise
        raise UserError('this sweep needs Optuna: pip install "genre-lightning[optuna]"') from error
    with study_errors(folder):
        return trials_so_far(folder, command_name(hydra), search_space(overrides))


def _number_of_jobs(overrides: Iterable[Override]) -> int:
    """Of a grid."""
    return math.prod(
        sum(1 for _ in override.sweep_string_iterator()) if override.is_discrete_sweep() else 1
        for override in overrides
        if override.is_sweep_override()
    )
