"""Image encoders compared with the networks that their weights come from, and refused input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from genre_lightning.inputs.colours import Colours
from genre_lightning.inputs.encoders import images
from genre_lightning.inputs.encoders.images import ImageEncoder, rename_lite
from genre_lightning.inputs.encoders.opening import open_encoder
from genre_lightning.inputs.encoders.spec import EncoderError, Hub, Local
from genre_lightning.inputs.encoders.table import ENCODERS, resolve
from genre_lightning.inputs.encoders.weights import find_weights, hash_weights
from tests.inputs.encoders.opened import IMAGES, LITES, TOWERS, image_encoder, posters


@pytest.mark.parametrize("name", LITES)
def test_lite_matches_the_network_of_its_package(name: str):
    from efficientnet_lite_pytorch import EfficientNet

    encoder = image_encoder(name)
    reference = EfficientNet.from_name(f"efficientnet-{name}").eval()
    state = torch.load(find_weights(ENCODERS[name]), weights_only=True)
    reference.load_state_dict(state)
    # The padding of this network is fixed for the size it was trained at.
    size = (reference.input_image_size, reference.input_image_size)
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = reference.extract_features(x)
        torch.testing.assert_close(
            encoder.module.forward_features(x),  # type: ignore[operator]
            expected,
            # Wrong padding changes outputs by more than 0.1; rounding depends on what ran before.
            atol=1e-4,
            rtol=0,
        )
        torch.testing.assert_close(encoder.module(x), expected.mean((2, 3)), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", LITES)
def test_lite_names_map_one_to_one(name: str):
    import timm

    state = torch.load(find_weights(ENCODERS[name]), weights_only=True)
    module = timm.create_model(f"tf_efficientnet_{name}")
    renamed = rename_lite(state, module)
    assert len(renamed) == len(state)
    expected = module.state_dict()
    assert {key: value.shape for key, value in renamed.items()} == {
        key: value.shape for key, value in expected.items()
    }


def test_lite_weights_load_with_wrong_padding_but_give_other_vectors():
    import timm

    state = torch.load(find_weights(ENCODERS["lite0"]), weights_only=True)
    wrong: Any = timm.create_model("efficientnet_lite0").eval()
    wrong.load_state_dict(rename_lite(state, wrong))
    wrong.reset_classifier(0)
    encoder = image_encoder("lite0")
    x = encoder.normalise(posters(encoder, 1))
    with torch.no_grad():
        assert (wrong(x) - encoder.module(x)).abs().max() > 0.1


@pytest.mark.parametrize("name", IMAGES)
def test_image_encoder_matches_the_table(name: str):
    spec = ENCODERS[name]
    encoder = image_encoder(name)
    assert (encoder.name, encoder.width, encoder.size) == (name, spec.width, spec.size)
    assert spec.mean is not None and spec.std is not None
    assert encoder.colours == Colours(spec.mean, spec.std)
    assert encoder.sha256 == ("random-0" if name in TOWERS else spec.sha256)
    assert not encoder.module.training
    assert not any(parameter.requires_grad for parameter in encoder.module.parameters())
    vectors = encoder.embed(posters(encoder))
    assert (vectors.shape, vectors.dtype) == ((3, spec.width), torch.float32)
    assert bool(torch.isfinite(vectors).all())
    assert vectors.std() > 0
    assert encoder.embed(posters(encoder, 0)).shape == (0, spec.width)


@pytest.mark.parametrize("name", TOWERS)
def test_transformer_entries_match_timm(name: str):
    import timm

    spec = ENCODERS[name]
    assert spec.architecture in timm.list_models(pretrained=True)
    config: Any = timm.get_pretrained_cfg(spec.architecture)
    assert spec.origin == Hub(config.hf_hub_id, file="model.safetensors")
    assert (spec.mean, spec.std) == (config.mean, config.std)
    assert spec.interpolation == config.interpolation
    assert str(spec.licence).lower() == config.license


@pytest.mark.parametrize("name", IMAGES)
def test_normalise(name: str):
    encoder = image_encoder(name)
    pixels = posters(encoder, 2)
    colours = encoder.colours
    scaled = pixels.double().permute(0, 3, 1, 2) / 255
    expected = torch.stack(
        [(scaled[:, c] - colours.mean[c]) / colours.std[c] for c in range(3)], dim=1
    )
    for layout in (pixels, pixels.permute(0, 3, 1, 2).contiguous(), pixels.numpy()):
        torch.testing.assert_close(
            encoder.normalise(layout).double(), expected, atol=2e-6, rtol=1e-5
        )


def test_lite_normalises_as_in_its_training():
    encoder = image_encoder("lite2")
    pixels = posters(encoder, 1)
    expected = (pixels.double().permute(0, 3, 1, 2) - 127) / 128
    torch.testing.assert_close(encoder.normalise(pixels).double(), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "pixels",
    [
        torch.zeros((1, 384, 256, 3)),
        torch.zeros((384, 256, 3), dtype=torch.uint8),
        torch.zeros((1, 256, 384, 3), dtype=torch.uint8),
        torch.zeros((1, 384, 256, 4), dtype=torch.uint8),
    ],
    ids=["floats", "one poster", "transposed", "four channels"],
)
def test_normalise_refuses_invalid_pixels(pixels: Tensor):
    with pytest.raises(ValueError, match=r"pixels must be|takes posters of 384 x 256"):
        image_encoder("lite2").normalise(pixels)


@pytest.mark.parametrize("name", ["lite0", "clip"])
def test_a_posters_vector_does_not_depend_on_its_batch(name: str, monkeypatch: pytest.MonkeyPatch):
    encoder = image_encoder(name)
    pixels = posters(encoder, 5)
    alone = torch.cat([encoder.embed(pixels[i : i + 1]) for i in range(5)])
    for batch in (2, 5):
        monkeypatch.setattr(images, "CPU_POSTERS", batch)
        torch.testing.assert_close(encoder.embed(pixels), alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", IMAGES)
def test_head_of_feature_map_equals_embed(name: str):
    encoder = image_encoder(name)
    pixels = posters(encoder, 2)
    features = encoder.feature_map(pixels)
    height, width = encoder.size
    stride = {"clip": 32, "siglip": 16, "dinov2": 14}.get(name, 32)
    grid = (-(-height // stride), -(-width // stride))
    assert features.map.shape[0] == 2
    assert features.map.shape[2:] == grid
    features.map.requires_grad_()
    vectors = encoder.head(features)
    torch.testing.assert_close(vectors, encoder.embed(pixels), atol=1e-5, rtol=1e-5)
    # Every position contributes to the vector, so heat maps can be drawn on the poster.
    (gradient,) = torch.autograd.grad(vectors.square().sum(), features.map)
    assert bool((gradient.abs().sum(1) > 0).all())


def test_feature_map_of_a_transformer_keeps_the_posters_layout():
    encoder = image_encoder("dinov2")
    pixels = posters(encoder, 1)
    changed = pixels.clone()
    changed[:, :14, -14:] = 255 - changed[:, :14, -14:]  # the patch at the top right
    difference = (encoder.feature_map(changed).map - encoder.feature_map(pixels).map).abs().sum(1)
    assert int(difference.flatten().argmax()) == encoder.size[1] // 14 - 1


def test_vectors_can_be_used_with_gradients():
    encoder = image_encoder("lite0")
    head = torch.nn.Linear(encoder.width, 2)
    head(encoder.embed(posters(encoder, 1))).sum().backward()
    assert head.weight.grad is not None


def test_another_size():
    spec = resolve("lite0", size=[96, 64])
    encoder = open_encoder(spec)
    assert isinstance(encoder, ImageEncoder)
    assert encoder is not open_encoder("lite0")
    assert encoder.embed(posters(encoder)).shape == (3, 1280)
    assert open_encoder(resolve("dinov2", size=(56, 28)), random_weights=True).width == 384
    with pytest.raises(EncoderError, match=r"'dinov2' doesn't take posters of \(50, 50\)"):
        open_encoder(resolve("dinov2", size=(50, 50)), random_weights=True)


def test_random_weights_leave_the_global_generator_alone():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first = open_encoder("siglip", random_weights=True, seed=11)
    assert torch.equal(torch.rand(3), expected)
    assert first.sha256 == "random-11"
    assert first is not open_encoder("siglip", random_weights=True)


@pytest.mark.parametrize(
    "name", ["convnext_atto", "swin_tiny_patch4_window7_224", "mobilenetv3_small_050"]
)
def test_other_architectures(name: str):
    encoder = open_encoder(resolve(f"timm:{name}", trusted=True), random_weights=True)
    assert isinstance(encoder, ImageEncoder)
    pixels = posters(encoder, 1)
    vectors = encoder.embed(pixels)
    assert vectors.shape == (1, encoder.width)
    features = encoder.feature_map(pixels)
    assert features.map.shape[2:] == (7, 7)
    torch.testing.assert_close(encoder.head(features), vectors, atol=1e-5, rtol=1e-5)


def test_architecture_without_a_feature_map_is_refused():
    encoder = open_encoder(
        resolve("timm:eva02_tiny_patch14_224", trusted=True), random_weights=True
    )
    assert isinstance(encoder, ImageEncoder)
    assert encoder.embed(posters(encoder, 1)).shape == (1, encoder.width)
    with pytest.raises(EncoderError, match="has no feature map to draw"):
        encoder.feature_map(posters(encoder, 1))


@pytest.mark.parametrize("classes", [None, 0, 7], ids=["as timm", "no head", "another head"])
def test_weights_file_of_a_user(tmp_path: Path, classes: int | None):
    import timm
    from safetensors.torch import save_file

    kwargs: dict[str, Any] = {} if classes is None else {"num_classes": classes}
    module: Any = timm.create_model("resnet18", **kwargs).eval()
    save_file(module.state_dict(), tmp_path / "mine.safetensors")
    spec = resolve("timm:resnet18", trusted=True, weights=tmp_path / "mine.safetensors")
    assert spec.origin == Local(str(tmp_path / "mine.safetensors"))
    assert str(tmp_path) not in spec.name
    encoder = open_encoder(spec)
    assert isinstance(encoder, ImageEncoder)
    assert encoder.sha256 == hash_weights(tmp_path / "mine.safetensors")
    pixels = posters(encoder, 1)
    with torch.no_grad():
        expected = module.forward_features(encoder.normalise(pixels)).mean((2, 3))
    torch.testing.assert_close(encoder.embed(pixels), expected, atol=1e-5, rtol=1e-5)


def test_position_embeddings_are_resized_as_by_timm(tmp_path: Path):
    import timm
    from safetensors.torch import save_file

    module = timm.create_model("vit_small_patch14_dinov2.lvd142m", img_size=(56, 56))
    save_file(module.state_dict(), tmp_path / "mine.safetensors")
    spec = resolve(
        "timm:vit_small_patch14_dinov2",
        trusted=True,
        weights=tmp_path / "mine.safetensors",
        size=(84, 56),
    )
    encoder = open_encoder(spec)
    assert isinstance(encoder, ImageEncoder)
    assert encoder.feature_map(posters(encoder, 1)).map.shape[2:] == (6, 4)


def test_weights_file_that_does_not_fit_is_refused(tmp_path: Path):
    import timm
    from safetensors.torch import save_file

    path = tmp_path / "other.safetensors"
    state = timm.create_model("resnet18").state_dict()
    del state["layer4.1.conv2.weight"]
    save_file(state, path)
    with pytest.raises(
        EncoderError, match=r"other.safetensors does not hold the weights of resnet18"
    ):
        open_encoder(resolve("timm:resnet18", trusted=True, weights=path))
    (tmp_path / "pickle.pth").write_bytes(b"x")
    with pytest.raises(EncoderError, match="is not a safetensors file"):
        resolve("timm:resnet18", trusted=True, weights=tmp_path / "pickle.pth")
    with pytest.raises(EncoderError, match="only timm:NAME takes weights"):
        resolve("lite2", trusted=True, weights=path)
