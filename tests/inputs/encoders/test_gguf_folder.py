"""Language models converted from GGUF files, compared with llama.cpp, which reads them directly."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

from genre_lightning.errors import UserError
from genre_lightning.files import hash_parts
from genre_lightning.inputs.encoders.gguf_folder import (
    gguf_folder,
    write_without_vocabulary,
)
from genre_lightning.inputs.encoders.opening import open_encoder
from genre_lightning.inputs.encoders.spec import EncoderError, EncoderSpec, Gguf, Packaged
from genre_lightning.inputs.encoders.texts import TextEncoder
from genre_lightning.inputs.encoders.weights import weights_sha256
from tests.ask.tiny_llama import LAYERS, write_model

TEXTS = ["Heat", "A thief and a cop, in Los Angeles."]

#: Run in a separate process, since llama.cpp's server only ends with its process.
LLAMA_CPP = """
import json, sys, urllib.request, xllamacpp
params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.embedding = True
params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_NONE
params.n_ctx = params.n_batch = params.n_ubatch = 512
params.n_parallel = 1
params.warmup = False
params.n_gpu_layers = 0
params.hostnames = ["127.0.0.1"]
params.port = 0
server = xllamacpp.Server(params)
for text in json.loads(sys.argv[2]):
    request = json.dumps({"content": text, "embd_normalize": -1}).encode()
    with urllib.request.urlopen(f"{server.listening_address}/embedding", request) as answer:
        print(json.dumps(json.load(answer)[0]["embedding"]))
"""


def llama_cpp(model: Path, texts: list[str]) -> list[np.ndarray]:
    """Return (L, D) for each text: llama.cpp's outputs of the last block, one row per token."""
    done = subprocess.run(
        [sys.executable, "-c", LLAMA_CPP, model, json.dumps(texts)],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("[[")]
    return [np.array(json.loads(line), dtype=np.float64) for line in lines]


def split(file: Path, folder: Path, count: int = 3) -> list[Path]:
    content = file.read_bytes()
    step = -(-len(content) // count)
    parts = [folder / f"part{number}" for number in range(count)]
    for number, part in enumerate(parts):
        part.write_bytes(content[number * step : (number + 1) * step])
    return parts


def pool(tokens: np.ndarray) -> np.ndarray:
    """Return the mean over tokens, weighted by position, followed by the last token's vector."""
    position = np.arange(1, len(tokens) + 1)
    return np.concatenate([position @ tokens / position.sum(), tokens[-1]])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_model(path)
    return path


def install(
    model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, blocks: int = LAYERS
) -> EncoderSpec:
    """Make a model importable as a package of parts, like the models on PyPI."""
    package = folder / "tiny_model"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')", "utf-8")
    parts = split(model, package)
    monkeypatch.syspath_prepend(str(folder))
    origin = Gguf(
        tuple(Packaged("tiny-model", "tiny_model", part.name) for part in parts),
        blocks,
    )
    # Encoders are opened once per process, so each test needs a different name.
    return EncoderSpec(name=folder.name, kind="text", origin=origin)


@pytest.mark.slow
def test_vectors_are_those_of_llama_cpp(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = install(model, tmp_path, monkeypatch)
    sha256 = hashlib.sha256(model.read_bytes()).hexdigest()
    assert weights_sha256(spec) == sha256
    encoder = open_encoder(spec)
    assert isinstance(encoder, TextEncoder) and encoder.sha256 == sha256
    for text, vector, tokens in zip(
        TEXTS, encoder.embed(TEXTS).numpy(), llama_cpp(model, TEXTS), strict=True
    ):
        assert len(tokens) > 2 and encoder.tokenize([text]).input_ids.shape == (1, len(tokens))
        # llama.cpp rounds keys and values to float16, and the folder's weights are float16.
        np.testing.assert_allclose(vector, pool(tokens), atol=2e-2)


@pytest.mark.slow
def test_the_last_blocks_are_left_out(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = install(model, tmp_path, monkeypatch, blocks=1)
    encoder = open_encoder(spec)
    assert isinstance(encoder, TextEncoder)
    # The one block of the shorter model has the same random weights.
    monkeypatch.setattr("tests.ask.tiny_llama.LAYERS", 1)
    shorter = tmp_path / "shorter.gguf"
    write_model(shorter)
    for vector, tokens in zip(encoder.embed(TEXTS).numpy(), llama_cpp(shorter, TEXTS), strict=True):
        np.testing.assert_allclose(vector, pool(tokens), atol=2e-2)


@pytest.mark.slow
def test_model_is_converted_to_a_folder_once(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("GENRE_LIGHTNING_CACHE", str(tmp_path / "cache"))
    parts = split(model, tmp_path)
    sha256 = hash_parts(parts)
    folder = gguf_folder("tiny", parts, sha256, None)
    assert capfd.readouterr() == ("", "")
    assert folder.parent == tmp_path / "cache"
    assert not list(folder.rglob("*.gguf"))
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert gguf_folder("tiny", parts, sha256, None) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    # A damaged folder is rebuilt.
    damaged = bytearray((folder / "model.safetensors").read_bytes())
    whole = bytes(damaged)
    damaged[-1] ^= 1
    (folder / "model.safetensors").write_bytes(damaged)
    assert gguf_folder("tiny", parts, sha256, None) == folder
    assert (folder / "model.safetensors").read_bytes() == whole


@pytest.mark.slow
def test_tokenizer_equals_that_of_the_file(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoTokenizer

    monkeypatch.setenv("GENRE_LIGHTNING_CACHE", str(tmp_path / "cache"))
    parts = split(model, tmp_path)
    folder = gguf_folder("tiny", parts, hash_parts(parts), None)
    ours = AutoTokenizer.from_pretrained(folder)
    theirs = AutoTokenizer.from_pretrained(model.parent, gguf_file=model.name)
    assert ours.backend_tokenizer.to_str() == theirs.backend_tokenizer.to_str()
    assert ours.padding_side == theirs.padding_side
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert ours.added_tokens_decoder == theirs.added_tokens_decoder


@pytest.mark.parametrize("has_vocab_size", [True, False])
@pytest.mark.parametrize("alignment", [None, 64])
def test_copy_without_vocabulary_is_otherwise_equal(
    has_vocab_size: bool, alignment: int | None, tmp_path: Path
) -> None:
    whole, network = tmp_path / "whole.gguf", tmp_path / "network.gguf"
    writer = gguf.GGUFWriter(whole, "llama")
    if alignment is not None:
        writer.add_custom_alignment(alignment)
    writer.add_rope_freq_base(10000.0)
    writer.add_array("llama.kinds", [1, 2, 3])
    writer.add_token_list(["<s>", "Häuser", "a"])
    writer.add_token_scores([0.0, -1.0, -2.0])
    writer.add_add_bos_token(True)
    writer.add_bos_token_id(0)
    if has_vocab_size:
        writer.add_vocab_size(5)
    rng = np.random.default_rng(0)
    for name, shape in (("one", (3, 5)), ("two", (7,)), ("three", (2, 2, 2))):
        writer.add_tensor(name, rng.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    write_without_vocabulary(whole, network)
    original, copy = gguf.GGUFReader(whole), gguf.GGUFReader(network)
    expected = {name: field.contents() for name, field in original.fields.items()}
    expected = {name: value for name, value in expected.items() if not name.startswith("GGUF.")}
    del expected["tokenizer.ggml.tokens"], expected["tokenizer.ggml.scores"]
    expected.setdefault("llama.vocab_size", 3)
    copied_fields = {name: field.contents() for name, field in copy.fields.items()}
    assert {n: value for n, value in copied_fields.items() if not n.startswith("GGUF.")} == expected
    assert copy.alignment == original.alignment == (alignment or 32)
    assert [tensor.name for tensor in copy.tensors] == ["one", "two", "three"]
    for expected_tensor, tensor in zip(original.tensors, copy.tensors, strict=True):
        assert tensor.tensor_type == expected_tensor.tensor_type
        np.testing.assert_array_equal(tensor.data, expected_tensor.data)


def test_file_that_is_not_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "whole").write_bytes(b"PK" + bytes(30))
    with pytest.raises(UserError, match="not a GGUF file"):
        write_without_vocabulary(tmp_path / "whole", tmp_path / "network")


def test_content_with_another_hash_is_refused_and_leaves_no_folder(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENRE_LIGHTNING_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match=f"part0.*{hash_parts([model])}, not {'0' * 64}"):
        gguf_folder("tiny", split(model, tmp_path), "0" * 64, None)
    assert not list((tmp_path / "cache").glob("encoder_*"))


def test_missing_part_is_named(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = install(model, tmp_path, monkeypatch)
    (tmp_path / "tiny_model" / "part1").unlink()
    with pytest.raises(EncoderError, match=r"tiny-model lacks part1.*install it again"):
        open_encoder(spec)


@pytest.mark.parametrize("library", ["gguf", "accelerate"])
def test_missing_library_is_named(
    library: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = install(model, tmp_path, monkeypatch)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == library else find_spec(name)
    )
    with pytest.raises(EncoderError, match=rf"needs {library}.*\[pretrained\]"):
        open_encoder(spec)
