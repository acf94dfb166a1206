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


def test_they_are_drawn_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, folds = draw_splits(tmp_path, [None] * 40)
    assert sorted(np.concatenate(list(first.values())).tolist()) == list(range(40))
    assert (folds == -1).all()
    monkeypatch.setattr(splits, "split_movies", None)
    again, _ = draw_splits(tmp_path, [None] * 40)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    with pytest.raises(TypeError):
        draw_splits(tmp_path, [None] * 40, seed=1)


def test_folds_make_train_the_validation_as_well(tmp_path: Path) -> None:
    found, folds = draw_splits(tmp_path, [None] * 40, folds=3)
    assert np.array_equal(found["val"], found["train"])
    assert set(folds[found["train"]]) == {0, 1, 2} and set(folds[found["test"]]) == {-1}


def test_a_validation_split_of_the_dataset_takes_no_folds(tmp_path: Path) -> None:
    given = ["train"] * 20 + ["val"] * 10 + ["test"] * 10
    found, folds = draw_splits(tmp_path, [*given], folds=3)
    assert found["val"].tolist() == list(range(20, 30)) and (folds == -1).all()


def test_the_key_of_stored_splits_stays(tmp_path: Path) -> None:
    draw_splits(tmp_path, [None] * 40)
    draw_splits(tmp_path, [None] * 40, folds=3)
    draw_splits(tmp_path, ["test"] * 40, needs_train=False)
    # Other names would draw the splits of every dataset anew.
    assert sorted(path.name for path in tmp_path.glob("split*") if path.is_dir()) == [
        "split-4b096afd640acb04b6e9f5e0a7182688",
        "split-d550ce77228945c7544e059cb320e865",
        "split-fc4f9005dadb6fd8de9bd348cdaccc4c",
    ]
