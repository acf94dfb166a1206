"""Stacking on top of the sum: its correction by fold, and reading it from a checkpoint."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch

from genre_lightning.models.stacking import Stacking
from tests.models.test_fusion import batch, build

NAMES = ["title", "poster"]


def random_stacking(members: int = 3, genres: int = 3) -> Stacking:
    rng = np.random.default_rng(0)
    return Stacking.from_arrays(
        NAMES,
        1 + rng.normal(size=(members, 2, genres)),
        rng.normal(size=(members, genres, genres)),
        rng.normal(size=(members, genres)),
    )


@pytest.mark.parametrize("folds", [None, [2, 0, 1, 2], [1, -1, 0, -1]], ids=str)
@pytest.mark.parametrize("names", [NAMES, ["poster"], []], ids=str)
def test_the_correction_equals_a_plain_loop(folds: list[int] | None, names: list[str]) -> None:
    stacking = random_stacking()
    total = torch.linspace(-3, 4, 12).reshape(4, 3)
    by_branch = {
        name: torch.linspace(-1, position + 1, 12).reshape(4, 3)
        for position, name in enumerate(names)
    }
    actual = stacking.correction(total, by_branch, None if folds is None else torch.tensor(folds))
    for row in range(4):
        member = -1 if folds is None else folds[row]
        members_used = range(3) if member < 0 else [member]
        for genre in range(3):
            expected = [
                float(stacking.offsets[m, genre])
                + sum(
                    float(stacking.genres[m, genre, other])
                    / (1 + math.exp(-float(total[row, other])))
                    for other in range(3)
                )
                + sum(
                    (float(stacking.branches[name][m, genre]) - 1)
                    * float(by_branch[name][row, genre])
                    for name in names
                )
                for m in members_used
            ]
            assert float(actual[row, genre]) == pytest.approx(np.mean(expected), abs=1e-5)


def test_prediction_applies_stacking_and_training_does_not() -> None:
    network = build("title", "poster").eval()
    parts = batch()
    by_branch = network.branch_logits(parts, 4)
    sums = network(parts, 4)
    network.stacking = stacking = random_stacking(genres=network.num_genres)
    assert torch.equal(network(parts, 4), sums + stacking.correction(sums, by_branch))
    assert torch.equal(network.total(by_branch), sums)
    folds = torch.tensor([0, 1, 2, 0])
    assert torch.equal(network(parts, 4, folds), sums + stacking.correction(sums, by_branch, folds))
    posters = {"poster": by_branch["poster"]}
    base = network.total(posters)
    assert torch.equal(network.final_logits(posters), base + stacking.correction(base, posters))
    assert not any("stacking" in name for name in network.state_dict())


def test_lists_restore_the_stacking_exactly() -> None:
    stacking = random_stacking()
    restored = Stacking.from_lists(copy.deepcopy(stacking.to_lists()), NAMES, 3)
    assert restored is not None
    assert torch.equal(restored.genres, stacking.genres) and torch.equal(
        restored.offsets, stacking.offsets
    )
    assert all(torch.equal(restored.branches[name], stacking.branches[name]) for name in NAMES)
    assert Stacking.from_lists(None, NAMES, 3) is None


def changed(**entries: Any) -> dict[str, Any]:
    return {**random_stacking().to_lists(), **entries}


def changed_branches(**entries: Any) -> dict[str, Any]:
    return changed(branches={**random_stacking().to_lists()["branches"], **entries})


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        pytest.param([1.0], "branches, genres and offsets", id="a list"),
        pytest.param({"genres": []}, "branches, genres and offsets", id="keys missing"),
        pytest.param(changed(branches=[]), "are not title, poster", id="branches in a list"),
        pytest.param(changed_branches(plot=[]), "are not title, poster", id="one branch more"),
        pytest.param(changed_branches(title=[1.0]), "its shapes", id="branch of one number"),
        pytest.param(changed(offsets="abc"), "not made of numbers", id="text"),
        pytest.param(changed(offsets=[[0.0], [0.0, 1.0]]), "not made of numbers", id="ragged"),
        pytest.param(changed(offsets=[[0.0] * 3] * 2), "its shapes", id="two members and three"),
        pytest.param(changed(genres=[], offsets=[]), "its shapes", id="no member"),
        pytest.param(changed(genres=1.0, offsets=1.0), "its shapes", id="numbers"),
        pytest.param(random_stacking(genres=4).to_lists(), "3 genres", id="other genres"),
        pytest.param(changed(offsets=[[math.nan] * 3] * 3), "not finite", id="nan"),
        pytest.param(changed(offsets=[[1e300] * 3] * 3), "not finite", id="too large"),
    ],
)
def test_invalid_lists_are_refused(lists: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Stacking.from_lists(lists, NAMES, 3)
