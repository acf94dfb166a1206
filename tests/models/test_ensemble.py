"""Networks whose class has no members are copied."""

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


def built(members: int) -> Fusion:
    inputs: dict[str, Input] = {"poster": PixelsInput(size=SIZE)}
    branches = {"poster": {"name": "poster_resnet", "widths": [4], "blocks": [1]}}
    return build_network(3, branches, inputs, members=members)


def test_each_copy_has_weights_of_its_own_and_their_mean_predicts():
    torch.manual_seed(0)
    network = built(4).eval()
    ensemble = network.branches["poster"]
    assert isinstance(ensemble, Ensemble)
    assert num_members(ensemble) == 4
    stems = [one.get_parameter("stem.0.weight") for one in ensemble.networks]
    assert not torch.equal(stems[0], stems[1])
    pixels = torch.randn(5, 3, SIZE, SIZE)
    per_member = ensemble(pixels=pixels, per_member=True)
    single = torch.stack([one(pixels) for one in ensemble.networks])
    assert torch.equal(per_member, single)
    parts = {"poster": Part(torch.arange(5), {"pixels": pixels})}
    assert torch.allclose(network(parts, 5), single.mean(dim=0))
    folds = network(parts, 5, torch.tensor([0, 1, 2, 3, -1]))
    assert torch.allclose(folds[:4], single[torch.arange(4), torch.arange(4)])
    assert torch.allclose(folds[4], single[:, 4].mean(dim=0))


def test_one_copy_is_the_network_itself_and_needs_no_word():
    network = built(1)
    assert type(network.branches["poster"]).__name__ == "PosterResNet"
    assert "members" not in network.description["branches"]["poster"]


def test_copies_are_rebuilt_from_their_description():
    description = built(2).description
    assert complete_description(**description) == description
    assert sketch_network(description).state_dict().keys() == built(2).state_dict().keys()


def test_priors_leave_every_copy_without_a_bias():
    network = built(2)
    network.start_from_priors([1, 2, 3], 10)
    ensemble = network.branches["poster"]
    assert isinstance(ensemble, Ensemble)
    assert all(not one.get_parameter("head.bias").any() for one in ensemble.networks)


@pytest.mark.parametrize("members", [0, 257, 2.0, True, "2"])
def test_an_odd_number_of_members_is_refused(members: object):
    network = {"name": "poster_resnet", "size": [SIZE, SIZE], "members": members}
    with pytest.raises(ValueError, match="members"):
        complete_description(3, {"poster": network})
