"""Ensembles of copies, for networks whose class has no members argument."""

from __future__ import annotations

import pytest
import torch

from genre_lightning.inputs.input import Input
from genre_lightning.inputs.part import Part
from genre_lightning.inputs.pixels import PixelsInput
from genre_lightning.models.fusion import Fusion, num_members
from genre_lightning.models.members import Ensemble
from genre_lightning.models.networks import build_network, complete_description, sketch_network

SIZE = 16


def make_fusion(members: int) -> Fusion:
    inputs: dict[str, Input] = {"poster": PixelsInput(size=SIZE)}
    branches = {"poster": {"name": "poster_resnet", "widths": [4], "blocks": [1]}}
    return build_network(3, branches, inputs, members=members)


def test_copies_have_their_own_weights_and_are_averaged():
    torch.manual_seed(0)
    network = make_fusion(4).eval()
    ensemble = network.branches["poster"]
    assert isinstance(ensemble, Ensemble)
    assert num_members(ensemble) == 4
    stems = [copy.get_parameter("stem.0.weight") for copy in ensemble.networks]
    assert not torch.equal(stems[0], stems[1])
    pixels = torch.randn(5, 3, SIZE, SIZE)
    per_member = ensemble(pixels=pixels, per_member=True)
    expected = torch.stack([copy(pixels) for copy in ensemble.networks])
    assert torch.equal(per_member, expected)
    parts = {"poster": Part(torch.arange(5), {"pixels": pixels})}
    assert torch.allclose(network(parts, 5), expected.mean(dim=0))
    by_fold = network(parts, 5, torch.tensor([0, 1, 2, 3, -1]))
    assert torch.allclose(by_fold[:4], expected[torch.arange(4), torch.arange(4)])
    assert torch.allclose(by_fold[4], expected[:, 4].mean(dim=0))


def test_a_single_member_is_the_network_itself():
    network = make_fusion(1)
    assert type(network.branches["poster"]).__name__ == "PosterResNet"
    assert "members" not in network.description["branches"]["poster"]


def test_an_ensemble_is_rebuilt_from_its_description():
    description = make_fusion(2).description
    assert complete_description(**description) == description
    assert sketch_network(description).state_dict().keys() == make_fusion(2).state_dict().keys()


def test_starting_from_priors_zeroes_the_bias_of_every_copy():
    network = make_fusion(2)
    network.start_from_priors([1, 2, 3], 10)
    ensemble = network.branches["poster"]
    assert isinstance(ensemble, Ensemble)
    assert all(not copy.get_parameter("head.bias").any() for copy in ensemble.networks)


@pytest.mark.parametrize("members", [0, 257, 2.0, True, "2"])
def test_an_invalid_number_of_members_is_refused(members: object):
    network = {"name": "poster_resnet", "size": [SIZE, SIZE], "members": members}
    with pytest.raises(ValueError, match="members"):
        complete_description(3, {"poster": network})
