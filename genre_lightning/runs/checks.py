"""Checks of a configuration, before PyTorch is imported and a folder is created."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Collection, Container, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError

from genre_lightning.errors import SettingError
from genre_lightning.movies.split_names import SPLITS
from genre_lightning.runs.settings import PATHS, flat_settings, usual_mode
from genre_lightning.scoring.names import MONITORED
from genre_lightning.wording import closest_name, did_you_mean


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _at_least(low: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and value >= low


#: What a setting must be, in words, and the check.
Rule: TypeAlias = tuple[str, Callable[[Any], bool]]

_COUNT: Rule = ("a whole number of at least 1", _at_least(1))
_COUNT_OR_NULL: Rule = ("a whole number of at least 1, or null", _at_least(1))
_COUNT_FROM_0: Rule = ("a whole number of at least 0", _at_least(0))
_COUNT_OR_NO_END: Rule = (
    "a whole number of at least 1, or -1 for no limit",
    lambda value: type(value) is int and (value >= 1 or value == -1),
)
_ABOVE_0: Rule = ("a number above 0", lambda value: _is_number(value) and value > 0)
_COUNT_FROM_0_OR_NULL: Rule = ("a whole number of at least 0, or null", _at_least(0))
_NOT_NEGATIVE: Rule = ("a number of at least 0", lambda value: _is_number(value) and value >= 0)
_SHARE: Rule = ("a number from 0 to 1", lambda value: _is_number(value) and 0 <= value <= 1)
_BELOW_1: Rule = (
    "a number from 0 to less than 1",
    lambda value: _is_number(value) and 0 <= value < 1,
)
_FLAG: Rule = ("true or false", lambda value: type(value) is bool)
_FLAG_OR_AUTO: Rule = (
    "auto, true or false",
    lambda value: value == "auto" or type(value) is bool,
)
_MODE: Rule = ("max or min", lambda value: value in ("max", "min"))

#: Rules by setting; settings that are missing or null are not checked.
RULES: dict[str, Rule] = {
    "batch_size": _COUNT_OR_NULL,
    "callbacks.early_stopping.mode": _MODE,
    "callbacks.early_stopping.patience": _COUNT_FROM_0,
    "checkpoint_every_n_steps": _COUNT_OR_NULL,
    "checkpoint_in_background": _FLAG_OR_AUTO,
    "checkpoint_min_seconds": _NOT_NEGATIVE,
    "data.batch_size": _COUNT_OR_NULL,
    "data.device_resident": _FLAG_OR_AUTO,
    "data.workers": _COUNT_OR_NULL,
    "gallery": _COUNT_FROM_0,
    "label_sets": _FLAG,
    "limit": _COUNT_OR_NULL,
    "model.dropout": _BELOW_1,
    "model.members": _COUNT,
    "monitor_mode": _MODE,
    "optimizer.lr": _ABOVE_0,
    "optimizer.momentum": _BELOW_1,
    "optimizer.weight_decay": _NOT_NEGATIVE,
    "scheduler.final_fraction": _SHARE,
    "scheduler.warmup_fraction": _SHARE,
    "seed": (
        "a whole number from 0 to 2**32 - 1",
        lambda value: type(value) is int and 0 <= value < 2**32,
    ),
    "server.concurrency": _COUNT,
    "server.give_up_after": _COUNT_OR_NULL,
    "server.longest_wait": _ABOVE_0,
    "server.max_requests": _COUNT_OR_NULL,
    "server.max_tokens": _COUNT_OR_NULL,
    "server.requests_per_minute": _COUNT_OR_NULL,
    "server.retries": _COUNT_FROM_0,
    "server.timeout": _ABOVE_0,
    "server.tokens_per_minute": _COUNT_OR_NULL,
    "split": ("train, val or test", lambda value: value in SPLITS),
    "sweep.n_trials": _COUNT,
    "train_limit": _COUNT_FROM_0_OR_NULL,
    "trainer.accumulate_grad_batches": _COUNT,
    "trainer.check_val_every_n_epoch": _COUNT_OR_NULL,
    # A fast_dev_run writes no checkpoint, and the run would count as completed.
    "trainer.fast_dev_run": (
        "false; a quick look is trainer.max_epochs=1 +trainer.limit_train_batches=1",
        lambda value: value in (False, 0),
    ),
    "trainer.gradient_clip_val": (f"{_NOT_NEGATIVE[0]}, or null", _NOT_NEGATIVE[1]),
    # Without validation there is no best checkpoint.
    "trainer.limit_train_batches": _ABOVE_0,
    "trainer.limit_val_batches": _ABOVE_0,
    "trainer.max_epochs": _COUNT_OR_NO_END,
    "trainer.max_steps": _COUNT_OR_NO_END,
    "trainer.precision": (
        "auto, 32-true, 16-mixed or bf16-mixed",
        lambda value: str(value) not in ("64", "64-true", "16-true", "bf16-true"),
    ),
    "trainer.val_check_interval": ("above 0", lambda value: value not in (0, False)),
    "training.micro_weight": _SHARE,
    "training.stacking": _FLAG,
    "val_limit": _COUNT_OR_NULL,
}
#: Settings that would have no effect here, and what to do instead.
NO_EFFECT = {
    "num_genres": "it is the number of genres in the data",
    "trainer.callbacks": "callbacks are +callbacks.NAME._target_=CLASS",
    "trainer.enable_checkpointing": "a run always keeps best.ckpt and last.ckpt",
    "trainer.limit_predict_batches": "a training predicts nothing",
    "trainer.limit_test_batches": "the test split is always scored whole",
    "trainer.logger": "loggers are logger=NAME or +logger.NAME._target_=CLASS",
    "trainer.plugins": "a training brings its own",
}
#: Callbacks of Lightning that fail without a logger.
NEED_LOGGER = ("DeviceStatsMonitor", "LearningRateMonitor")
#: Callbacks of Lightning that don't work here, and what to do instead.
UNSUPPORTED_CALLBACKS = {
    "LearningRateFinder": "has no learning rate to set here: find one by a sweep, "
    "-m optimizer.lr=1e-4,1e-3,1e-2 or sweep=optuna",
    "BatchSizeFinder": "changes the batch size of a run and not its settings: set data.batch_size",
    "StochasticWeightAveraging": "averages weights in an extra epoch, without validating them: use "
    "pytorch_lightning.callbacks.EMAWeightAveraging, whose averages are validated and saved",
}
#: Filled in by the run itself.
SET_BY_RUN = ("num_genres",)
#: Settings that every training needs.
REQUIRED = (
    "data", "model", "loss", "optimizer", "scheduler", "trainer", "callbacks", "training",
    "monitor", "monitor_mode", "seed",
)  # fmt: skip
#: What a training reads at the top of its configuration, and in its section model.
READ = {
    "": (
        *REQUIRED, "checkpoint_every_n_steps", "checkpoint_in_background", "checkpoint_min_seconds",
        "ckpt_path", "hydra", "label_sets", "logger", "num_genres", "start_from_priors", "sweep",
    ),
    "model.": ("branches", "dropout", "members", "recipe"),
}  # fmt: skip
#: Fixed settings of callbacks.checkpoint, on which other code relies, and what to do instead.
_KEPT = "a run keeps best.ckpt, of its best epoch, and last.ckpt, of its newest"
FIXED: dict[str, tuple[Any, str]] = {
    "monitor": ("${monitor}", "set monitor"),
    "mode": ("${monitor_mode}", "set monitor_mode"),
    "dirpath": ("${hydra:runtime.output_dir}/checkpoints", "set hydra.run.dir"),
    "filename": ("best", _KEPT),
    "save_top_k": (1, _KEPT),
    "save_last": (False, _KEPT),
}


def check_settings(cfg: DictConfig, swept: Collection[str] = ()) -> None:
    """Refuse settings that are invalid for any dataset.

    Args:
        cfg: a composed configuration, with or without Hydra's own section.
        swept: settings that only the jobs of the sweep will have.

    Raises:
        SettingError: a setting is invalid; the message names it, its value and what it must be.
    """
    plain = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(plain, dict)
    hydra: Any = plain.pop("hydra", None)
    if hydra is None and HydraConfig.initialized():  # Hydra keeps it apart from a job's settings
        hydra = OmegaConf.to_container(HydraConfig.get(), resolve=False)
    if "num_genres" in plain:  # the configuration of a training
        for key in REQUIRED:
            if plain.get(key) is None:
                raise SettingError(f"{key} can't be left out of a training")
    for key in _missing(plain):
        if key not in SET_BY_RUN and key not in swept:
            raise SettingError(f"{key} has to be given: {key}=...")
    for key, (requirement, is_valid) in RULES.items():
        try:
            value = OmegaConf.select(cfg, key)
        except InterpolationResolutionError as error:
            if swept:  # perhaps with what the value refers to
                continue
            raise SettingError(f"{key}: {str(error).splitlines()[0]}") from error
        if value is not None and not is_valid(value):
            close = closest_name(str(value), SPLITS) if key == "split" else None
            raise SettingError(f"{key}={value} must be {requirement}{did_you_mean(close)}")
    for key, instead in NO_EFFECT.items():
        if key in swept or OmegaConf.select(cfg, key) is not None:
            raise SettingError(f"{key} can't be set: {instead}")
    if "num_genres" in plain:
        _check_all_read(plain, hydra, swept)
    if "num_genres" in plain and not swept:  # each job of a sweep is checked by itself
        _check_validates(cfg.trainer)
    if "monitor" in plain:
        _check_monitor(cfg.monitor, cfg.monitor_mode, "")
    for group in ("callbacks", "logger"):
        _check_classes(group, plain.get(group) or {})
    if "callbacks" in plain:
        _check_callbacks(cfg, plain["callbacks"])


def _check_all_read(
    plain: Mapping[Any, Any], hydra: Mapping[Any, Any] | None, swept: Collection[str]
) -> None:
    """Refuse a setting that nothing reads, neither the program nor an interpolation.

    Only at the top and in the section model: the arguments of a class are checked by the class.

    Args:
        plain: the configuration without Hydra's section, unresolved.
        hydra: Hydra's section, unresolved; None if there is none.
        swept: see :func:`check_settings`.
    """
    settings = flat_settings(plain)
    for key in (*settings, *swept):
        section = "model." if key.startswith("model.") else ""
        last = key.removeprefix(section).partition(".")[0]
        name = f"{section}{last}"
        if last in READ[section] or _is_interpolated(name, {**plain, "hydra": hydra}):
            continue
        if key not in settings and _is_group(key, hydra):
            continue  # each job is checked by itself
        if name == "experiment":
            raise SettingError(
                "an experiment's file must begin with the line # @package _global_: without it, "
                f"nothing reads its settings, such as {key}"
            )
        same_ending = [known for known in settings if known.endswith(f".{last}") and known != key]
        nearest = min(same_ending, key=lambda known: known.count("."), default=None)
        if nearest is None and (closest := closest_name(last, READ[section])):
            nearest = f"{section}{closest}"
        raise SettingError(
            f"nothing reads the setting {name}{did_you_mean(nearest) or ': leave it out'}"
        )


def _is_group(key: str, hydra: Mapping[Any, Any] | None) -> bool:
    """Whether a swept key chooses files of the configuration."""
    loader = GlobalHydra.instance().config_loader()
    searchpath = [] if hydra is None else hydra["overrides"]["hydra"]
    return bool(loader.get_group_options(key.partition("@")[0], None, "train", searchpath))


def _is_interpolated(name: str, config: Mapping[Any, Any]) -> bool:
    """Whether a value of the configuration seems to contain ``${name}``, also relative to it."""
    last = re.escape(name.rpartition(".")[2])
    reference = re.compile(rf"(?<![\w.]){re.escape(name)}\b|\{{\.+{last}\b")
    texts = map(str, flat_settings(config).values())
    return any("${" in text and reference.search(text) for text in texts)


def _check_validates(trainer: DictConfig) -> None:
    every, epochs = trainer.get("check_val_every_n_epoch") or 1, trainer.get("max_epochs") or -1
    if 0 < epochs < every:
        raise SettingError(
            f"trainer.check_val_every_n_epoch={every} with trainer.max_epochs={epochs} never "
            "validates, so there would be no best checkpoint: lower it, or train for more epochs"
        )


def _check_classes(group: str, parts: Mapping[str, Any]) -> None:
    for name, part in parts.items():
        if part and not (isinstance(part, Mapping) and part.get("_target_")):
            raise SettingError(
                f"{group}.{name} must have a _target_, the class that it is made from, or be null"
            )


def _check_callbacks(cfg: DictConfig, callbacks: Mapping[str, Any]) -> None:
    has_logger = any((cfg.get("logger") or {}).values())
    for name, part in callbacks.items():
        package, _, kind = str(part["_target_"] if part else "").rpartition(".")
        if not package.startswith(("pytorch_lightning", "lightning")):
            continue
        if kind in UNSUPPORTED_CALLBACKS:
            raise SettingError(f"callbacks.{name}: {kind} {UNSUPPORTED_CALLBACKS[kind]}")
        if kind in NEED_LOGGER and not has_logger:
            raise SettingError(
                f"callbacks.{name}: {kind} writes to a logger, and there is none: add logger=csv, "
                "logger=tensorboard or logger=wandb"
            )
    checkpoint = callbacks.get("checkpoint")
    if not checkpoint:
        raise SettingError(
            "callbacks.checkpoint can't be left out: nothing would be kept of the training"
        )
    for key, (fixed, instead) in FIXED.items():
        value = checkpoint.get(key)
        if value != fixed or type(value) is not type(fixed):
            raise SettingError(f"callbacks.checkpoint.{key}={value} can't be set: {instead}")
    for name, callback in callbacks.items():
        if str((callback or {}).get("_target_", "")).endswith(".EarlyStopping"):
            stopping = cfg.callbacks[name]
            _check_monitor(
                stopping.get("monitor"), stopping.get("mode", "min"), f"callbacks.{name}."
            )


def _missing(config: Mapping[Any, Any], prefix: str = "") -> Iterator[str]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _missing(value, f"{prefix}{key}.")
        elif value == "???":
            yield f"{prefix}{key}"


def _check_monitor(monitor: Any, mode: str, prefix: str) -> None:
    if monitor not in MONITORED:
        close = closest_name(str(monitor), MONITORED)
        raise SettingError(
            f"{prefix}monitor={monitor} is not a validation metric{did_you_mean(close)}; choose "
            f"one of {', '.join(MONITORED)}"
        )
    if mode != usual_mode(monitor):
        key, action = (f"{prefix}mode", "stop at") if prefix else ("monitor_mode", "keep")
        raise SettingError(
            f"{prefix}monitor={monitor} with {key}={mode} would {action} the worst epoch: add "
            f"{key}={usual_mode(monitor)}"
        )


def check_data(data: Mapping[str, Any], swept: Container[str]) -> None:
    """Refuse missing files of a dataset and invalid CSV files, once for all jobs of a sweep.

    Args:
        data: the section ``data`` of the configuration.
        swept: see :func:`check_settings`.

    Raises:
        UserError: a file is missing, with a message that names the setting and its value; or a CSV
            is invalid, with a message that names the file, row and column.
    """
    # Imported here, since a single run does not need it before PyTorch.
    from genre_lightning.movies.readers import GENERATED_FOLDER_OPTION

    if "data" in swept or "experiment" in swept:  # the jobs may have other files
        return
    for key in PATHS:
        group, _, name = key.partition(".")
        path = data.get(name) if group == "data" else None
        is_generated = name == GENERATED_FOLDER_OPTION.get(data["reader"]) or (
            name == "root" and data.get("download")
        )
        if path is None or is_generated or key in swept:
            continue
        if not os.path.lexists(Path(str(path)).expanduser()):
            can_download = name == "root" and "download" in data
            hint = "; data.download=true fetches it" if can_download else ""
            raise SettingError(f"{key}={path}: there is no such file or folder{hint}")
    _check_tables(data, swept)


def _check_tables(data: Mapping[str, Any], swept: Container[str]) -> None:
    """Refuse an invalid CSV of movies or of further columns, as the first job would."""
    # Imported here, since a single run reads the files anyway.
    from genre_lightning.movies.columns import join_columns
    from genre_lightning.movies.readers import read_movies
    from genre_lightning.movies.table import read_table

    columns = None if "data.columns" in swept else data.get("columns")
    same_movies = "data.path" not in swept and "data.genre_separator" not in swept
    if data.get("reader") == "manifest" and same_movies:
        movies = read_movies(
            "manifest", path=data["path"], genre_separator=data.get("genre_separator")
        )
        if columns is not None:
            join_columns(movies, columns)
    elif columns is not None:
        read_table(Path(columns).expanduser(), ("id",))


def check_folder(folder: str | Path) -> None:
    """Refuse a run folder that can't be created or written, without creating anything.

    Raises:
        SettingError: the folder can't be used; the message names it and the reason.
    """
    target = Path(folder).absolute()
    existing = next(path for path in (target, *target.parents) if os.path.lexists(path))
    if not existing.is_dir():
        reason = f"{existing} is not a folder"
    elif not os.access(existing, os.W_OK | os.X_OK):
        reason = f"{existing} is read-only"
    else:
        return
    raise SettingError(f"the run can't be written to {folder}, since {reason}: name another folder")
