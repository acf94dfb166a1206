"""What a configuration alone tells to be wrong, before PyTorch is imported and a folder is made."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from genre_lightning.errors import SettingError, UserError
from genre_lightning.runs.settings import usual_mode
from genre_lightning.scoring.names import MONITORED

SPLITS = ("train", "val", "test")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _at_least(low: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and value >= low


def _is_automatic(value: Any) -> bool:
    return value == "auto" or type(value) is bool


#: What a setting has to be, if it is there and not null: in words, and what tells.
RULES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "callbacks.early_stopping.patience": ("a whole number from 0 on", _at_least(0)),
    "checkpoint_every_n_steps": ("a whole number from 1 on, or null", _at_least(1)),
    "checkpoint_min_seconds": (
        "a number from 0 on",
        lambda value: _is_number(value) and value >= 0,
    ),
    "batch_size": ("a whole number from 1 on, or null", _at_least(1)),
    "checkpoint_in_background": ("auto, true or false", _is_automatic),
    "data.batch_size": ("a whole number from 1 on, or null", _at_least(1)),
    "data.device_resident": ("auto, true or false", _is_automatic),
    "data.workers": ("a whole number from 1 on, or null", _at_least(1)),
    "model.dropout": (
        "a number from 0 to less than 1",
        lambda value: _is_number(value) and 0 <= value < 1,
    ),
    "model.members": ("a whole number from 1 on", _at_least(1)),
    "monitor_mode": ("max or min", lambda value: value in ("max", "min")),
    "optimizer.lr": ("a number above 0", lambda value: _is_number(value) and value > 0),
    "optimizer.momentum": (
        "a number from 0 to less than 1",
        lambda value: _is_number(value) and 0 <= value < 1,
    ),
    "optimizer.weight_decay": (
        "a number from 0 on",
        lambda value: _is_number(value) and value >= 0,
    ),
    "seed": (
        "a whole number from 0 to 2**32 - 1",
        lambda value: type(value) is int and 0 <= value < 2**32,
    ),
    "split": ("train, val or test", lambda value: value in SPLITS),
    "sweep.n_trials": ("a whole number from 1 on", _at_least(1)),
    "label_sets": ("true or false", lambda value: type(value) is bool),
    "training.stacking": ("true or false", lambda value: type(value) is bool),
    "training.micro_weight": (
        "a number from 0 to 1",
        lambda value: _is_number(value) and 0 <= value <= 1,
    ),
    "trainer.gradient_clip_val": (
        "a number from 0 on, or null",
        lambda value: _is_number(value) and value >= 0,
    ),
    "trainer.max_epochs": (
        "a whole number from 1 on, or -1 for no end",
        lambda value: type(value) is int and (value >= 1 or value == -1),
    ),
    "trainer.max_steps": (
        "a whole number from 1 on, or -1 for no end",
        lambda value: type(value) is int and (value >= 1 or value == -1),
    ),
}
#: Filled in by the run itself.
FILLED_IN = ("num_genres",)


def check_settings(cfg: DictConfig) -> None:
    """Refuse what can't be used, whatever the data are.

    Args:
        cfg: a composed configuration of train.py or evaluate.py, with Hydra's own part or without.

    Raises:
        SettingError: naming the setting, its value and what it has to be.
    """
    plain = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(plain, dict)
    plain.pop("hydra", None)
    for key in _missing(plain):
        if key not in FILLED_IN:
            raise SettingError(f"{key} has to be given: {key}=...")
    for key, (words, holds) in RULES.items():
        value = OmegaConf.select(cfg, key)
        if value is not None and not holds(value):
            close = nearest(str(value), SPLITS) if key == "split" else None
            raise SettingError(f"{key}={value} must be {words}{meant(close)}")
    if "monitor" in plain:
        _check_monitor(cfg.monitor, cfg.monitor_mode)
    if "callbacks" in plain and not (plain["callbacks"] or {}).get("checkpoint"):
        raise SettingError(
            "callbacks.checkpoint can't be left out: nothing would be kept of the training"
        )


def _missing(config: Mapping[Any, Any], prefix: str = "") -> Iterator[str]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _missing(value, f"{prefix}{key}.")
        elif value == "???":
            yield f"{prefix}{key}"


def _check_monitor(monitor: Any, mode: str) -> None:
    if monitor not in MONITORED:
        close = nearest(str(monitor), MONITORED)
        raise SettingError(
            f"monitor={monitor} is no value of the validation{meant(close)}; there is "
            f"{', '.join(MONITORED)}"
        )
    if mode != usual_mode(monitor):
        raise SettingError(
            f"monitor={monitor} with monitor_mode={mode} would keep the worst epoch: add "
            f"monitor_mode={usual_mode(monitor)}"
        )


def check_folder(folder: str | Path) -> None:
    """Refuse a folder for a run that can't be made or written; nothing is made.

    Raises:
        SettingError: naming it and why.
    """
    place = Path(folder).absolute()
    there = next(path for path in (place, *place.parents) if os.path.lexists(path))
    if not there.is_dir():
        reason = f"{there} is no folder"
    elif not os.access(there, os.W_OK | os.X_OK):
        reason = f"{there} is read-only"
    else:
        return
    raise SettingError(f"the run can't be written to {folder}, since {reason}: name another folder")


@contextmanager
def refused_settings(part: str) -> Iterator[None]:
    """Let what a constructor says about its arguments, which are settings, be the user's to fix.

    Args:
        part: of the configuration, where the message does not name the setting.

    Raises:
        SettingError: for what it raised.
    """
    from hydra.errors import InstantiationException

    try:
        yield
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        raise SettingError(f"{part}: {error.__cause__ or error}") from error
    except (TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise SettingError(str(error) if "." in str(error) else f"{part}: {error}") from error


def nearest(name: str, known: Iterable[str], likeness: float = 0.6) -> str | None:
    """The known name that was most likely meant; None where none is like it, from 0 to 1."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=likeness)
    return close[0] if close else None


def meant(name: str | None) -> str:
    """The end of a sentence about a misspelt name."""
    return "" if name is None else f"; did you mean {name}?"
