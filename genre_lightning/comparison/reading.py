"""Run folders as they are found: finished, failed, still running, or damaged. Nothing is written.

A folder may be a stranger's: what can't be read becomes a note that names the file.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from genre_lightning.errors import UserError
from genre_lightning.runs.result import flat_settings, is_running, read_result

#: A setting: what YAML knows, lists and the like as text.
Setting = bool | int | float | str | None
#: Their files are not those of a run, and some loggers' are called the same.
NOT_SEARCHED = ("checkpoints", "wandb")
#: A run's folder holds one of these, or at least its history.
MARKS = ("result.json", ".hydra/overrides.yaml")
HISTORY = "metrics.csv"
#: Far more than a config has.
MOST_BYTES = 4 * 2**20
#: The order in which they are told after the finished ones.
UNFINISHED = ("running", "interrupted", "failed", "damaged")


@dataclass(frozen=True)
class Run:
    """One run folder.

    Attributes:
        folder: where it is.
        name: its path below what was asked for.
        status: "completed", or one of ``UNFINISHED``.
        result: of ``result.json``; empty where there is none to read.
        settings: the config, flattened: "optimizer.lr" to a number; of a run without a readable
            config, its overrides.
        choices: the config groups' choices, "model" to "fusion".
        overridden: keys named on its command line.
        has_config: the settings are all settings.
        history: rows of ``metrics.csv`` by epoch, numbers that are not there left out.
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
    history: Sequence[Mapping[str, float]] = ()
    notes: tuple[str, ...] = ()

    @property
    def completed(self) -> bool:
        return self.status == "completed"

    @property
    def monitor(self) -> str | None:
        """Name of the value that told its best epoch."""
        monitor = self.result.get("monitor") or self.settings.get("monitor")
        return printable(monitor) if isinstance(monitor, str) else None

    @property
    def mode(self) -> str:
        """Whether a large ("max") or a small ("min") monitored value is good."""
        mode = self.settings.get("monitor_mode")
        return str(mode) if mode in ("max", "min") else usual_mode(self.monitor or "")

    @property
    def seed(self) -> Setting:
        """Of its random numbers; None where it is not told."""
        return self.settings.get("seed", _setting(self.result.get("seed")))

    @property
    def error(self) -> str | None:
        """What it failed of, in one line."""
        error = self.result.get("error")
        return None if error is None else printable(" ".join(str(error).split()))

    @property
    def epochs(self) -> int:
        """How many it has trained."""
        last = self.history[-1]["epoch"] + 1 if self.history else 0
        return int(max(last, self.number("epochs") or 0))

    @property
    def epochs_planned(self) -> int | None:
        """How many it was to train at most."""
        planned = self.settings.get("trainer.max_epochs")
        return planned if isinstance(planned, int) and planned > 0 else None

    @property
    def best_epoch(self) -> int | None:
        """The epoch whose weights best.ckpt holds, counted from 1."""
        row = self._best_row()
        return None if row is None else int(row["epoch"]) + 1

    def number(self, name: str) -> float | None:
        """A number of ``result.json``; None where there is none."""
        return _number(self.result.get(name))

    def value(self, metric: str) -> float | None:
        """A metric of the best epoch: "val/map_macro"; None where it is not known.

        Of a finished run as its result says, of any other as the history says so far.
        """
        if metric == self.monitor and (value := self.number("monitor_value")) is not None:
            return value
        split, _, name = metric.partition("/")
        scores = self.result.get(split)
        value = _number(scores.get(name)) if isinstance(scores, Mapping) else None
        row = self._best_row()
        return row.get(metric) if value is None and row is not None else value

    def _best_row(self) -> Mapping[str, float] | None:
        monitor = self.monitor or ""
        rows = [row for row in self.history if monitor in row]
        if not rows:
            return None
        pick = min if self.mode == "min" else max
        return pick(rows, key=lambda row: row[monitor])


def printable(text: str) -> str:
    """Text whose control characters, which a terminal obeys, are escaped as in Python."""
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )


def usual_mode(metric: str) -> str:
    """Which way is better: "min" for losses, "max" for scores."""
    return "min" if metric.endswith("loss") else "max"


def metric_names(runs: Sequence[Run]) -> list[str]:
    """Metrics of the validation split that any run knows, sorted."""
    names: set[str] = set()
    for run in runs:
        scores = run.result.get("val")
        names |= {f"val/{name}" for name in scores} if isinstance(scores, Mapping) else set()
        names |= {name for row in run.history for name in row if name.startswith("val/")}
    return sorted(names)


def find_runs(folders: Sequence[Path]) -> list[Run]:
    """Every run in these folders, once each, in the order of their paths.

    Args:
        folders: run folders, a sweep's folder, or any tree of them. A run's folder holds
            one of ``MARKS``, or ``HISTORY`` where it is not below another run's.

    Raises:
        UserError: a folder does not exist, or there is no run in any.
    """
    found: dict[Path, None] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder} is no folder")
        found |= dict.fromkeys(_run_folders(folder.resolve()))
    paths = sorted(found)
    base = Path(os.path.commonpath({path.parent for path in paths})) if paths else Path()
    names = [printable(path.relative_to(base).as_posix()) for path in paths]
    runs = [run for path, name in zip(paths, names, strict=True) if (run := read_run(path, name))]
    if not runs:
        raise UserError(
            f"no run in {', '.join(map(str, folders))}: a run's folder holds "
            f"{', '.join(MARKS)} or {HISTORY}"
        )
    return runs


def _run_folders(tree: Path) -> Iterator[Path]:
    within: set[Path] = set()  # runs, whose loggers may write a metrics.csv further down
    for name, folders, _ in os.walk(tree):
        folder = Path(name)
        folders[:] = sorted(
            each for each in folders if not each.startswith(".") and each not in NOT_SEARCHED
        )
        if is_run_folder(folder) and (
            within.isdisjoint(folder.parents) or any((folder / mark).exists() for mark in MARKS)
        ):
            within.add(folder)
            yield folder


def is_run_folder(folder: Path) -> bool:
    """Whether a folder holds what a run leaves behind."""
    return any((folder / mark).exists() for mark in (*MARKS, HISTORY))


def read_run(folder: Path, name: str) -> Run | None:
    """Read one run folder; None for one of another command, such as evaluate.py."""
    notes: list[str] = []
    result: Mapping[str, Any] | None = None
    try:
        result = read_result(folder)
        status = "interrupted" if result is None else str(result["status"])
    except (UserError, RecursionError) as error:
        notes.append(
            str(error) if isinstance(error, UserError) else f"{folder / MARKS[0]}: {error}"
        )
        status = "damaged"
    config = _read_yaml(folder / ".hydra" / "config.yaml", _settings, notes)
    history = _read_history(folder / HISTORY, notes)
    if (
        result is None
        and status != "damaged"
        and not history
        and config
        and "monitor" not in config
    ):
        return None
    pairs = _read_yaml(folder / ".hydra" / "overrides.yaml", _override_pairs, notes)
    choices = _read_yaml(folder / ".hydra" / "hydra.yaml", _choices, notes)
    if pairs is None:
        given = (result or {}).get("overrides")
        pairs = _override_pairs(given) if isinstance(given, list) else {}
    return Run(
        folder=folder,
        name=name,
        status="running" if is_running(folder) else status,
        result=result or {},
        settings=config or pairs,
        choices=choices or {},
        overridden=frozenset(pairs),
        has_config=bool(config),
        history=history,
        notes=tuple(map(printable, notes)),
    )


def _read_yaml(
    path: Path, convert: Callable[[Any], dict[str, Setting]], notes: list[str]
) -> dict[str, Setting] | None:
    """What a config says; None where there is none, or none to be read, which is noted."""
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        notes.append(f"{path} can't be read: {error}")
        return None
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        if len(text) > MOST_BYTES:
            raise ValueError(f"it has more than {MOST_BYTES:,} characters")
        # Hydra writes none, and aliases of aliases make a small file a huge tree
        if "*" in text and any(isinstance(e, yaml.AliasEvent) for e in yaml.parse(text, loader)):
            raise ValueError("it has YAML aliases")
        return convert(yaml.load(text, loader))
    except (
        yaml.YAMLError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
        RecursionError,
    ) as error:
        reason = " ".join(str(error).split())
        notes.append(f"{path} is no config of a run: {reason}")
        return None


def _settings(config: Any) -> dict[str, Setting]:
    return {printable(name): _setting(value) for name, value in flat_settings(config).items()}


def _choices(hydra: Any) -> dict[str, Setting]:
    return _settings(hydra["hydra"]["runtime"]["choices"])


def _setting(value: Any) -> Setting:
    """A value that can be compared: 1e-3 and 0.001 are one, whatever a YAML reader made of them."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return printable(value)
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(shown_setting(_setting(each)) for each in value)}]"
    return printable(str(value))


def shown_setting(value: Setting) -> str:
    """A setting as people write it, numbers to four digits: 0.001, 1e-05, true, null."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _override_pairs(overrides: Any) -> dict[str, Setting]:
    if not isinstance(overrides, list):
        raise TypeError(f"a list is expected, not {type(overrides).__name__}")
    pairs = {}
    for override in overrides:
        key, equals, value = str(override).partition("=")
        if equals:
            try:
                parsed = yaml.safe_load(value)
            except yaml.YAMLError:
                parsed = value
            pairs[printable(key.lstrip("+~"))] = _setting(parsed)
    return pairs


def _read_history(path: Path, notes: list[str]) -> list[dict[str, float]]:
    """Rows by epoch. A last row that is being written, and empty cells, are passed over."""
    rows: dict[float, dict[str, float]] = {}
    wrong: list[int] = []
    number = 0
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            for number, cells in enumerate(reader, start=2):
                row = {}
                for name, text in cells.items():
                    value = _number(text)
                    if name is not None and value is not None:
                        row[printable(name)] = value
                if None in cells or None in cells.values() or not _is_count(row.get("epoch")):
                    wrong.append(number)
                else:
                    rows[row["epoch"]] = row
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        notes.append(f"{path} can't be read beyond row {max(number, 1)}: {error}")
    if wrong and wrong[-1] == number:
        wrong.pop()
    if wrong:
        notes.append(f"{path}: rows that are no epoch were left out, the first is row {wrong[0]}")
    return [rows[epoch] for epoch in sorted(rows)]


def _is_count(value: float | None) -> bool:
    return value is not None and value >= 0 and value.is_integer()


def _number(value: Any) -> float | None:
    """As a float of a size that can be drawn; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if abs(number) < 1e100 else None
