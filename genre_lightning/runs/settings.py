"""Settings by their names: which change no result, which a resume may change, which are paths.

A setting is called by its dotted name in the configuration, ``optimizer.lr``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

#: Change no result: how fast and where things are read and written, and what is shown. Sweeps and
#: their folders are not named by them, and a leaderboard does not tell runs apart by them. A name
#: stands for all settings below it as well; "*" is any text.
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
#: Change a result, yet may be others when a run is resumed, as may PATHS: how long, and on what, it
#: trains.
RESUMABLE = (
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
#: Name a file or a folder.
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
    """Whether a run gives the same result whatever this setting, or config group, is."""
    return _is_one_of(name, NO_RESULT)


def may_change_on_resume(name: str) -> bool:
    """Whether a run can be resumed with another value of this setting."""
    return _is_one_of(name, (*NO_RESULT, *RESUMABLE, *PATHS))


def is_path(name: str) -> bool:
    """Whether the value of this setting names a file or a folder."""
    return _is_one_of(name, PATHS)


def _is_one_of(name: str, patterns: Iterable[str]) -> bool:
    dotted = name.replace("/", ".")  # hydra/launcher, as config groups are called
    return any(
        fnmatchcase(dotted, pattern) or fnmatchcase(dotted, f"{pattern}.*") for pattern in patterns
    )


def flat_settings(config: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """A nested configuration under flat dotted names: ``optimizer.lr``, ``model.dropout``.

    Args:
        config: plain data; a list, and a mapping without entries, is a value.
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
    """Which way is better: "min" for losses, "max" for scores."""
    return "min" if metric.endswith("loss") else "max"
