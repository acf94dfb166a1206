"""Parameter groups: learning rates and weight decay of each branch."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from genre_lightning.errors import UserError
from genre_lightning.training.parameter_groups import check_scales, parameter_groups


class Scaled(nn.Linear):
    def lr_scales(self) -> dict[str, float]:
        return {"weight": 0.5}


def groups(**more: Any) -> list[tuple[float, float]]:
    branches = {"plain": nn.Linear(3, 2), "scaled": Scaled(3, 2)}
    scales = {"plain": 1.0, "scaled": 0.1}
    found = parameter_groups(branches, lr=0.2, weight_decay=0.01, lr_scales=scales, **more)
    trained = [parameter for group in found for parameter in group["params"]]
    assert len(trained) == len(set(trained)) == 4
    return [(group["lr"], group["weight_decay"]) for group in found if group["params"]]


def test_lr_scales_change_the_rate_but_not_the_decay_per_step() -> None:
    expected = [(0.2, 0.01), (0.2, 0.0), (0.01, 0.2), (0.02, 0.0)]
    assert groups() == [pytest.approx(pair) for pair in expected]


def test_decay_vectors_adds_weight_decay_to_vectors() -> None:
    expected = [(0.2, 0.01), (0.2, 0.01), (0.01, 0.2), (0.02, 0.1)]
    assert groups(decay_vectors=True) == [pytest.approx(pair) for pair in expected]


def test_weight_decay_can_have_its_own_scale() -> None:
    actual = groups(decay_scales={"plain": 3.0, "scaled": 5.0})
    expected = [(0.2, 0.03), (0.2, 0.0), (0.01, 0.05), (0.02, 0.0)]
    assert actual == [pytest.approx(pair) for pair in expected]


def test_a_branch_that_is_not_trained_is_not_decayed() -> None:
    (matrix, vector) = parameter_groups(
        {"a": nn.Linear(2, 2)}, lr=0.1, weight_decay=0.1, lr_scales={"a": 0}, decay_vectors=True
    )
    assert matrix["lr"] == matrix["weight_decay"] == vector["lr"] == vector["weight_decay"] == 0


@pytest.mark.parametrize("scale", [-1, float("nan"), 1e7, "1", None], ids=repr)
def test_invalid_scales_are_refused(scale: Any) -> None:
    with pytest.raises(UserError, match=r"model\.branches\.a\.l2="):
        check_scales("l2", {"a": scale}, ["a"])
    with pytest.raises(UserError, match="l2 of b: the model only has a"):
        check_scales("l2", {"b": 1.0}, ["a"])
