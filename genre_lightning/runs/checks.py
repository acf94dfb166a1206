"""What a configuration alone tells to be wrong, before PyTorch is imported and a folder is made."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf

from genre_lightning.errors import SettingError, UserError
from genre_lightning.movies.split_names import SPLITS
from genre_lightning.runs.settings import usual_mode
from genre_lightning.scoring.names import MONITORED

Made = TypeVar("Made")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _at_least(low: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and value >= low


def _is_automatic(value: Any) -> bool:
    return value == "auto" or type(value) is bool


_SHARE = ("a number from 0 to 1", lambda value: _is_number(value) and 0 <= value <= 1)

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
    "callbacks.early_stopping.mode": ("max or min", lambda value: value in ("max", "min")),
    "optimizer.lr": ("a number above 0", lambda value: _is_number(value) and value > 0),
    "optimizer.momentum": (
        "a number from 0 to less than 1",
        lambda value: _is_number(value) and 0 <= value < 1,
    ),
    "optimizer.weight_decay": (
        "a number from 0 on",
        lambda value: _is_number(value) and value >= 0,
    ),
    "scheduler.warmup_fraction": _SHARE,
    "scheduler.final_fraction": _SHARE,
    "seed": (
        "a whole number from 0 to 2**32 - 1",
        lambda value: type(value) is int and 0 <= value < 2**32,
    ),
    "split": ("train, val or test", lambda value: value in SPLITS),
    "sweep.n_trials": ("a whole number from 1 on", _at_least(1)),
    "gallery": ("a whole number from 0 on", _at_least(0)),
    "label_sets": ("true or false", lambda value: type(value) is bool),
    "training.stacking": ("true or false", lambda value: type(value) is bool),
    "training.micro_weight": _SHARE,
    "trainer.accumulate_grad_batches": ("a whole number from 1 on", _at_least(1)),
    "trainer.check_val_every_n_epoch": ("a whole number from 1 on, or null", _at_least(1)),
    "trainer.gradient_clip_val": (
        "a number from 0 on, or null",
        lambda value: _is_number(value) and value >= 0,
    ),
    "trainer.precision": (
        "auto, 32-true, 16-mixed or bf16-mixed",
        lambda value: str(value) not in ("64", "64-true", "16-true", "bf16-true"),
    ),
    # It writes no checkpoint, and the run would count as completed.
    "trainer.fast_dev_run": (
        "false; a quick look is trainer.max_epochs=1 +trainer.limit_train_batches=1",
        lambda value: value in (False, 0),
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
#: Arguments of Lightning's trainer that would have no effect here, and what to do instead.
NO_EFFECT = {
    "trainer.callbacks": "callbacks are +callbacks.NAME._target_=CLASS",
    "trainer.enable_checkpointing": "a run always keeps best.ckpt and last.ckpt",
    "trainer.limit_predict_batches": "a training predicts nothing",
    "trainer.limit_test_batches": "the test split is always scored whole",
    "trainer.logger": "loggers are logger=NAME or +logger.NAME._target_=CLASS",
    "trainer.plugins": "a training brings its own",
}
#: Filled in by the run itself.
FILLED_IN = ("num_genres",)
#: Of what no training can do without.
NEEDED = (
    "data", "model", "loss", "optimizer", "scheduler", "trainer", "callbacks", "training",
    "monitor", "monitor_mode", "seed",
)  # fmt: skip
#: What a run is known by, and what to do instead of changing it.
_KEPT = "a run keeps best.ckpt, of its best epoch, and last.ckpt, of its newest"
FIXED: dict[str, tuple[Any, str]] = {
    "monitor": ("${monitor}", "set monitor"),
    "mode": ("${monitor_mode}", "set monitor_mode"),
    "dirpath": ("${hydra:runtime.output_dir}/checkpoints", "set hydra.run.dir"),
    "filename": ("best", _KEPT),
    "save_top_k": (1, _KEPT),
    "save_last": (False, _KEPT),
}


def check_settings(cfg: DictConfig, swept: Container[str] = ()) -> None:
    """Refuse what can't be used, whatever the data are.

    Args:
        cfg: a composed configuration of train.py or evaluate.py, with Hydra's own part or without.
        swept: settings that only the jobs of the sweep will have.

    Raises:
        SettingError: naming the setting, its value and what it has to be.
    """
    plain = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(plain, dict)
    plain.pop("hydra", None)
    if "num_genres" in plain:  # of a training
        for key in NEEDED:
            if plain.get(key) is None:
                raise SettingError(f"{key} can't be left out of a training")
    for key in _missing(plain):
        if key not in FILLED_IN and key not in swept:
            raise SettingError(f"{key} has to be given: {key}=...")
    for key, (words, holds) in RULES.items():
        value = OmegaConf.select(cfg, key)
        if value is not None and not holds(value):
            close = closest_name(str(value), SPLITS) if key == "split" else None
            raise SettingError(f"{key}={value} must be {words}{did_you_mean(close)}")
    for key, instead in NO_EFFECT.items():
        if OmegaConf.select(cfg, key) is not None:
            raise SettingError(f"{key} can't be set: {instead}")
    if "monitor" in plain:
        _check_monitor(cfg.monitor, cfg.monitor_mode, "")
    for group in ("callbacks", "logger"):
        _check_classes(group, plain.get(group) or {})
    if "callbacks" in plain:
        _check_callbacks(cfg, plain["callbacks"])


def _check_classes(group: str, parts: Mapping[str, Any]) -> None:
    for name, part in parts.items():
        if part and not (isinstance(part, Mapping) and part.get("_target_")):
            raise SettingError(
                f"{group}.{name} must have a _target_, the class that it is made from, or be null"
            )


def _check_callbacks(cfg: DictConfig, callbacks: Mapping[str, Any]) -> None:
    checkpoint = callbacks.get("checkpoint")
    if not checkpoint:
        raise SettingError(
            "callbacks.checkpoint can't be left out: nothing would be kept of the training"
        )
    for key, (fixed, instead) in FIXED.items():
        value = checkpoint.get(key)
        if value != fixed or type(value) is not type(fixed):
            raise SettingError(f"callbacks.checkpoint.{key}={value} can't be set: {instead}")
    if callbacks.get("early_stopping"):
        stopping = cfg.callbacks.early_stopping
        _check_monitor(stopping.monitor, stopping.mode, "callbacks.early_stopping.")


def _missing(config: Mapping[Any, Any], prefix: str = "") -> Iterator[str]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _missing(value, f"{prefix}{key}.")
        elif value == "???":
            yield f"{prefix}{key}"


def _check_monitor(monitor: Any, mode: str, of: str) -> None:
    if monitor not in MONITORED:
        close = closest_name(str(monitor), MONITORED)
        raise SettingError(
            f"{of}monitor={monitor} is no value of the validation{did_you_mean(close)}; there is "
            f"{', '.join(MONITORED)}"
        )
    if mode != usual_mode(monitor):
        key, does = (f"{of}mode", "stop at") if of else ("monitor_mode", "keep")
        raise SettingError(
            f"{of}monitor={monitor} with {key}={mode} would {does} the worst epoch: add "
            f"{key}={usual_mode(monitor)}"
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
        reason = " ".join(str(error.__cause__ or error).split())
        raise SettingError(f"{part}: {reason}") from error
    except (TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise SettingError(str(error) if "." in str(error) else f"{part}: {error}") from error


def closest_name(name: str, known: Iterable[str], likeness: float = 0.6) -> str | None:
    """The known name that was most likely meant; None where none is like it, from 0 to 1."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=likeness)
    return close[0] if close else None


def did_you_mean(name: str | None) -> str:
    """The end of a sentence about a misspelt name."""
    return "" if name is None else f"; did you mean {name}?"


def make_parts(group: str, choices: Mapping[str, Any], kind: type[Made]) -> list[Made]:
    """The callbacks, or the loggers, that a group of the configuration names.

    Args:
        group: its name, for messages.
        choices: by name, what each is made from; None for one that is left out.
        kind: of Lightning, that each has to be.

    Raises:
        SettingError: a class is not there, does not take these arguments, or is of another kind.
    """
    from hydra.utils import instantiate

    made = []
    for name, choice in choices.items():
        if not choice:
            continue
        with refused_settings(f"{group}.{name}"):
            part = instantiate(choice)
        if not isinstance(part, kind):
            raise SettingError(
                f"{group}.{name}: {choice['_target_']} makes a {type(part).__name__}, which is no "
                f"{kind.__name__} of Lightning"
            )
        made.append(part)
    return made
