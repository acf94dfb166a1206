"""A study: trials chosen by Optuna and kept in a sqlite file, so that it can be continued."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from hydra.core.override_parser.types import IntervalSweep, Override
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    check_distribution_compatibility,
)
from optuna.trial import FrozenTrial, TrialState

from genre_lightning.errors import UserError

FILE = "study.db"
NAME = "study"
#: Seconds to wait for another process that writes the file.
MAX_WAIT_SECONDS = 60

# The terminal shows one line per job of a sweep. What Optuna would log is in the study file.
optuna.logging.set_verbosity(logging.WARNING)


#: Study files that this process has checked, by path, device and inode.
_checked_files: set[tuple[Path, int, int]] = set()


def storage(folder: Path) -> optuna.storages.RDBStorage:
    """Open the study file of a sweep's folder, created if needed.

    Each epoch of a trial opens it. Optuna's check of its tables and version, which executes twenty
    scripts in 0.1 s, is made only the first time.

    Raises:
        UserError: the file is of another version of Optuna.
    """
    file = (folder / FILE).resolve()
    is_checked = _identity(file) in _checked_files
    try:
        opened = optuna.storages.RDBStorage(
            f"sqlite:///{file}",
            engine_kwargs={"connect_args": {"timeout": MAX_WAIT_SECONDS}},
            skip_compatibility_check=is_checked,
            skip_table_creation=is_checked,
        )
    except RuntimeError as error:  # whose message says what to install
        raise UserError(f"{folder / FILE}: {error}") from error
    _checked_files.add(_identity(file))
    return opened


def _identity(file: Path) -> tuple[Path, int, int]:
    try:
        status = file.stat()
    except FileNotFoundError:
        return file, 0, 0
    return file, status.st_dev, status.st_ino


@contextmanager
def study_errors(folder: Path) -> Iterator[None]:
    """Turn errors in reading or writing the study file into an error that names it.

    Raises:
        UserError: the file could not be read or written, e.g. because the disk is full.
    """
    try:
        yield
    except Exception as error:
        # Optuna wraps SQLAlchemy's error, which wraps sqlite's. While it creates the tables, it
        # does not wrap SQLAlchemy's.
        cause = error.__cause__
        reason = cause if isinstance(cause, sqlite3.Error) else getattr(cause, "orig", None)
        if reason is None:
            raise
        raise UserError(
            f"{folder / FILE} could not be read or written: {reason}. If the disk is full, make "
            "room; finished runs are in their run folders, too"
        ) from error


class RoundingSampler(optuna.samplers.TPESampler):
    """TPE with numbers rounded to four significant digits, since they are part of folder names."""

    def sample_relative(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        search_space: dict[str, BaseDistribution],
    ) -> dict[str, Any]:
        values = super().sample_relative(study, trial, search_space)
        return {name: _rounded(value, search_space[name]) for name, value in values.items()}

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        value = super().sample_independent(study, trial, param_name, param_distribution)
        return _rounded(value, param_distribution)


def _rounded(value: Any, distribution: BaseDistribution) -> Any:
    if not isinstance(distribution, FloatDistribution):
        return value
    return min(max(float(f"{value:.4g}"), distribution.low), distribution.high)


def distribution(override: Override) -> BaseDistribution:
    """Return the distribution from which a sweep's override draws values.

    ``interval(a, b)`` is a range of numbers, ``tag(log, interval(a, b))`` one on a logarithmic
    scale, ``int(interval(a, b))`` one of whole numbers; everything else, including ``choice(a, b)``
    and ``range(a, b)``, is an unordered choice.

    Raises:
        UserError: the range is not valid, e.g. because it ends before it begins.
    """
    sweep: Any = override.value()  # which has no types
    if not isinstance(override.value(), IntervalSweep):
        return CategoricalDistribution(tuple(override.sweep_string_iterator()))
    kind = IntDistribution if isinstance(sweep.start, int) else FloatDistribution
    try:
        return kind(sweep.start, sweep.end, log="log" in sweep.tags)
    except ValueError as error:
        raise UserError(f"{override.input_line}: {error}") from error


def search_space(overrides: Iterable[Override]) -> dict[str, BaseDistribution]:
    """Return the distribution of each swept key."""
    return {
        str(override.get_key_element()): distribution(override)
        for override in overrides
        if override.is_sweep_override()
    }


def count_trials(folder: Path, command: str, space: Mapping[str, BaseDistribution]) -> int:
    """Count the trials of a folder's study, without failed and waiting ones.

    Nothing is written.

    Args:
        folder: the sweep's folder.
        command: see :class:`Trials`.
        space: see :class:`Trials`.

    Raises:
        UserError: the study is of another command, or drew from other distributions.
    """
    file = folder / FILE
    if not file.is_file():
        return 0
    try:
        study = optuna.load_study(study_name=NAME, storage=storage(folder))
    except KeyError:  # killed before the study was made
        return 0
    first = study.user_attrs.get("command", command)
    if first != command:
        raise UserError(
            f"{file} is a study of {first}, not of {command}, and their values can't be compared: "
            "name another folder by sweep.name"
        )
    trials = study.get_trials(deepcopy=False)
    for trial in trials:
        for key in trial.distributions.keys() & space.keys():
            try:
                check_distribution_compatibility(trial.distributions[key], space[key])
            except ValueError:
                raise UserError(
                    f"the trials of {file} have drawn {key} from another kind of range, or from "
                    "other choices. Only the ends of a range can change: name another folder by "
                    "sweep.name"
                ) from None
    return sum(trial.state not in (TrialState.FAIL, TrialState.WAITING) for trial in trials)


class Trials:
    """The trials of a command that runs a study and was accepted by :func:`count_trials`.

    Args:
        folder: the sweep's folder.
        command: see ``runs.naming.command_name``; must be the same for trials to be comparable.
        space: distributions of the parameters.
        maximize: whether a higher monitored value is better.
        startup_trials: number of random trials before TPE starts.
        seed: seed of the sampler; an interruption does not change which trials are drawn.
    """

    def __init__(
        self,
        folder: Path,
        command: str,
        space: Mapping[str, BaseDistribution],
        *,
        maximize: bool,
        startup_trials: int,
        seed: int,
    ) -> None:
        self.space = dict(space)
        self.startup_trials = startup_trials
        self.seed = seed
        self.study = optuna.create_study(
            storage=storage(folder),
            study_name=NAME,
            direction="maximize" if maximize else "minimize",
            load_if_exists=True,
        )
        self.study.set_user_attr("command", command)
        for trial in self.unfinished():
            if set(trial.params) != set(space):  # killed while its values were drawn
                self.study.tell(trial.number, state=TrialState.FAIL)
        for trial in self._in_state(TrialState.FAIL):
            if trial.number not in self._repeated():
                # Values outside a range that has been narrowed since are drawn anew.
                params = trial.params if self._can_draw(trial.params) else {}
                self.study.enqueue_trial(params, user_attrs={"again": trial.number})

    def _can_draw(self, params: Mapping[str, Any]) -> bool:
        """Whether all values are in the search space."""
        return all(
            self.space[key]._contains(self.space[key].to_internal_repr(value))
            for key, value in params.items()
        )

    def _in_state(self, *states: TrialState) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=states)

    def _repeated(self) -> set[int]:
        """Return numbers of failed trials that have been, or will be, repeated as new trials."""
        trials = self.study.get_trials(deepcopy=False)
        return {trial.user_attrs["again"] for trial in trials if "again" in trial.user_attrs}

    def finished(self) -> list[FrozenTrial]:
        """Return the trials with a value, including pruned ones, oldest first."""
        return self._in_state(TrialState.COMPLETE, TrialState.PRUNED)

    def unfinished(self) -> list[FrozenTrial]:
        """Return the trials that have begun but not ended, oldest first."""
        return self._in_state(TrialState.RUNNING)

    def ask(self, total: int) -> bool:
        """Begin another trial, unless there are ``total`` already; return whether it was begun."""
        begun = len(self.study.get_trials(deepcopy=False)) - len(self._in_state(TrialState.WAITING))
        repeated = len(self._repeated())
        if begun - repeated >= total:
            return False
        self.study.sampler = RoundingSampler(
            n_startup_trials=self.startup_trials, seed=self.seed + begun
        )
        self.study.ask(self.space)
        return True

    def tell(self, number: int, result: Mapping[str, Any]) -> bool:
        """Record the outcome of a trial.

        Args:
            number: number of the trial.
            result: the content of its run's ``result.json``; empty if there is none.

        Returns:
            Whether the trial has ended; an interrupted one has not.
        """
        if result.get("status") == "failed":
            self.study.tell(number, state=TrialState.FAIL)
        elif result.get("status") == "completed":
            if result.get("pruned"):
                self.study.tell(number, state=TrialState.PRUNED)
            else:
                self.study.tell(number, result["monitor_value"])
        return result.get("status") in ("failed", "completed")
