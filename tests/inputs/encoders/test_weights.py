"""Locating the weights of encoders, and hashing them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genre_lightning.inputs.encoders.opening import open_encoder
from genre_lightning.inputs.encoders.spec import EncoderError, Local, Packaged
from genre_lightning.inputs.encoders.table import ENCODERS, resolve, resolve_from_checkpoint
from genre_lightning.inputs.encoders.texts import TextEncoder
from genre_lightning.inputs.encoders.weights import find_weights, hash_weights, weights_sha256
from tests.inputs.encoders.opened import COMMIT, OTHER_HASH, TEXTS, TOWERS, copy_minilm
from tests.inputs.encoders.small_mpnet import use_small_mpnet, write_small_mpnet


@pytest.mark.parametrize("name", ["lite0", "lite2", "minilm"])
def test_packaged_weights_have_the_hash_of_the_table(name: str):
    spec = ENCODERS[name]
    assert hash_weights(find_weights(spec)) == spec.sha256 == weights_sha256(spec)


def test_packaged_language_model_has_the_hash_of_the_table():
    spec = ENCODERS["gemma"]
    assert weights_sha256(replace(spec, sha256=None)) == spec.sha256


def test_hash_of_a_folder_ignores_files_without_effect_on_vectors(tmp_path: Path):
    folder = copy_minilm(tmp_path)
    before = hash_weights(folder)
    assert before == ENCODERS["minilm"].sha256
    (folder / "README.md").write_text("another", "utf-8")
    assert hash_weights(folder) == before
    settings = folder / "sentence_bert_config.json"
    settings.write_text(settings.read_text("utf-8").replace("256", "128"), "utf-8")
    assert hash_weights(folder) != before


@pytest.mark.parametrize("name", TOWERS)
def test_a_checkpoint_starts_no_download(name: str, monkeypatch: pytest.MonkeyPatch):
    import huggingface_hub

    only_local: list[bool] = []

    def download(local_files_only: bool, **_: Any) -> str:
        only_local.append(local_files_only)
        raise FileNotFoundError

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", pytest.fail)
    with pytest.raises(EncoderError, match=f"{name}.*not on this machine.*hf download timm/vit_"):
        open_encoder(resolve_from_checkpoint(name, OTHER_HASH))
    assert only_local == [True]


def test_failed_download_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    # The test suite blocks network connections.
    with pytest.raises(
        EncoderError,
        match=r"'dinov2' are not on this machine and can't be downloaded from timm/vit_small.*: "
        "connect to it once, or name a folder that holds them in GENRE_LIGHTNING_ENCODERS",
    ):
        open_encoder(resolve("dinov2", trusted=True))
    with pytest.raises(EncoderError, match=r"connect to it once, or pass weights=FILE"):
        open_encoder(resolve("timm:test_vit.r160_in1k", trusted=True))
    # org/name is opened by a test below, and encoders stay open for the whole process.
    with pytest.raises(EncoderError, match=r"can't be downloaded from org/other .*: connect to it"):
        open_encoder(resolve(f"st:org/other@{COMMIT}", trusted=True))


def test_missing_weights_are_named(tmp_path: Path):
    spec = replace(ENCODERS["minilm"], origin=Local(str(tmp_path / "gone")))
    with pytest.raises(EncoderError, match=r"the weights of encoder 'minilm' are not at .*gone"):
        find_weights(spec)
    spec = replace(ENCODERS["lite2"], origin=Packaged("numpy", "numpy", "models/none.pth"))
    with pytest.raises(EncoderError, match=r"package numpy lacks models/none.pth"):
        find_weights(spec)


def test_local_folder_replaces_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = write_small_mpnet(tmp_path / "mpnet")
    sha256 = hash_weights(folder)
    monkeypatch.setenv("GENRE_LIGHTNING_ENCODERS", str(tmp_path))
    for spec in (resolve("mpnet", trusted=True), resolve("mpnet")):
        assert find_weights(spec) == folder
        # Weights other than those of all-mpnet-base-v2 are refused.
        with pytest.raises(EncoderError, match=f"{sha256}.*{ENCODERS['mpnet'].sha256}"):
            open_encoder(spec)
    use_small_mpnet(folder, monkeypatch)
    encoder = open_encoder(resolve_from_checkpoint("mpnet", sha256, stages=True))
    assert isinstance(encoder, TextEncoder)
    assert (encoder.name, encoder.sha256, encoder.width) == ("mpnet", sha256, 64)
    from sentence_transformers import SentenceTransformer

    expected = SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(encoder.embed(TEXTS)[:, :16].numpy(), expected, atol=1e-5)
    # The weights of vision transformers are single files.
    (tmp_path / "clip.safetensors").touch()
    assert find_weights(resolve("clip")) == tmp_path / "clip.safetensors"
    with pytest.raises(EncoderError, match="the weights of encoder 'siglip' are not on this"):
        find_weights(resolve("siglip"))


def test_weights_in_the_hubs_cache_need_no_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import huggingface_hub

    folder = copy_minilm(tmp_path)
    kwargs_seen: dict[str, Any] = {}

    def snapshot(**kwargs: Any) -> str:
        kwargs_seen.update(kwargs)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    encoder = open_encoder(resolve(f"st:org/name@{COMMIT}", trusted=True))
    assert encoder.width == 384
    assert (kwargs_seen["repo_id"], kwargs_seen["revision"]) == ("org/name", COMMIT)
    assert kwargs_seen["local_files_only"] is True
    assert not any("bin" in pattern or "py" in pattern for pattern in kwargs_seen["allow_patterns"])
