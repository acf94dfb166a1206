"""The names of encoders, and which of them checkpoints and users may use."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from genre_lightning.inputs.encoders import table
from genre_lightning.inputs.encoders.images import ImageEncoder, build_image_module
from genre_lightning.inputs.encoders.opening import open_encoder
from genre_lightning.inputs.encoders.spec import EncoderError, Gguf, Hub, Packaged
from genre_lightning.inputs.encoders.table import ENCODERS, resolve, resolve_from_checkpoint
from genre_lightning.inputs.encoders.weights import hash_weights
from tests.inputs.encoders.opened import COMMIT, OTHER_HASH, copy_minilm, image_encoder, posters


@pytest.mark.parametrize(
    "size", [[8, 64], [64], [64, 64, 64], [64, 2048], [64.0, 64], 64, "ab", [True, 64]], ids=str
)
def test_invalid_sizes_are_refused(size: Any):
    with pytest.raises(EncoderError, match=r"the size of posters is \[H, W\]"):
        resolve("lite2", size=size)


def test_module_with_random_weights_is_reproducible_and_trainable():
    module = build_image_module(ENCODERS["lite0"], seed=3)
    again = build_image_module(ENCODERS["lite0"], seed=3)
    assert module.training
    assert all(parameter.requires_grad for parameter in module.parameters())
    for name, value in module.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    module.load_state_dict(image_encoder("lite0").module.state_dict())


def test_entries_of_the_table_are_consistent():
    for name, spec in ENCODERS.items():
        assert spec.name == name
        assert spec.width is not None
        assert spec.licence is not None
        pinned = isinstance(spec.origin, (Packaged, Gguf)) or getattr(spec.origin, "revision", None)
        assert (spec.sha256 is not None) == bool(pinned)
        assert (spec.size is not None) == (spec.kind == "image")


@pytest.mark.parametrize("sha256", [None, 3, "", "random", "random-x", "A" * 64, OTHER_HASH + "0"])
def test_invalid_hashes_of_checkpoints_are_refused(sha256: Any):
    with pytest.raises(EncoderError, match="of the weights of encoder 'clip'"):
        resolve_from_checkpoint("clip", sha256)


@pytest.mark.parametrize(
    "name",
    [
        "timm:resnet18.a1_in1k",
        f"st:sentence-transformers/all-MiniLM-L6-v2@{COMMIT}",
        "folder:/etc",
        "folder:model",
        "hf-hub:someone/model",
        "lite9",
        "",
        3,
        None,
        ["lite2"],
    ],
    ids=str,
)
def test_checkpoints_name_only_encoders_of_the_table(name: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(table, "import_library", lambda *_: pytest.fail("imports a library"))
    with pytest.raises(EncoderError, match=r"name the encoder yourself|an encoder must be a name"):
        resolve_from_checkpoint(name, OTHER_HASH)
    with pytest.raises(EncoderError):
        open_encoder(name)


def test_checkpoints_can_name_an_encoder_that_the_user_allows(tmp_path: Path):
    folder = copy_minilm(tmp_path)
    mine = resolve(f"folder:{folder}", trusted=True)
    assert str(tmp_path) not in mine.name
    with pytest.raises(EncoderError, match=rf"yourself to use it \(you have named {mine.name}\)$"):
        resolve_from_checkpoint("folder:another", OTHER_HASH, allow={mine.name: mine})
    spec = resolve_from_checkpoint(mine.name, hash_weights(folder), allow={mine.name: mine})
    encoder = open_encoder(spec)
    assert (encoder.name, encoder.width) == (f"folder:{folder.name}", 384)
    with pytest.raises(EncoderError, match=f"{ENCODERS['minilm'].sha256}.*{OTHER_HASH}"):
        open_encoder(resolve_from_checkpoint(mine.name, OTHER_HASH, allow={mine.name: mine}))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:hf-hub:someone/model", "not the name of one of timm's own"),
        ("timm:hf_hub:someone/model", "not the name of one of timm's own"),
        ("timm:local-dir:/tmp/model", "not the name of one of timm's own"),
        ("timm:../model", "not the name of one of timm's own"),
        (
            "timm:resnet18.a9_in1k",
            "timm has no pretrained model of that name; did you mean resnet18",
        ),
        ("timm:gcvit_base.in1k", "no safetensors at the hub: pass weights=FILE"),
        ("hf-hub:someone/model", "unknown encoder"),
        ("minlm", "none of .*minilm.*, and timm has no pretrained model of that name"),
        ("st:sentence-transformers/all-MiniLM-L6-v2", "40 hex digits of a commit"),
        ("st:sentence-transformers/all-MiniLM-L6-v2@main", "40 hex digits of a commit"),
        (f"st:../..@{COMMIT}", "40 hex digits of a commit"),
        ("folder:/nowhere", "not a sentence-transformers model"),
    ],
    ids=lambda value: value,
)
def test_invalid_names_from_users_are_refused(name: str, message: str):
    with pytest.raises(EncoderError, match=message):
        resolve(name, trusted=True)


def test_timm_model_named_by_a_user():
    spec = resolve("timm:resnet18", trusted=True)
    assert spec.name == "timm:resnet18.a1_in1k"
    assert spec.origin == Hub("timm/resnet18.a1_in1k", file="model.safetensors")
    assert (spec.size, spec.kind, spec.width, spec.sha256) == ((224, 224), "image", None, None)
    encoder = open_encoder(replace(spec, size=(96, 64)), random_weights=True)
    assert isinstance(encoder, ImageEncoder)
    assert encoder.width == 512
    pixels = posters(encoder, 1)
    torch.testing.assert_close(encoder.head(encoder.feature_map(pixels)), encoder.embed(pixels))
