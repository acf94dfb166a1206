"""Reading run folders, whether finished, failed, still running or damaged. Nothing is written.

A folder can be untrusted: a file that can't be read becomes a note that names it.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from genre_lightning.comparison.run import Run, Setting, number_or_none, setting
from genre_lightning.errors import UserError
from genre_lightning.runs.ckpt_path import CONFIG_FOLDER
from genre_lightning.runs.lock import is_running
from genre_lightning.runs.result import read_result
from genre_lightning.runs.settings import changes_no_result, flat_settings
from genre_lightning.wording import printable

#: Folders to skip: they hold no runs, but files of loggers with the same names as a run's.
SKIPPED_FOLDERS = ("checkpoints", "wandb")
#: A run's folder holds one of these, or at least its history.
RUN_FILES = ("result.json", f"{CONFIG_FOLDER}/overrides.yaml")
HISTORY_FILE = "metrics.csv"
#: Prefix of config groups in Hydra's record of a run.
CHOICE_PREFIX = "choices."
#: A sweep's file, in the parent folder of its runs.
SWEEP_FILE = "sweep.json"
#: The key of conf/ask.yaml that names the language model.
LANGUAGE_MODEL_KEY = "model.name"
#: Far more than a config has.
MAX_CONFIG_BYTES = 4 * 2**20
#: A reference to another setting: ${optimizer.lr}, ${oc.select:model.recipe.folds,1}.
REFERENCE = re.compile(r"\$\{(?:(oc\.select):)?\s*([\w./-]+)\s*(?:,([^${}]*))?\}")
#: Settings that callbacks refer to: if runs differ in one, each callback would add a column.
MONITOR_KEYS = ("monitor", "monitor_mode")
#: Longest chain of references to follow; a longer one is taken for a cycle.
MAX_REFERENCES = 8


def find_runs(folders: Sequence[Path]) -> list[Run]:
    """Return every run in these folders once, sorted by path.

    Args:
        folders: run folders, a sweep's folder, or any tree of them. A run's folder holds one of
            ``RUN_FILES``, or ``HISTORY_FILE`` if it is not below another run's folder. Files among
            them are skipped: a shell's ``sweep/*`` includes the leaderboard.

    Raises:
        UserError: a folder does not exist, or there is no run in any of them.
    """
    run_folders: dict[Path, None] = {}
    for folder in folders:
        if not folder.is_dir():
            if folder.is_file() and any(other.is_dir() for other in folders):
                continue
            raise UserError(f"{folder} is not a folder")
        run_folders |= dict.fromkeys(_run_folders(folder.resolve()))
    paths = sorted(run_folders)
    base = Path(os.path.commonpath({path.parent for path in paths})) if paths else Path()
    names = [printable(path.relative_to(base).as_posix()) for path in paths]
    runs = [run for path, name in zip(paths, names, strict=True) if (run := read_run(path, name))]
    if not runs:
        searched = ", ".join(map(str, folders))
        if paths:
            raise UserError(
                f"no run in {searched}, only output of evaluate.py, whose numbers are in "
                "metrics.json and report.html. Name the folders of the runs that were evaluated; "
                "--column test/map_macro shows their scores on the test split"
            )
        raise UserError(
            f"no run in {searched}: a run's folder holds {', '.join(RUN_FILES)} or {HISTORY_FILE}"
        )
    return runs


def _run_folders(tree: Path) -> Iterator[Path]:
    run_folders: set[Path] = set()  # runs, whose loggers can write a metrics.csv further down
    for path, folders, _ in os.walk(tree):
        folder = Path(path)
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and name not in SKIPPED_FOLDERS
        )
        if is_run_folder(folder) and (
            run_folders.isdisjoint(folder.parents)
            or any((folder / file).exists() for file in RUN_FILES)
        ):
            run_folders.add(folder)
            yield folder


def is_run_folder(folder: Path) -> bool:
    """Whether a folder holds a file that a run writes."""
    return any((folder / name).exists() for name in (*RUN_FILES, HISTORY_FILE))


def read_run(folder: Path, name: str) -> Run | None:
    """Read a run folder; None if another command, such as evaluate.py, wrote it."""
    notes: list[str] = []
    result, status = _read_result(folder, notes)
    config = _read_yaml(folder / CONFIG_FOLDER / "config.yaml", _settings, notes)
    history = _read_history(folder / HISTORY_FILE, notes)
    if (
        status == "interrupted"
        and not result
        and not history
        and config
        and "monitor" not in config
    ):
        return None
    overrides = _read_yaml(folder / CONFIG_FOLDER / "overrides.yaml", _override_pairs, notes)
    runtime = _read_yaml(folder / CONFIG_FOLDER / "hydra.yaml", _runtime, notes) or {}
    choices = {
        name.removeprefix(CHOICE_PREFIX): value
        for name, value in runtime.items()
        if name.startswith(CHOICE_PREFIX)
    }
    if overrides is None:
        recorded = result.get("overrides")
        overrides = _override_pairs(recorded) if isinstance(recorded, list) else {}
    # The name of a language model is shown as its choice of conf/model.
    language_model = {**overrides, **(config or {})}.get(LANGUAGE_MODEL_KEY)
    if language_model is not None:
        choices = {"model": None, **choices} | {"model": language_model}
        for settings in (config, overrides):
            (settings or {}).pop(LANGUAGE_MODEL_KEY, None)
    return Run(
        folder=folder,
        name=name,
        status="running" if is_running(folder) else status,
        result=result,
        settings=config or overrides,
        choices=choices | _branches(config or {}),
        overridden=frozenset(overrides),
        has_config=bool(config),
        history=history,
        working_dir=str(runtime.get("cwd", "")),
        log_scales=_log_scales(folder.parent),
        notes=tuple(map(printable, notes)),
    )


def _read_result(folder: Path, notes: list[str]) -> tuple[Mapping[str, Any], str]:
    """Read result.json, empty without one, and the run's status; damage adds a note."""
    try:
        result = read_result(folder)
    except UserError as error:
        notes.append(str(error))
    except RecursionError as error:
        notes.append(f"{folder / RUN_FILES[0]}: {error}")
    else:
        return ({}, "interrupted") if result is None else (result, str(result["status"]))
    return {}, "damaged"


def _read_yaml(
    path: Path, convert: Callable[[Any], dict[str, Setting]], notes: list[str]
) -> dict[str, Setting] | None:
    """Read a config; None if it is missing, or if it can't be read, which adds a note."""
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        notes.append(f"{path} can't be read: {error}")
        return None
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        if len(text) > MAX_CONFIG_BYTES:
            raise ValueError(f"it has more than {MAX_CONFIG_BYTES:,} characters")
        # Hydra writes no aliases, and nested ones can expand a small file into a huge tree
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
        notes.append(f"{path} is not the config of a run: {reason}")
        return None


def _settings(config: Any) -> dict[str, Setting]:
    """Flatten a config and resolve references to other settings; leave out those it can't resolve.

    Without OmegaConf, which would put environment variables into a page if a config refers to them.
    """
    flat = flat_settings(config)
    resolved_settings = {}
    for name, value in flat.items():
        is_resolved, value = _resolve(value, flat)
        if is_resolved:
            resolved_settings[printable(name)] = setting(value)
    return resolved_settings


def _resolve(value: Any, flat: Mapping[str, Any]) -> tuple[bool, Any]:
    """Resolve a value that can be a reference; return whether it is known, and the value.

    References to settings that change no result, such as a cache folder, and to what the run
    monitors count as unknown.
    """
    for _ in range(MAX_REFERENCES):
        if not isinstance(value, str) or "${" not in value:
            return True, value
        match = REFERENCE.fullmatch(value)
        if match is None:
            return False, None
        is_select, name, default = match.groups()
        if name in MONITOR_KEYS or changes_no_result(name):
            return False, None
        if name in flat:
            value = flat[name]
        elif is_select:
            value = None if default is None else yaml.safe_load(default)
        else:
            return False, None
    return False, None


def _runtime(hydra: Any) -> dict[str, Setting]:
    return _settings(hydra["hydra"]["runtime"])


def _log_scales(sweep: Path) -> dict[str, bool]:
    """By key that a sweep draws from a range, whether the scale is logarithmic.

    Empty if the folder is not a sweep's or can't be read, since it only sets the scale of an axis.
    """
    path = sweep / SWEEP_FILE
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            return {}
        scales = json.loads(path.read_text("utf-8"))["log_scales"]
        return {printable(str(key)): bool(logs) for key, logs in scales.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}


def _branches(settings: Mapping[str, Setting]) -> dict[str, Setting]:
    """The list of branches as a choice, since Hydra records none for a group that takes lists."""
    prefix = "model.branches."
    names = dict.fromkeys(
        name.removeprefix(prefix).partition(".")[0] for name in settings if name.startswith(prefix)
    )
    return {"model/branch": " + ".join(names)} if names else {}


def _override_pairs(overrides: Any) -> dict[str, Setting]:
    if not isinstance(overrides, list):
        raise TypeError(f"it must be a list, not {type(overrides).__name__}")
    pairs = {}
    for override in overrides:
        key, separator, value = str(override).partition("=")
        if separator:
            try:
                parsed = yaml.safe_load(value)
            except yaml.YAMLError:
                parsed = value
            pairs[printable(key.lstrip("+~"))] = setting(parsed)
    return pairs


def _read_history(path: Path, notes: list[str]) -> list[dict[str, float]]:
    """Read the rows, in order. Empty cells and an incomplete last row are skipped."""
    rows: dict[tuple[float, bool, float], dict[str, float]] = {}
    invalid_rows: list[int] = []
    number = 0
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            for number, cells in enumerate(reader, start=2):
                row = {}
                for name, cell in cells.items():
                    value = number_or_none(cell)
                    if name is not None and value is not None:
                        row[printable(name)] = value
                if None in cells or None in cells.values() or not _is_count(row.get("epoch")):
                    invalid_rows.append(number)
                else:
                    rows[row["epoch"], "seconds" in row, row.get("step", 0.0)] = row
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        notes.append(f"{path} can't be read beyond row {max(number, 1)}: {error}")
    if invalid_rows and invalid_rows[-1] == number:
        invalid_rows.pop()
    if invalid_rows:
        notes.append(
            f"{path}: rows without an epoch were skipped, the first is row {invalid_rows[0]}"
        )
    return [rows[key] for key in sorted(rows)]


def _is_count(value: float | None) -> bool:
    return value is not None and value >= 0 and value.is_integer()
