from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from genre_lightning.checkpoint.model import TrainedModel, load_model
from genre_lightning.explain.explainer import ImageExplanation
from genre_lightning.explain.table import explain_branch
from genre_lightning.models.members import Ensemble
from genre_lightning.models.poster_resnet import PosterResNet
from tests.explain.conftest import POSTER, draw_poster, normalised


def heat_maps(
    model: TrainedModel, image: np.ndarray, genres: Sequence[int], branch: str = POSTER
) -> np.ndarray:
    found = explain_branch(model, branch, image)
    assert isinstance(found, ImageExplanation) and found.method == "Grad-CAM"
    return found.heat_maps(genres)


def resnet(model: TrainedModel) -> PosterResNet:
    network = model.network.branches[POSTER]
    assert isinstance(network, PosterResNet)
    return network


def test_heat_maps_equal_class_activation_maps(tiny: TrainedModel):
    # With pooling and one linear layer on top, Grad-CAM is the map of Zhou et al. 2016: the
    # features weighted by the genre's row of the last layer.
    network = resnet(tiny)
    pixels = draw_poster()
    heat = heat_maps(tiny, pixels, [2, 0])
    assert heat.shape == (2, 32, 32)
    assert heat.dtype == np.float32
    features = network.stages(network.stem(normalised(pixels)))[0].detach()
    for found, genre in zip(heat, [2, 0], strict=True):
        weights = network.head.weight[genre].detach()
        small = torch.relu((features * weights[:, None, None]).sum(0))
        big = nn.functional.interpolate(small[None, None], (32, 32), mode="bilinear")[0, 0]
        np.testing.assert_allclose(found, (big / big.max().clamp(min=1e-9)).numpy(), atol=1e-5)
    assert heat.any()


def test_heat_maps_use_the_deepest_block_with_enough_places(make_checkpoint: Callable[..., Path]):
    # After the three stages, 32 x 32 pixels are 16 x 16, 8 x 8 and 4 x 4 places.
    model = load_model(make_checkpoint(poster={"widths": [4, 6, 8], "blocks": [1, 1, 1]}, seed=5))
    network = resnet(model)
    pixels = draw_poster()
    features = network.stages[:2](network.stem(normalised(pixels))).detach().requires_grad_()
    assert features.shape[2:] == (8, 8)
    logits = network.head(network.stages[2](features).mean(dim=(2, 3)))
    num_nonzero = 0
    for genre in range(4):
        (gradient,) = torch.autograd.grad(logits[0, genre], features, retain_graph=True)
        weights = gradient[0].mean(dim=(1, 2))
        small = torch.relu((features[0].detach() * weights[:, None, None]).sum(0))
        big = nn.functional.interpolate(small[None, None], (32, 32), mode="bilinear")[0, 0]
        found = heat_maps(model, pixels, [genre])[0]
        np.testing.assert_allclose(found, (big / big.max().clamp(min=1e-9)).numpy(), atol=1e-5)
        num_nonzero += bool(found.any())
    assert num_nonzero > 0


def test_the_heat_map_of_members_is_that_of_their_mean(make_checkpoint: Callable[..., Path]):
    # The branch's logit is the mean over members, and so is the map before clipping and scaling.
    model = load_model(
        make_checkpoint(poster={"widths": [4, 8], "blocks": [1, 1], "members": 3}, seed=1)
    )
    ensemble = model.network.branches[POSTER]
    assert isinstance(ensemble, Ensemble)
    pixels = draw_poster()
    expected = torch.zeros(4, 8, 8)
    for network in ensemble.networks:
        assert isinstance(network, PosterResNet)
        features = network.stages(network.stem(normalised(pixels)))[0].detach()
        expected += torch.einsum("gc,chw->ghw", network.head.weight.detach(), features)
    big = nn.functional.interpolate(torch.relu(expected)[:, None], (32, 32), mode="bilinear")[:, 0]
    highest = big.amax(dim=(1, 2), keepdim=True).clamp(min=1e-9)
    np.testing.assert_allclose(
        heat_maps(model, pixels, range(4)), (big / highest).numpy(), atol=1e-5
    )
    assert (expected > 0).any() and (expected < 0).any()


def test_a_genre_without_evidence_has_a_heat_map_of_zeros(tiny_checkpoint: Path):
    model = load_model(tiny_checkpoint)
    with torch.no_grad():
        resnet(model).head.weight[1] = -1.0  # features are at least zero
    heat = heat_maps(model, draw_poster(), [0, 1])
    assert heat[0].max() == pytest.approx(1.0)
    assert not heat[1].any()


def test_heat_maps_are_thread_safe(tiny: TrainedModel):
    expected = [heat_maps(tiny, draw_poster(seed), [0, 1]) for seed in range(8)]
    found: dict[int, np.ndarray] = {}

    def work(seed: int) -> None:
        found[seed] = heat_maps(tiny, draw_poster(seed % 8), [0, 1])

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(24):
        np.testing.assert_allclose(found[seed], expected[seed % 8], atol=1e-6)


def test_heat_maps_have_the_size_of_the_decoded_poster(tiny: TrainedModel, stacked: TrainedModel):
    heat = heat_maps(tiny, draw_poster(size=(90, 60)), [0, 1, 2, 3])
    assert heat.shape == (4, 32, 32)
    assert heat.min() >= 0
    assert heat.max() <= 1
    assert heat_maps(tiny, draw_poster(), []).shape == (0, 32, 32)
    assert heat_maps(stacked, draw_poster(), [1], "other_eye").shape == (1, 32, 32)


def test_two_branches_on_one_poster_have_their_own_heat_maps(stacked: TrainedModel):
    image = draw_poster()
    one, other = (heat_maps(stacked, image, [0, 1, 2, 3], name) for name in (POSTER, "other_eye"))
    assert one.any() and other.any() and not np.allclose(one, other, atol=0.1)


def test_heat_maps_work_in_inference_mode(tiny: TrainedModel):
    expected = heat_maps(tiny, draw_poster(), [0])
    with torch.inference_mode():
        np.testing.assert_array_equal(heat_maps(tiny, draw_poster(), [0]), expected)


@pytest.mark.parametrize("genre", [4, -1])
def test_an_invalid_genre_is_refused(tiny: TrainedModel, genre: int):
    with pytest.raises(IndexError, match=f"genre {genre} of 4"):
        heat_maps(tiny, draw_poster(), [0, genre])
