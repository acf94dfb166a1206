"""The train, validation and test splits and the folds of train: drawn once, then stored."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from genre_lightning.movies.split import fold_movies, split_movies
from genre_lightning.movies.split_names import SPLITS
from genre_lightning.store import content_key, save_array, stored_folder

#: Part of the key of stored splits: raise it when the way they are drawn changes.
SPLIT_VERSION = 2
MAX_FOLDS = 64


def stored_splits(
    cache_dir: Path,
    named_splits: list[str | None],
    labels: np.ndarray,
    *,
    val_fraction: float,
    test_fraction: float,
    folds: int,
    seed: int,
    needs_train: bool,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The splits of a dataset, loaded from the store if an earlier run has drawn them.

    Args:
        cache_dir: where splits are stored.
        named_splits: (N,) "train", "val", "test", or None for a movie that is still to be assigned.
        labels: (N, G) uint8.
        val_fraction: share of train to hold out if no movie is given to "val".
        test_fraction: share of the unassigned movies to hold out if no movie is given to "test".
        folds: K > 1 makes K folds of train and uses all of train for validation, if no movie is
            given to "val" and train is needed.
        seed: seed of the drawing.
        needs_train: whether there must be movies to train on.

    Returns:
        The int64 row numbers of each split, by name; and each movie's fold, (N,) int64, -1 for a
        movie in no fold.
    """
    uses_folds = folds > 1 and "val" not in named_splits and needs_train
    fraction_held_out = None if uses_folds else val_fraction
    settings = (fraction_held_out, test_fraction, seed)
    variant = (folds,) if uses_folds else () if needs_train else ("no train",)
    key = content_key("split", SPLIT_VERSION, named_splits, labels, *settings, *variant)

    def build(folder: Path) -> None:
        splits = split_movies(
            named_splits,
            labels,
            val_fraction=fraction_held_out,
            test_fraction=test_fraction,
            seed=seed,
            needs_train=needs_train,
        )
        fold_of_movie = np.full(len(named_splits), -1, dtype=np.int64)
        if uses_folds:
            train = splits["train"]
            fold_of_movie[train] = fold_movies(labels[train], folds, seed)
            splits["val"] = train
        save_array(folder / "fold.npy", fold_of_movie)
        for name, rows in splits.items():
            save_array(folder / f"{name}.npy", rows)

    folder = stored_folder(cache_dir, "split", key, build)
    splits = {name: np.load(folder / f"{name}.npy") for name in SPLITS}
    return splits, np.load(folder / "fold.npy")
