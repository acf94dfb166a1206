"""Train, validation and test: what the dataset says, and the rest seeded and stratified.

Stratified over all labels at once by iterative stratification: K. Sechidis, G. Tsoumakas,
I. Vlahavas, "On the Stratification of Multi-Label Data", ECML PKDD 2011.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from genre_lightning.movies.movie import DataError
from genre_lightning.movies.split_names import SPLITS


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

    Splits that the dataset gives are kept. Where none is marked test, ``test_fraction`` of the
    unassigned movies become it; where none is marked val, ``val_fraction`` of the training movies
    do (after the test split is taken). All others train.

    The result depends on the training movies' labels and the seed alone: test movies, or how many
    there are, change nothing in what is drawn for validation.

    Args:
        splits: (N,) "train", "val", "test" or None (unassigned).
        labels: (N, G) multi-hot.
        val_fraction: of the training movies, in (0, 1); not used where the dataset has a val split.
            None to take none.
        test_fraction: of the unassigned movies, in (0, 1); not used where it has a test split.
        seed: of the drawing.
        needs_train: whether there has to be a training split, from which validation is taken.

    Returns:
        "train", "val", "test" to sorted int64 row indices: disjoint, covering all rows, and
        not empty but for splits that were not to be taken.

    Raises:
        DataError: a fraction outside (0, 1), an unknown split, or a split that would be empty.
    """
    if len(splits) != len(labels):
        raise ValueError(f"{len(splits)} splits for {len(labels)} rows of labels")
    unknown = sorted({str(split) for split in splits if split is not None} - set(SPLITS))
    if unknown:
        raise DataError(f"unknown split {unknown[0]!r}; there is {', '.join(SPLITS)}")
    given = np.array(["" if split is None else split for split in splits], dtype="<U5")
    rows = {split: np.flatnonzero(given == split) for split in SPLITS}
    unassigned = np.flatnonzero(given == "")

    if not len(rows["test"]):
        if not len(unassigned):
            raise DataError(
                "the test split is empty: no movie is marked test, and none is left unassigned to "
                "take it from; mark some test, or leave some cells of the column split empty"
            )
        unassigned, rows["test"] = _take(unassigned, labels, "test", test_fraction, seed)
    rows["train"] = np.sort(np.concatenate([rows["train"], unassigned]))
    if not len(rows["train"]):
        if needs_train:
            raise DataError("the train split is empty: every movie is marked val or test")
    elif not len(rows["val"]) and val_fraction is not None:
        rows["train"], rows["val"] = _take(rows["train"], labels, "val", val_fraction, seed)
    return {split: rows[split].astype(np.int64) for split in SPLITS}


def _take(
    rows: np.ndarray, labels: np.ndarray, name: str, fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Part ``rows`` into the rest and a stratified fraction of them, both sorted."""
    if not 0.0 < fraction < 1.0:
        raise DataError(
            f"data.{name}_fraction={fraction} must lie between 0 and 1: the dataset has no {name} "
            "split of its own, so one has to be taken"
        )
    count = round(fraction * len(rows))
    if not 0 < count < len(rows):
        raise DataError(
            f"data.{name}_fraction={fraction} of {len(rows)} movies leaves the "
            f"{name if count == 0 else 'train'} split empty; change it or add movies"
        )
    taken = stratified_subset(labels[rows], count, seed)
    return rows[~taken], rows[taken]


def fold_movies(labels: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """(N,) int64: the fold of each movie, with about the same share of each label in all of them.

    Args:
        labels: (N, G) multi-hot.
        folds: K, 2 to N.
        seed: same labels, K and seed, same folds.

    Raises:
        DataError: there are fewer movies than folds.
    """
    from iterstrat.ml_stratifiers import MultilabelStratifiedKFold

    if len(labels) < folds:
        raise DataError(f"data.folds={folds}, and there are {len(labels)} movies to train on")
    present = np.asarray(labels) != 0
    padded = np.concatenate([present, np.zeros((len(present), 2), dtype=bool)], axis=1)
    splitter = MultilabelStratifiedKFold(folds, shuffle=True, random_state=seed)
    fold = np.full(len(present), -1, dtype=np.int64)
    for number, (_, rows) in enumerate(splitter.split(np.zeros(len(present)), padded.astype(int))):
        fold[rows] = number
    return fold


def stratified_subset(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """(N,) bool, exactly ``count`` of them True, with about the same share of each label.

    Args:
        labels: (N, G) multi-hot.
        count: 1 to N - 1.
        seed: same labels, count and seed, same subset.
    """
    # Here alone: it brings in scikit-learn, which takes a second that prediction need not spend.
    from iterstrat.ml_stratifiers import MultilabelStratifiedShuffleSplit

    present = np.asarray(labels) != 0
    # The package takes two label columns or more; one that is never set changes nothing.
    padded = np.concatenate([present, np.zeros((len(present), 2), dtype=bool)], axis=1)
    splitter = MultilabelStratifiedShuffleSplit(
        n_splits=1, test_size=count, train_size=len(present) - count, random_state=seed
    )
    _, drawn = next(splitter.split(np.zeros(len(present)), padded.astype(np.uint8)))
    taken = np.zeros(len(present), dtype=bool)
    taken[drawn] = True
    _fix_size(taken, present.astype(np.float64), count)
    return taken


def _fix_size(taken: np.ndarray, labels: np.ndarray, count: int) -> None:
    """Move rows in or out (in place) until ``count`` are taken.

    The drawing above prefers even labels over exact sizes and ends some rows off. Each step moves
    the row that leaves the taken label counts closest (least squares) to their share of the whole.
    """
    wanted = labels.sum(axis=0) * (count / len(labels))
    excess = labels[taken].sum(axis=0) - wanted  # (G,)
    for _ in range(abs(int(taken.sum()) - count)):
        out = taken.sum() > count
        sign = -1.0 if out else 1.0
        candidates = np.flatnonzero(taken == out)
        cost = ((excess + sign * labels[candidates]) ** 2).sum(axis=1)
        row = candidates[np.argmin(cost)]
        taken[row] = not out
        excess = excess + sign * labels[row]
