"""Splits: named ones are kept, the others drawn: stratified, of exact size, seeded."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genre_lightning.movies.ml1m import read_ml1m
from genre_lightning.movies.movie import DataError, encode_genres
from genre_lightning.movies.split import split_movies, stratified_subset

FRACTIONS: dict[str, Any] = {"val_fraction": 0.2, "test_fraction": 0.2, "seed": 0}


def multi_hot(num_movies: int, seed: int = 0) -> np.ndarray:
    """(N, 12) labels from common to rare genres, at least one in each row."""
    rng = np.random.default_rng(seed)
    labels = rng.random((num_movies, 12)) < np.geomspace(0.4, 0.01, 12)
    labels[np.arange(num_movies), rng.integers(0, 3, num_movies)] |= ~labels.any(axis=1)
    return labels.astype(np.uint8)


def assert_partition(rows: dict[str, np.ndarray], num_movies: int) -> None:
    assert list(rows) == ["train", "val", "test"]
    for row in rows.values():
        assert row.dtype == np.int64
        assert len(row) > 0
        assert (np.diff(row) > 0).all()
    assert sorted(np.concatenate(list(rows.values())).tolist()) == list(range(num_movies))


def test_sizes_of_movielens():
    rows = split_movies([None] * 3883, multi_hot(3883), **FRACTIONS)
    assert_partition(rows, 3883)
    assert {name: len(row) for name, row in rows.items()} == {
        "train": 3106 - 621,
        "val": 621,
        "test": 777,
    }


def test_stratified_label_shares_are_closer_than_random_ones():
    labels = multi_hot(2000).astype(float)

    def gap(taken: np.ndarray) -> float:
        return float(np.abs(labels[taken].sum(axis=0) - 0.1 * labels.sum(axis=0)).max())

    stratified = [gap(stratified_subset(labels, 200, seed)) for seed in range(5)]
    rng = np.random.default_rng(0)
    at_random = [gap(rng.permutation(2000)[:200]) for _ in range(50)]
    # Every genre is within two movies of its share; a random draw is off by more.
    assert max(stratified) <= 2.0
    assert max(stratified) < min(at_random)


def test_rare_labels_are_on_both_sides():
    labels = multi_hot(1000)
    labels[:, -1] = 0
    labels[[5, 500, 900, 950], -1] = 1
    rows = split_movies([None] * 1000, labels, val_fraction=0.25, test_fraction=0.25, seed=3)
    assert [int(labels[row, -1].sum()) for row in rows.values()] == [2, 1, 1]


def test_named_splits_are_kept():
    named_splits = (["train", "val", "test", None, "train"] * 40)[:200]
    rows = split_movies(named_splits, multi_hot(200), **FRACTIONS)
    assert_partition(rows, 200)
    assert rows["val"].tolist() == [i for i, s in enumerate(named_splits) if s == "val"]
    assert rows["test"].tolist() == [i for i, s in enumerate(named_splits) if s == "test"]


@pytest.mark.parametrize(
    ("named_splits", "sizes"),
    [
        pytest.param([None] * 100, (64, 16, 20), id="none-named"),
        pytest.param(["test"] * 30 + ["train"] * 70, (56, 14, 30), id="test-named"),
        pytest.param(["test"] * 30 + [None] * 70, (56, 14, 30), id="test-named-rest-open"),
        pytest.param(["val"] * 30 + [None] * 70, (56, 30, 14), id="val-named"),
        pytest.param(["val"] * 30 + [None] * 20 + ["train"] * 50, (66, 30, 4), id="part-open"),
        pytest.param(["train"] * 80 + [None] * 20, (77, 19, 4), id="test-from-open-rows-only"),
    ],
)
def test_unnamed_splits_are_drawn(named_splits, sizes):
    rows = split_movies(named_splits, multi_hot(100), **FRACTIONS)
    assert_partition(rows, 100)
    assert tuple(len(row) for row in rows.values()) == sizes
    open_rows = {i for i, split in enumerate(named_splits) if split is None}
    if "test" not in named_splits:
        assert set(rows["test"].tolist()) <= open_rows


def test_splits_depend_on_the_seed_and_no_global_state():
    labels = multi_hot(300)
    np.random.seed(1)
    first = split_movies([None] * 300, labels, **FRACTIONS)
    np.random.seed(2)
    next_draw = np.random.random()
    np.random.seed(2)
    again = split_movies([None] * 300, labels, **FRACTIONS)
    assert np.random.random() == next_draw  # the global generator is not used
    other = split_movies([None] * 300, labels, **{**FRACTIONS, "seed": 1})
    for name, row in first.items():
        assert row.tolist() == again[name].tolist()
    assert first["val"].tolist() != other["val"].tolist()


def test_test_movies_do_not_change_the_validation_split():
    labels = multi_hot(300)
    rows = split_movies(["train"] * 200 + ["test"] * 100, labels, **FRACTIONS)
    changed = np.concatenate([labels[:200], 1 - labels[200:250]])
    fewer = split_movies(["train"] * 200 + ["test"] * 50, changed, **FRACTIONS)
    assert rows["val"].tolist() == fewer["val"].tolist()
    # Nor does the position of the test movies.
    mixed = np.concatenate([labels[200:], labels[:200]])
    moved = split_movies(["test"] * 100 + ["train"] * 200, mixed, **FRACTIONS)
    assert (moved["val"] - 100).tolist() == rows["val"].tolist()


@settings(max_examples=60, deadline=None)
@given(
    num_movies=st.integers(2, 40),
    num_genres=st.integers(1, 6),
    density=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    seed=st.integers(0, 2**31),
    data=st.data(),
)
def test_a_subset_has_the_exact_size_for_any_labels(num_movies, num_genres, density, seed, data):
    labels = np.random.default_rng(seed).random((num_movies, num_genres)) < density
    count = data.draw(st.integers(1, num_movies - 1))
    taken = stratified_subset(labels.astype(np.uint8), count, seed)
    assert taken.shape == (num_movies,)
    assert taken.dtype == bool
    assert taken.sum() == count


@pytest.mark.parametrize(
    ("named_splits", "changes", "message"),
    [
        pytest.param(["train"] * 9, {}, "mark some test", id="nothing-to-take-test-from"),
        pytest.param(["test"] * 9, {}, "train split is empty", id="all-test"),
        pytest.param(["val", "test"] * 4, {}, "train split is empty", id="no-train"),
        pytest.param([None] * 2, {}, "of 2 movies leaves the test split empty", id="too-few"),
        pytest.param(["test", "train"], {}, "of 1 movie leaves the val split", id="no-val"),
        pytest.param([None] * 9, {"val_fraction": 0.99}, "leaves the train split", id="all-val"),
        pytest.param([None] * 9, {"test_fraction": 0.0}, "test_fraction=0.0 must", id="zero"),
        pytest.param([None] * 9, {"val_fraction": 1.0}, "val_fraction=1.0 must", id="one"),
        pytest.param([None] * 9, {"val_fraction": float("nan")}, "val_fraction=nan", id="nan"),
        pytest.param(["dev"] * 9, {}, "unknown split 'dev'", id="unknown"),
        pytest.param(["validation"] * 9, {}, "unknown split 'validation'", id="long-name"),
        pytest.param([], {}, "test split is empty", id="no-movies"),
    ],
)
def test_an_empty_split_is_refused(named_splits, changes, message):
    labels = np.ones((len(named_splits), 3), dtype=np.uint8)
    with pytest.raises(DataError, match=message):
        split_movies(named_splits, labels, **{**FRACTIONS, **changes})


def test_unneeded_fractions_are_not_checked():
    rows = split_movies(
        ["train", "val", "test"], np.ones((3, 2)), val_fraction=0.0, test_fraction=0.0, seed=0
    )
    assert [row.tolist() for row in rows.values()] == [[0], [1], [2]]


def test_mismatched_lengths_raise_value_error():
    with pytest.raises(ValueError, match="3 splits for 2 rows"):
        split_movies([None] * 3, np.ones((2, 2)), **FRACTIONS)


def test_scikit_learn_is_not_imported_before_it_is_needed():
    code = "import sys, genre_lightning.movies.split; print('sklearn' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "False"


def test_the_real_movies(ml1m_root):
    movie_set = read_ml1m(ml1m_root)
    labels = encode_genres(movie_set.movies, movie_set.genres)
    splits = [movie.split for movie in movie_set.movies]
    rows = split_movies(splits, labels, val_fraction=0.15, test_fraction=0.2, seed=0)
    assert_partition(rows, 3883)
    assert {name: len(row) for name, row in rows.items()} == {
        "train": 2640,
        "val": 466,
        "test": 777,
    }
    share = 466 / 3106 * (labels[rows["train"]].sum(axis=0) + labels[rows["val"]].sum(axis=0))
    assert np.abs(labels[rows["val"]].sum(axis=0) - share).max() < 2
    whole = split_movies([None] * 3883, labels, **FRACTIONS)
    assert len(whole["test"]) == 777
    assert len(whole["train"]) + len(whole["val"]) == 3106
