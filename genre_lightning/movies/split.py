"""Train, validation and test splits: those of the dataset, and others drawn with a seed.

Drawn splits are stratified over all labels at once by iterative stratification: K. Sechidis,
G. Tsoumakas, I. Vlahavas, "On the Stratification of Multi-Label Data", ECML PKDD 2011.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from genre_lightning.movies.movie import DataError
from genre_lightning.movies.split_names import SPLITS
from genre_lightning.wording import counted


def split_movies(
    splits: Sequence[str | None],
    labels: np.ndarray,
    *,
    val_fraction: float | None,
    test_fraction: float,
    seed: int,
    needs_train: bool = True,
) -> dict[str, np.ndarray]:
    """Row indices of each split.

    Splits that the dataset defines are kept. If no movie is marked test, ``test_fraction`` of the
    unassigned movies become the test split. If none is marked val, ``val_fraction`` of the training
    movies become the validation split (after the test split is taken). All others are train.

    Validation is drawn by the training movies' labels and the seed alone: test movies that the
    dataset marks, and their number, have no influence on it.

    Args:
        splits: (N,) "train", "val", "test" or None (unassigned).
        labels: (N, G) multi-hot.
        val_fraction: share of the training movies, in (0, 1); ignored if the dataset has a val
            split. None draws no validation split.
        test_fraction: share of the unassigned movies, in (0, 1); ignored if the dataset has a test
            split.
        seed: seed of the drawing.
        needs_train: whether there must be a training split, from which validation is drawn.

    Returns:
        "train", "val", "test" to sorted int64 row indices: disjoint, covering all rows, and
        nonempty, except for splits that need not be there.

    Raises:
        DataError: a fraction is outside (0, 1), a split is unknown, or one would be empty.
    """
    if len(splits) != len(labels):
        raise ValueError(f"{len(splits)} splits for {len(labels)} rows of labels")
    unknown = sorted({str(split) for split in splits if split is not None} - set(SPLITS))
    if unknown:
        raise DataError(f"unknown split {unknown[0]!r}; there is {', '.join(SPLITS)}")
    assigned = np.array(["" if split is None else split for split in splits], dtype="<U5")
    rows = {split: np.flatnonzero(assigned == split) for split in SPLITS}
    unassigned = np.flatnonzero(assigned == "")

    if not len(rows["test"]):
        if not len(unassigned):
            raise DataError(
                "the test split is empty: no movie is marked test, and none is left unassigned to "
                "take it from; mark some test, or leave some cells of the column split empty"
            )
        unassigned, rows["test"] = _draw_split(unassigned, labels, "test", test_fraction, seed)
    rows["train"] = np.sort(np.concatenate([rows["train"], unassigned]))
    if not len(rows["train"]):
        if needs_train:
            raise DataError("the train split is empty: every movie is marked val or test")
    elif not len(rows["val"]) and val_fraction is not None:
        rows["train"], rows["val"] = _draw_split(rows["train"], labels, "val", val_fraction, seed)
    return {split: rows[split].astype(np.int64) for split in SPLITS}


def _draw_split(
    rows: np.ndarray, labels: np.ndarray, name: str, fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Split ``rows`` into the rest and a stratified fraction of them, both sorted."""
    if not 0.0 < fraction < 1.0:
        raise DataError(
            f"data.{name}_fraction={fraction} must lie between 0 and 1: the dataset has no {name} "
            "split of its own, so one has to be taken"
        )
    count = round(fraction * len(rows))
    if not 0 < count < len(rows):
        raise DataError(
            f"data.{name}_fraction={fraction} of {counted(len(rows), 'movie')} leaves the "
            f"{name if count == 0 else 'train'} split empty; change it or add movies"
        )
    is_taken = stratified_subset(labels[rows], count, seed)
    return rows[~is_taken], rows[is_taken]


def fold_movies(labels: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """The fold of each movie, (N,) int64; all folds have about the same share of each label.

    Args:
        labels: (N, G) multi-hot.
        folds: K, 2 to N.
        seed: the same labels, K and seed give the same folds.

    Raises:
        DataError: there are fewer movies than folds.
    """
    from iterstrat.ml_stratifiers import MultilabelStratifiedKFold

    if len(labels) < folds:
        raise DataError(
            f"data.folds={folds} is more than the {counted(len(labels), 'movie')} to train on: "
            "lower it"
        )
    present = np.asarray(labels) != 0
    padded = np.concatenate([present, np.zeros((len(present), 2), dtype=bool)], axis=1)
    splitter = MultilabelStratifiedKFold(folds, shuffle=True, random_state=seed)
    fold_of_movie = np.full(len(present), -1, dtype=np.int64)
    for fold, (_, rows) in enumerate(splitter.split(np.zeros(len(present)), padded.astype(int))):
        fold_of_movie[rows] = fold
    return fold_of_movie


def stratified_subset(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Mask of exactly ``count`` rows, (N,) bool, with about the same share of each label.

    Args:
        labels: (N, G) multi-hot.
        count: 1 to N - 1.
        seed: the same labels, count and seed give the same subset.
    """
    # Not imported at the top: it loads scikit-learn, which takes a second and which prediction
    # does not need.
    from iterstrat.ml_stratifiers import MultilabelStratifiedShuffleSplit

    present = np.asarray(labels) != 0
    # The package needs at least two label columns; a column that is never set changes nothing.
    padded = np.concatenate([present, np.zeros((len(present), 2), dtype=bool)], axis=1)
    splitter = MultilabelStratifiedShuffleSplit(
        n_splits=1, test_size=count, train_size=len(present) - count, random_state=seed
    )
    _, drawn_rows = next(splitter.split(np.zeros(len(present)), padded.astype(np.uint8)))
    is_taken = np.zeros(len(present), dtype=bool)
    is_taken[drawn_rows] = True
    _fix_size(is_taken, present.astype(np.float64), count)
    return is_taken


def _fix_size(is_taken: np.ndarray, labels: np.ndarray, count: int) -> None:
    """Add or remove rows (in place) until ``count`` are taken.

    Stratification prefers balanced labels over exact sizes, so it can be some rows off. Each step
    moves the row that keeps the taken label counts closest (least squares) to their share of all.
    """
    target_counts = labels.sum(axis=0) * (count / len(labels))
    excess = labels[is_taken].sum(axis=0) - target_counts  # (G,)
    for _ in range(abs(int(is_taken.sum()) - count)):
        is_removing = is_taken.sum() > count
        sign = -1.0 if is_removing else 1.0
        candidates = np.flatnonzero(is_taken == is_removing)
        cost = ((excess + sign * labels[candidates]) ** 2).sum(axis=1)
        row = candidates[np.argmin(cost)]
        is_taken[row] = not is_removing
        excess = excess + sign * labels[row]
