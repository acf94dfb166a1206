"""Label sets, against a plain loop over all sets of genres."""

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


def expected_scores(logits: list[float], targets: np.ndarray) -> list[float]:
    """Probability of each genre, by a plain loop over all sets."""
    seen = [tuple(row) for row in targets.tolist()]
    sets = set(seen)
    share = (sum(seen.count(labels) == 1 for labels in sets) + 1) / (len(seen) + 1)
    all_sets = list(itertools.product((0, 1), repeat=len(logits)))
    allowed = all_sets if (0, 0, 0) in sets else [labels for labels in all_sets if any(labels)]

    def weight(labels: tuple[int, ...]) -> float:
        return math.exp(sum(z for z, has_genre in zip(logits, labels, strict=True) if has_genre))

    def probability(genre: int, possible: Any) -> float:
        total = sum(weight(labels) for labels in possible)
        return sum(weight(labels) for labels in possible if labels[genre]) / total

    return [
        (1 - share) * probability(genre, sets) + share * probability(genre, allowed)
        for genre in range(len(logits))
    ]


@pytest.mark.parametrize("empty", [False, True], ids=["never empty", "empty allowed"])
def test_a_score_is_the_probability_of_the_sets_with_the_genre(empty: bool) -> None:
    targets = np.concatenate([TARGETS, np.zeros((2, 3))]) if empty else TARGETS
    scores = torch.sigmoid(LabelSets.from_targets(targets).logits(LOGITS))
    for row, logits in zip(scores, LOGITS.tolist(), strict=True):
        assert row.tolist() == pytest.approx(expected_scores(logits, targets), abs=1e-5)


def test_a_member_does_not_know_sets_found_only_in_its_fold() -> None:
    sets = LabelSets.from_targets(TARGETS, FOLDS)
    folds = torch.tensor([0, 1, -1, 0])
    actual = torch.sigmoid(sets.logits(LOGITS, folds))
    for row, logits, fold in zip(actual, LOGITS.tolist(), folds.tolist(), strict=True):
        seen = np.not_equal(FOLDS, fold)
        expected = expected_scores(logits, TARGETS[seen])
        assert row.tolist() == pytest.approx(expected, abs=1e-5)
    torch.testing.assert_close(sets.logits(LOGITS), LabelSets.from_targets(TARGETS).logits(LOGITS))


def test_only_the_most_frequent_sets_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genre_lightning.models.label_sets.MAX_SETS", 2)
    sets = LabelSets.from_targets(TARGETS, FOLDS)
    assert sets.to_lists()["sets"] == [[0], [0, 2]]
    # All folds: 3 of 8 movies have sets that are not kept. Without fold 0: 1 of 4, and one kept
    # set occurs once.
    assert sets.unseen.tolist() == pytest.approx([3 / 5, 3 / 5, 4 / 9])


@pytest.mark.parametrize("size", [1e3, 1e30])
def test_log_odds_are_finite(size: float) -> None:
    sets = LabelSets.from_targets(TARGETS, FOLDS)
    for folds in (None, torch.tensor([0, 1, -1, 0])):
        assert bool(sets.logits(LOGITS * size, folds).isfinite().all())


def test_computing_in_blocks_gives_the_same_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    sets, folds = LabelSets.from_targets(TARGETS, FOLDS), torch.tensor([0, 1, -1, 0])
    expected = sets.logits(LOGITS), sets.logits(LOGITS, folds)
    monkeypatch.setattr("genre_lightning.models.label_sets._BLOCK", 3 * len(sets.sets))
    for actual, unblocked in zip(
        (sets.logits(LOGITS), sets.logits(LOGITS, folds)), expected, strict=True
    ):
        torch.testing.assert_close(actual, unblocked)
    assert sets.logits(LOGITS[:0]).shape == (0, 3)


def test_a_dataset_of_one_set() -> None:
    sets = LabelSets.from_targets(np.ones((5, 3)), np.arange(5) % 2)
    assert bool((torch.sigmoid(sets.logits(LOGITS)) > 0.8).all())


def test_prediction_applies_label_sets_and_training_does_not() -> None:
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
def test_lists_restore_the_label_sets(folds: np.ndarray | None) -> None:
    sets = LabelSets.from_targets(TARGETS, folds)
    lists = sets.to_lists()
    restored = LabelSets.from_lists(copy.deepcopy(lists), 3)
    assert restored is not None and restored.to_lists() == lists
    torch.testing.assert_close(restored.logits(LOGITS), sets.logits(LOGITS))
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
def test_invalid_lists_are_refused(change: Any, message: str) -> None:
    lists: Any = LabelSets.from_targets(TARGETS, FOLDS).to_lists()
    lists = {**lists, **change} if isinstance(change, dict) else change
    with pytest.raises(ValueError, match=message):
        LabelSets.from_lists(lists, 3)
