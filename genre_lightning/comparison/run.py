"""A run as a leaderboard sees it: its settings, metrics and best epoch, however it ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from genre_lightning.runs.settings import usual_mode
from genre_lightning.wording import printable

#: A setting: a scalar of YAML; lists and other values are text.
Setting = bool | int | float | str | None
#: Statuses of unfinished runs, in the order in which a leaderboard lists them.
UNFINISHED = ("running", "interrupted", "failed", "damaged")


@dataclass(frozen=True)
class Run:
    """One run folder.

    Attributes:
        folder: path of the folder.
        name: displayed name, the path relative to a common parent of the compared runs.
        status: "completed", or one of ``UNFINISHED``.
        result: contents of ``result.json``; empty if it can't be read.
        settings: the flattened config, such as "optimizer.lr" to a number; the overrides if the
            config can't be read.
        choices: the choices of config groups, such as "model" to "fusion".
        overridden: keys named on the command line.
        has_config: whether ``settings`` are those of a config, which is complete.
        working_dir: the folder that relative paths refer to; "" if unknown.
        log_scales: by key that the sweep draws from a range, whether the scale is logarithmic.
        history: rows of ``metrics.csv`` in order, without empty cells; only rows at the end of an
            epoch have ``seconds``, not those of a validation within an epoch.
        notes: what could not be read, one sentence each.
    """

    folder: Path
    name: str
    status: str
    result: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Setting] = field(default_factory=dict)
    choices: Mapping[str, Setting] = field(default_factory=dict)
    overridden: frozenset[str] = frozenset()
    has_config: bool = False
    working_dir: str = ""
    log_scales: Mapping[str, bool] = field(default_factory=dict)
    history: Sequence[Mapping[str, float]] = ()
    notes: tuple[str, ...] = ()

    @property
    def completed(self) -> bool:
        return self.status == "completed"

    @property
    def monitor(self) -> str | None:
        """Name of the metric that selects the best epoch."""
        monitor = self.result.get("monitor") or self.settings.get("monitor")
        return printable(monitor) if isinstance(monitor, str) else None

    @property
    def mode(self) -> str:
        """Whether a higher ("max") or a lower ("min") monitored value is better."""
        mode = self.settings.get("monitor_mode")
        return str(mode) if mode in ("max", "min") else usual_mode(self.monitor or "")

    @property
    def seed(self) -> Setting:
        """Seed of the run's random numbers; None if unknown."""
        return self.settings.get("seed", setting(self.result.get("seed")))

    @property
    def error(self) -> str | None:
        """The error that the run failed with, in one line."""
        error = self.result.get("error")
        return None if error is None else printable(" ".join(str(error).split()))

    @property
    def epochs(self) -> int:
        """Number of epochs trained."""
        last_rows = self._epoch_rows()[-1:]
        return int(max(*(row["epoch"] + 1 for row in last_rows), 0, self.number("epochs") or 0))

    @property
    def epochs_planned(self) -> int | None:
        """Maximum number of epochs; None if there is none."""
        planned = self.settings.get("trainer.max_epochs")
        return planned if isinstance(planned, int) and planned > 0 else None

    @property
    def best_epoch(self) -> int | None:
        """The epoch whose weights best.ckpt holds, counted from 1."""
        row = self._best_row()
        return None if row is None else int(row["epoch"]) + 1

    def number(self, name: str) -> float | None:
        """Return a number of ``result.json``; None if it is missing."""
        return number_or_none(self.result.get(name))

    def value(self, metric: str) -> float | None:
        """Return a metric of the best epoch, such as "val/map_macro"; None if unknown.

        Values come from the result, or from the history if the result lacks them, as in a run that
        has not finished.
        """
        if metric == self.monitor and (value := self.number("monitor_value")) is not None:
            return value
        split, _, name = metric.partition("/")
        scores = self.result.get(split)
        value = number_or_none(scores.get(name)) if isinstance(scores, Mapping) else None
        # Other columns of the history, such as seconds and lr, are no metrics of a run.
        row = self._best_row() if split and name else None
        return row.get(metric) if value is None and row is not None else value

    def curve(self, metric: str) -> list[tuple[float, float]]:
        """Return a metric over epochs trained, with fractions for validations within an epoch.

        Fractions are unknown until the first epoch has ended.
        """
        epoch_rows = self._epoch_rows()
        steps_per_epoch = (
            epoch_rows[-1].get("step", 0) / (epoch_rows[-1]["epoch"] + 1) if epoch_rows else 0
        )
        points = []
        for row in self.history:
            if metric in row and "seconds" in row:
                points.append((row["epoch"] + 1, row[metric]))
            elif metric in row and steps_per_epoch and "step" in row:
                points.append((row["step"] / steps_per_epoch, row[metric]))
        return points

    def _epoch_rows(self) -> list[Mapping[str, float]]:
        return [row for row in self.history if "seconds" in row]

    def _best_row(self) -> Mapping[str, float] | None:
        monitor = self.monitor or ""
        rows = [row for row in self.history if monitor in row]
        if not rows:
            return None
        best = min if self.mode == "min" else max
        return best(rows, key=lambda row: row[monitor])


def metric_names(runs: Sequence[Run], split: str = "val") -> list[str]:
    """Metrics of a split that any run has, sorted."""
    names: set[str] = set()
    for run in runs:
        scores = run.result.get(split)
        names |= {f"{split}/{name}" for name in scores} if isinstance(scores, Mapping) else set()
        names |= {name for row in run.history for name in row if name.startswith(f"{split}/")}
    return sorted(names)


def setting(value: Any) -> Setting:
    """Normalise a value for comparison: 1e-3, which YAML reads as text, becomes 0.001."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return printable(value)
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, (int, float)):  # inf, nan and the like have no place on an axis
        return str(value) if number_or_none(value) is None else value
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(format_setting(setting(item)) for item in value)}]"
    return printable(str(value))


def format_setting(value: Setting) -> str:
    """Format a setting, numbers to four digits: 0.001, 1e-05, true, null."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def number_or_none(value: Any) -> float | None:
    """Convert to a float of a size that can be drawn; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if abs(number) < 1e100 else None
