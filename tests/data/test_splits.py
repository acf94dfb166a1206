from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genre_lightning.data import splits
from genre_lightning.data.splits import stored_splits

LABELS = (np.arange(80).reshape(40, 2) % 3 == 0).astype(np.uint8)


def draw_splits(folder: Path, named_splits: list[str | None], **options: Any) -> Any:
    settings: dict[str, Any] = {
        "val_fraction": 0.2, "test_fraction": 0.2, "folds": 1, "seed": 0, "needs_train": True,
    }  # fmt: skip
    return stored_splits(folder, named_splits, LABELS, **{**settings, **options})


def test_splits_are_drawn_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, folds = draw_splits(tmp_path, [None] * 40)
    assert sorted(np.concatenate(list(first.values())).tolist()) == list(range(40))
    assert (folds == -1).all()
    monkeypatch.setattr(splits, "split_movies", None)
    again, _ = draw_splits(tmp_path, [None] * 40)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    with pytest.raises(TypeError):
        draw_splits(tmp_path, [None] * 40, seed=1)


def test_with_folds_all_of_train_is_also_validation(tmp_path: Path) -> None:
    drawn, folds = draw_splits(tmp_path, [None] * 40, folds=3)
    assert np.array_equal(drawn["val"], drawn["train"])
    assert set(folds[drawn["train"]]) == {0, 1, 2} and set(folds[drawn["test"]]) == {-1}


def test_a_named_validation_split_disables_folds(tmp_path: Path) -> None:
    named_splits = ["train"] * 20 + ["val"] * 10 + ["test"] * 10
    drawn, folds = draw_splits(tmp_path, [*named_splits], folds=3)
    assert drawn["val"].tolist() == list(range(20, 30)) and (folds == -1).all()


def test_the_keys_of_stored_splits_stay_the_same(tmp_path: Path) -> None:
    draw_splits(tmp_path, [None] * 40)
    draw_splits(tmp_path, [None] * 40, folds=3)
    draw_splits(tmp_path, ["test"] * 40, needs_train=False)
    # With other names, the splits of every dataset would be drawn again.
    assert sorted(path.name for path in tmp_path.glob("split*") if path.is_dir()) == [
        "split-4b096afd640acb04b6e9f5e0a7182688",
        "split-d550ce77228945c7544e059cb320e865",
        "split-fc4f9005dadb6fd8de9bd348cdaccc4c",
    ]
