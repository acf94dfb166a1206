"""The table of explainers, and the errors for branches that are not in it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from genre_lightning.checkpoint.model import TrainedModel, load_model
from genre_lightning.errors import InputError
from genre_lightning.explain.explainer import ImageExplanation, TextExplanation
from genre_lightning.explain.parts import score_parts
from genre_lightning.explain.table import EXPLAINERS, explain_branch, find_explainer
from genre_lightning.inputs.table import INPUTS
from genre_lightning.models.networks import NETWORKS
from tests.explain.conftest import POSTER, TITLE, draw_poster


class Unknown(nn.Module):
    """A network without an explainer."""

    def forward(self, **numbers: Tensor) -> Tensor:
        return torch.ones(1, 4)


@pytest.fixture
def unexplained(tiny_checkpoint: Path) -> TrainedModel:
    """A model whose poster branch has no explainer."""
    model = load_model(tiny_checkpoint)
    model.network.branches[POSTER] = Unknown()
    return model


def test_a_branch_without_an_explainer_is_refused_by_name(unexplained: TrainedModel):
    assert find_explainer(unexplained, POSTER) is None
    with pytest.raises(TypeError, match=f"branch {POSTER}: a Unknown on pixels can't be explained"):
        explain_branch(unexplained, POSTER, draw_poster())
    assert isinstance(explain_branch(unexplained, TITLE, "Heat"), TextExplanation)


def test_a_branch_without_an_explainer_still_has_its_part(unexplained: TrainedModel):
    parts = score_parts(unexplained, {"title": "Heat", "poster": draw_poster()})
    np.testing.assert_array_equal(parts.branches[POSTER], np.ones(4))
    np.testing.assert_array_equal(parts.bias, score_parts(unexplained, {"title": "Heat"}).bias)


def test_a_subclass_does_not_inherit_an_explainer(tiny: TrainedModel):
    model = copy.copy(tiny)
    network = copy.copy(tiny.network)
    network._modules = dict(network._modules)
    kind = type(tiny.network.branches[TITLE])
    other = copy.copy(tiny.network.branches[TITLE])
    other.__class__ = type("Other", (kind,), {})
    network._modules["branches"] = nn.ModuleDict({**tiny.network.branches, TITLE: other})
    object.__setattr__(model, "network", network)
    with pytest.raises(TypeError, match="a Other on terms"):
        explain_branch(model, TITLE, "Heat")


@pytest.mark.parametrize("name", ["nothing", "title", "__class__", ""])
def test_an_unknown_branch_is_refused(tiny: TrainedModel, name: str):
    with pytest.raises(ValueError, match=f"no branch '{name}'; it has {TITLE}, {POSTER}"):
        explain_branch(tiny, name, "Heat")


@pytest.mark.parametrize("branch", [TITLE, POSTER])
@pytest.mark.parametrize("value", [None, ""])
def test_an_absent_column_has_no_explanation(tiny: TrainedModel, branch: str, value: str | None):
    assert explain_branch(tiny, branch, value) is None


def test_a_poster_that_cannot_be_read_is_refused(tiny: TrainedModel, tmp_path: Path):
    for bad in (b"no picture", tmp_path / "none.png"):
        with pytest.raises(InputError):
            explain_branch(tiny, POSTER, bad)


def test_explaining_does_not_change_the_model(tiny_checkpoint: Path):
    model = load_model(tiny_checkpoint)
    before = {name: value.clone() for name, value in model.network.state_dict().items()}
    found = explain_branch(model, POSTER, draw_poster())
    assert isinstance(found, ImageExplanation)
    found.heat_maps([0])
    explain_branch(model, TITLE, "Heat")
    after = model.network.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.grad is None for parameter in model.network.parameters())


def test_the_table_lists_known_inputs_and_networks():
    networks = {network.factory for network in NETWORKS.values()}
    for (kind, of, network), explainer in EXPLAINERS.items():
        assert kind in INPUTS and network in networks and of in ("text", "poster")
        assert explainer.gives in ("words", "heat map") and explainer.method


@pytest.mark.parametrize("gives", ["words", "heat map"])
def test_explanations_are_of_the_kind_that_the_explainer_declares(
    gives: str, make_checkpoint: Callable[..., Path]
):
    model = load_model(make_checkpoint())
    values: dict[str, Any] = {"words": "Heat (1995)", "heat map": draw_poster()}
    kinds = {"words": TextExplanation, "heat map": ImageExplanation}
    for branch in model.inputs:
        explainer = find_explainer(model, branch)
        assert explainer is not None
        if explainer.gives == gives:
            found = explain_branch(model, branch, values[gives])
            assert found is not None and isinstance(found, kinds[gives])
            assert found.method == explainer.method
