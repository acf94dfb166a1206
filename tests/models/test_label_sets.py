"""Scores over the label sets of train, against a plain loop."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from genre_lightning.models.label_sets import LabelSets
from tests.models.test_fusion import batch, build

# Of 8 movies: {0} three times, {0, 2} twice, {1, 2}, {1} and {0, 1, 2} once each.
TARGETS = np.array(
    [[1, 0, 0], [1, 0, 0], [1, 0, 0], [1, 0, 1], [1, 0, 1], [0, 1, 1], [0, 1, 0], [1, 1, 1]]
)
FOLDS = np.array([0, 0, 1, 1, 1, 0, 1, 0])
LOGITS = torch.tensor([[0.3, -1.2, 0.8], [-9.0, -8.0, -10.0], [4.0, 5.0, 3.0], [-2.0, 0.0, 0.1]])


def chances(logits: list[float], targets: np.ndarray) -> list[float]:
    """Probability of each genre, by a plain loop over all sets."""
    seen = [tuple(row) for row in targets.tolist()]
    sets = set(seen)
    share = (sum(seen.count(one) == 1 for one in sets) + 1) / (len(seen) + 1)
    every = list(itertools.product((0, 1), repeat=len(logits)))
    some = every if (0, 0, 0) in sets else [one for one in every if any(one)]

    def weight(one: tuple[int, ...]) -> float:
        return math.exp(sum(z for z, there in zip(logits, one, strict=True) if there))

    def chance(genre: int, possible: Any) -> float:
        whole = sum(weight(one) for one in possible)
        return sum(weight(one) for one in possible if one[genre]) / whole

    return [
        (1 - share) * chance(genre, sets) + share * chance(genre, some)
        for genre in range(len(logits))
    ]


@pytest.mark.parametrize("empty", [False, True], ids=["one at least", "none allowed"])
def test_a_score_is_the_probability_of_the_sets_that_have_the_genre(empty: bool) -> None:
    targets = np.concatenate([TARGETS, np.zeros((2, 3))]) if empty else TARGETS
    scores = torch.sigmoid(LabelSets.from_targets(targets).logits(LOGITS))
    for row, logits in zip(scores, LOGITS.tolist(), strict=True):
        assert row.tolist() == pytest.approx(chances(logits, targets), abs=1e-5)


def test_what_a_fold_alone_has_is_unknown_to_whoever_has_not_seen_it() -> None:
    sets = LabelSets.from_targets(TARGETS, FOLDS)
    folds = torch.tensor([0, 1, -1, 0])
    actual = torch.sigmoid(sets.logits(LOGITS, folds))
    for row, logits, fold in zip(actual, LOGITS.tolist(), folds.tolist(), strict=True):
        seen = np.not_equal(FOLDS, fold)
        expected = chances(logits, TARGETS[seen])
        assert row.tolist() == pytest.approx(expected, abs=1e-5)
    torch.testing.assert_close(sets.logits(LOGITS), LabelSets.from_targets(TARGETS).logits(LOGITS))


def test_only_the_most_frequent_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genre_lightning.models.label_sets.MAX_SETS", 2)
    sets = LabelSets.from_targets(TARGETS, FOLDS)
    assert sets.to_lists()["sets"] == [[0], [0, 2]]
    # Three movies of eight have others; of those outside fold 0, one of four, and one is the only
    # one of its set.
    assert sets.unseen.tolist() == pytest.approx([3 / 5, 3 / 5, 4 / 9])


@pytest.mark.parametrize("size", [1e3, 1e30])
def test_log_odds_are_finite(size: float) -> None:
    sets = LabelSets.from_targets(TARGETS, FOLDS)
    for folds in (None, torch.tensor([0, 1, -1, 0])):
        assert bool(sets.logits(LOGITS * size, folds).isfinite().all())


def test_many_movies_are_looked_at_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    sets, folds = LabelSets.from_targets(TARGETS, FOLDS), torch.tensor([0, 1, -1, 0])
    expected = sets.logits(LOGITS), sets.logits(LOGITS, folds)
    monkeypatch.setattr("genre_lightning.models.label_sets._BLOCK", 3 * len(sets.sets))
    for actual, whole in zip(
        (sets.logits(LOGITS), sets.logits(LOGITS, folds)), expected, strict=True
    ):
        torch.testing.assert_close(actual, whole)
    assert sets.logits(LOGITS[:0]).shape == (0, 3)


def test_a_dataset_of_one_set() -> None:
    sets = LabelSets.from_targets(np.ones((5, 3)), np.arange(5) % 2)
    assert bool((torch.sigmoid(sets.logits(LOGITS)) > 0.8).all())


def test_the_network_scores_by_them_and_training_sees_the_sum() -> None:
    network = build("title", "poster").eval()
    parts = batch()
    branch_logits = network.branch_logits(parts, 4)
    total = network.total(branch_logits)
    torch.testing.assert_close(network(parts, 4), total)
    targets = np.eye(total.shape[1])[[0, 0, 1, 2]]
    network.label_sets = LabelSets.from_targets(targets)
    torch.testing.assert_close(network(parts, 4), network.label_sets.logits(total))
    torch.testing.assert_close(network.total(branch_logits), total)


@pytest.mark.parametrize("folds", [None, FOLDS], ids=["none", "folds"])
def test_a_file_holds_it(folds: np.ndarray | None) -> None:
    sets = LabelSets.from_targets(TARGETS, folds)
    lists = sets.to_lists()
    read = LabelSets.from_lists(copy.deepcopy(lists), 3)
    assert read is not None and read.to_lists() == lists
    torch.testing.assert_close(read.logits(LOGITS), sets.logits(LOGITS))
    assert LabelSets.from_lists(None, 3) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ([], "not made of sets, only and unseen"),
        ({"more": 1}, "not made of sets, only and unseen"),
        ({"sets": []}, "not lists"),
        ({"unseen": 0.5}, "not lists"),
        ({"only": [0]}, "5 sets, and folds of 1"),
        ({"sets": [[0]] * 20_001, "only": [-1] * 20_001}, "20001 sets"),
        ({"unseen": [0.5, 0.0, 0.5]}, "shares"),
        ({"unseen": [0.5, float("nan"), 0.5]}, "shares"),
        ({"unseen": [0.5, 1, 0.5]}, "shares"),
        ({"only": [-1, -1, 2, -1, -1]}, "folds that do not exist"),
        ({"only": [-1, -1, True, -1, -1]}, "folds that do not exist"),
        ({"sets": [[0], [0, 2], [1], [3], [1, 2]]}, r"not of the 3 genres: \[3\]"),
        ({"sets": [[0], [0, 2], [1], [-1], [1, 2]]}, "not of the 3 genres"),
        ({"sets": [[0], [0, 2], [1], 1, [1, 2]]}, "not of the 3 genres"),
    ],
    ids=str,
)
def test_another_file_is_refused(change: Any, message: str) -> None:
    lists: Any = LabelSets.from_targets(TARGETS, FOLDS).to_lists()
    lists = {**lists, **change} if isinstance(change, dict) else change
    with pytest.raises(ValueError, match=message):
        LabelSets.from_lists(lists, 3)
