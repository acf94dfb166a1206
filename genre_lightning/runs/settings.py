"""Kinds of settings: which don't affect results, which can change on resume, which are paths.

Settings are identified by their dotted names in the configuration, such as ``optimizer.lr``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

#: Settings that don't affect results, but speed, places of files and output. They are left out of
#: the names of sweeps and their folders, and leaderboards don't distinguish runs by them. A name
#: includes all settings below it; "*" matches any text.
NO_RESULT = (
    "*.cache_dir",
    "*.default_root_dir",
    "*.dirpath",
    "*.save_dir",
    "api_key_env",
    "callbacks.checkpoint.save_weights_only",
    "callbacks.progress_bar",
    "checkpoint_every_n_steps",
    "checkpoint_in_background",
    "checkpoint_min_seconds",
    "ckpt_path",
    "data.device_resident",
    "data.download",
    "data.resident_share",
    "data.workers",
    "hydra",
    "logger",
    "reuse",
    "server",
    "sweep",
    "trainer.enable_model_summary",
    "trainer.enable_progress_bar",
    "trainer.log_every_n_steps",
    "trainer.profiler",
)
#: Settings that affect results but can be changed when a run is resumed, such as how long and on
#: which hardware it trains. PATHS can be changed, too.
RESUMABLE = (
    "callbacks.early_stopping",
    "callbacks.pruning",
    "data.genre_separator",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.max_epochs",
    "trainer.max_steps",
    "trainer.max_time",
    "trainer.num_nodes",
    "trainer.strategy",
)
#: Settings that are paths of files or folders.
PATHS = (
    "*.cache_dir",
    "*.default_root_dir",
    "*.dirpath",
    "*.input.path",
    "*.save_dir",
    "cache_dir",
    "ckpt_path",
    "data.columns",
    "data.path",
    "data.root",
    "hydra.run.dir",
    "hydra.sweep.dir",
    "model.branches.*.path",
    "reuse",
)


def changes_no_result(name: str) -> bool:
    """Whether this setting, or config group, does not affect a run's result."""
    return _is_one_of(name, NO_RESULT)


def may_change_on_resume(name: str) -> bool:
    """Whether a run can be resumed with another value of this setting."""
    return _is_one_of(name, (*NO_RESULT, *RESUMABLE, *PATHS))


def is_path(name: str) -> bool:
    """Whether this setting is the path of a file or folder."""
    return _is_one_of(name, PATHS)


def _is_one_of(name: str, patterns: Iterable[str]) -> bool:
    dotted = name.replace("/", ".")  # for config groups such as hydra/launcher
    return any(
        fnmatchcase(dotted, pattern) or fnmatchcase(dotted, f"{pattern}.*") for pattern in patterns
    )


def flat_settings(config: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten a nested configuration to dotted names: ``optimizer.lr``, ``model.dropout``.

    Args:
        config: plain data; lists and empty mappings are values.
        prefix: put before each name.
    """
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= flat_settings(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def usual_mode(metric: str) -> str:
    """The direction in which a metric is better: "min" for losses, "max" for scores."""
    return "min" if metric.endswith("loss") else "max"
