"""Settings that do not affect results, and settings that may change on resume."""

from __future__ import annotations

import pytest

from genre_lightning.runs.settings import (
    NO_RESULT,
    RESUMABLE,
    changes_no_result,
    flat_settings,
    may_change_on_resume,
)


@pytest.mark.parametrize(
    ("name", "no_result", "on_resume"),
    [
        ("optimizer.lr", False, False),
        ("seed", False, False),
        ("monitor", False, False),
        ("data", False, False),
        ("data.batch_size", False, False),
        ("trainer.max_epochs", False, True),
        ("trainer.max_epochs_more", False, False),
        ("data.root", False, True),
        ("data.columns", False, True),
        ("callbacks.pruning.folder", False, True),
        ("callbacks.checkpoint.dirpath", True, True),
        ("callbacks.checkpoint.mode", False, False),
        ("data.cache_dir", True, True),
        ("data.workers", True, True),
        ("logger", True, True),
        ("logger.wandb.save_dir", True, True),
        ("loggers", False, False),
        ("hydra/launcher", True, True),
        ("hydra.run.dir", True, True),
        ("ckpt_path", True, True),
    ],
)
def test_effect_of_a_setting(name: str, no_result: bool, on_resume: bool) -> None:
    assert changes_no_result(name) is no_result
    assert may_change_on_resume(name) is on_resume


def test_settings_are_listed_once() -> None:
    names = [*NO_RESULT, *RESUMABLE]
    assert len(set(names)) == len(names)
    assert [name for name in RESUMABLE if changes_no_result(name)] == []


def test_flat_settings() -> None:
    nested = {"a": 1, "b": {"c": None, "d": {"e": [1, 2]}, "empty": {}}}
    assert flat_settings(nested) == {"a": 1, "b.c": None, "b.d.e": [1, 2], "b.empty": {}}
