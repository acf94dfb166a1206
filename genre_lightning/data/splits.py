"""Which movies are in train, validation and test, and in which fold of train: drawn once, kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from genre_lightning.movies.split import fold_movies, split_movies
from genre_lightning.movies.split_names import SPLITS
from genre_lightning.store import content_key, save_array, stored_folder

#: Part of the key of stored splits: raise it when their computation changes.
SPLIT_VERSION = 2
MAX_FOLDS = 64


def stored_splits(
    cache_dir: Path,
    given: list[str | None],
    labels: np.ndarray,
    *,
    val_fraction: float,
    test_fraction: float,
    folds: int,
    seed: int,
    needs_train: bool,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The splits of a dataset, from the store where an earlier run left them.

    Args:
        cache_dir: where they are kept.
        given: (N,) "train", "val", "test", or None for a movie that is still to be assigned.
        labels: (N, G) uint8.
        val_fraction: share of train that is held out where no movie is given to "val".
        test_fraction: share of all that is held out where no movie is given to "test".
        folds: K > 1 makes K folds of train, which is then validation as well, where no movie is
            given to "val" and train is needed.
        seed: of what is drawn.
        needs_train: whether there have to be movies to learn from.

    Returns:
        By split, int64 row numbers; and (N,) int64, the fold of each movie, -1 for one that is in
        none.
    """
    by_folds = folds > 1 and "val" not in given and needs_train
    held_out = None if by_folds else val_fraction
    fractions = (held_out, test_fraction, seed)
    kind = (folds,) if by_folds else () if needs_train else ("no train",)
    key = content_key("split", SPLIT_VERSION, given, labels, *fractions, *kind)

    def build(folder: Path) -> None:
        splits = split_movies(
            given,
            labels,
            val_fraction=held_out,
            test_fraction=test_fraction,
            seed=seed,
            needs_train=needs_train,
        )
        fold = np.full(len(given), -1, dtype=np.int64)
        if by_folds:
            train = splits["train"]
            fold[train] = fold_movies(labels[train], folds, seed)
            splits["val"] = train
        save_array(folder / "fold.npy", fold)
        for name, rows in splits.items():
            save_array(folder / f"{name}.npy", rows)

    folder = stored_folder(cache_dir, "split", key, build)
    splits = {name: np.load(folder / f"{name}.npy") for name in SPLITS}
    return splits, np.load(folder / "fold.npy")
