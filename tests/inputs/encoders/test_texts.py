"""Text encoders compared with sentence-transformers, and refused input."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from genre_lightning.inputs.encoders import texts as texts_module
from genre_lightning.inputs.encoders.opening import open_encoder
from genre_lightning.inputs.encoders.spec import EncoderError
from genre_lightning.inputs.encoders.table import ENCODERS, resolve
from genre_lightning.inputs.encoders.texts import TextEncoder
from genre_lightning.inputs.encoders.weights import find_weights
from tests.inputs.encoders.opened import TEXTS, copy_minilm


@pytest.fixture(scope="module")
def minilm() -> TextEncoder:
    encoder = open_encoder("minilm")
    assert isinstance(encoder, TextEncoder)
    return encoder


def reference(texts: list[str]) -> np.ndarray:
    """The vectors that sentence-transformers computes for texts."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(
        str(find_weights(ENCODERS["minilm"])), device="cpu", local_files_only=True
    )
    return np.asarray(model.encode(texts, show_progress_bar=False))


def test_short_texts_match_sentence_transformers(minilm: TextEncoder):
    vectors = minilm.embed(TEXTS)
    assert (vectors.shape, vectors.dtype) == ((len(TEXTS), 384), torch.float32)
    np.testing.assert_allclose(vectors.numpy(), reference(TEXTS), atol=1e-5)
    assert (minilm.width, minilm.max_tokens) == (ENCODERS["minilm"].width, 256)
    assert minilm.sha256 == ENCODERS["minilm"].sha256
    assert not minilm.module.training
    assert not any(parameter.requires_grad for parameter in minilm.module.parameters())
    assert minilm.embed([]).shape == (0, 384)


@pytest.mark.parametrize("words", [254, 255, 509])
def test_a_long_text_is_the_mean_of_its_chunks(minilm: TextEncoder, words: int):
    from transformers import BertModel, BertTokenizer

    folder = str(find_weights(ENCODERS["minilm"]))
    tokenizer = BertTokenizer.from_pretrained(folder, local_files_only=True)
    network = BertModel.from_pretrained(folder, local_files_only=True).eval()
    generator = np.random.default_rng(words)
    text = " ".join(generator.choice(["night", "man", "love", "war", "the"], words))
    ids = tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text))
    assert len(ids) == words
    chunks = np.array_split(np.array(ids), -(-words // 254))
    vectors = []
    for chunk in chunks:
        row = torch.tensor([[tokenizer.cls_token_id, *chunk.tolist(), tokenizer.sep_token_id]])
        with torch.no_grad():
            mean = network(row).last_hidden_state[0].mean(0)
        vectors.append(mean / mean.norm())
    expected = torch.stack(vectors).mean(0)
    torch.testing.assert_close(minilm.embed([text])[0], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("words", [1, 249, 250, 499])
def test_prompt_after_is_appended_to_each_chunk(minilm: TextEncoder, words: int):
    prompt_after = " is it a comedy?"
    ids = minilm.tokenize(["night " * words], prompt_after).input_ids
    tail = minilm.tokenize([prompt_after]).input_ids[0, 1:]
    # Four words, a question mark and the two special tokens leave 249 of 256.
    assert len(tail) == 6 and len(ids) == -(-words // 249)
    described = minilm.tokenizer_settings(prompt_after)
    assert described["suffix"] == tail.tolist() and described["prefix"] == [ids[0, 0]]
    for row in ids:
        row = row[row != 0]
        assert row[-6:].tolist() == tail.tolist() and len(row) <= minilm.max_tokens
    (vector,) = minilm.embed(["night " * words], prompt_after)
    with torch.no_grad():
        mask = torch.from_numpy((ids != 0).astype(np.int64))
        torch.testing.assert_close(
            minilm.module(torch.from_numpy(ids), mask).mean(0), vector, atol=1e-5, rtol=0
        )


def test_prompt_after_that_leaves_no_room_for_a_text_is_refused(minilm: TextEncoder):
    with pytest.raises(EncoderError, match="no room for a text in the 256 tokens"):
        minilm.embed(["Heat"], " why" * 260)


def test_vector_of_a_text_does_not_depend_on_the_others(
    minilm: TextEncoder, monkeypatch: pytest.MonkeyPatch
):
    texts = [*TEXTS, "a man " * 200, "b", "war and love " * 40]
    alone = torch.cat([minilm.embed([text]) for text in texts])
    for tokens, count in ((1, 4096), (100_000, 2)):
        monkeypatch.setattr("genre_lightning.inputs.encoders.texts.CPU_TOKENS", tokens)
        monkeypatch.setattr("genre_lightning.inputs.encoders.texts._TEXTS_PER_CHUNK", count)
        torch.testing.assert_close(minilm.embed(texts[::-1]), alone.flip(0), atol=1e-5, rtol=0)


def test_tokens_and_module_give_the_vectors(minilm: TextEncoder, tmp_path: Path):
    from tokenizers import Tokenizer

    texts = ["Heat (1995)", "a man " * 300, ""]
    tokens = minilm.tokenize(texts)
    assert tokens.rows.tolist() == [0, 1, 1, 1, 2]
    assert tokens.input_ids.shape == tokens.attention_mask.shape
    assert tokens.input_ids.shape[1] <= minilm.max_tokens
    assert {tokens.input_ids.dtype, tokens.attention_mask.dtype} == {np.dtype(np.int64)}
    with torch.no_grad():
        vectors = minilm.module(
            torch.from_numpy(tokens.input_ids), torch.from_numpy(tokens.attention_mask)
        )
    expected = torch.stack([vectors[tokens.rows == row].mean(0) for row in range(3)])
    torch.testing.assert_close(minilm.embed(texts), expected, atol=1e-5, rtol=0)
    assert minilm.tokenize([]).input_ids.shape == (0, 0)

    minilm.save_tokenizer(tmp_path)
    saved = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    length = int(tokens.attention_mask[0].sum())
    assert saved.encode(texts[0]).ids == tokens.input_ids[0, :length].tolist()


def test_texts_from_several_threads(minilm: TextEncoder):
    texts = TEXTS[:3]
    expected = minilm.embed(texts)
    seen: list[Tensor] = []
    threads = [
        threading.Thread(target=lambda: seen.extend(minilm.embed(texts) for _ in range(5)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 20
    for vectors in seen:
        torch.testing.assert_close(vectors, expected, atol=1e-5, rtol=0)


def test_progress_is_reported_after_each_batch(
    minilm: TextEncoder, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(texts_module, "CPU_TOKENS", 32)
    shares: list[float] = []
    minilm.embed(
        ["Heat", "a long night " * 20, "Alien", "Toy Story", "word " * 300], "", shares.append
    )
    assert len(shares) >= 4 and shares == sorted(shares)
    assert 0 < shares[0] < 0.9 and shares[-1] == 1


def test_random_text_weights(minilm: TextEncoder):
    first = open_encoder("minilm", random_weights=True, seed=5)
    assert isinstance(first, TextEncoder)
    assert (first.sha256, first.width) == ("random-5", 384)
    vectors = first.embed(["Heat", "Alien"])
    assert (vectors - minilm.embed(["Heat", "Alien"])).abs().max() > 0.01
    assert (vectors[0] - vectors[1]).abs().max() > 1e-3


def edit_json(path: Path, change: dict[str, Any]) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **change}), "utf-8")


def test_a_folder_with_code_or_pickles_is_refused(tmp_path: Path):
    folder = copy_minilm(tmp_path)
    edit_json(folder / "config.json", {"auto_map": {"AutoModel": "mine.Model"}})
    with pytest.raises(EncoderError, match="brings its own code"):
        open_encoder(resolve(f"folder:{folder}", trusted=True))

    folder = copy_minilm(tmp_path / "b")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(EncoderError, match="holds no safetensors"):
        open_encoder(resolve(f"folder:{folder}", trusted=True))

    folder = copy_minilm(tmp_path / "c")
    modules = json.loads((folder / "modules.json").read_text("utf-8"))
    modules[1]["type"] = "subprocess.Popen"
    (folder / "modules.json").write_text(json.dumps(modules), "utf-8")
    with pytest.raises(EncoderError, match="sentence-transformers can't read the model"):
        open_encoder(resolve(f"folder:{folder}", trusted=True))

    folder = copy_minilm(tmp_path / "d")
    (folder / "1_Pooling" / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(EncoderError, match=r"pytorch_model.bin is not a safetensors file"):
        open_encoder(resolve(f"folder:{folder}", trusted=True))


def test_mpnet_matches_sentence_transformers():
    try:
        folder = find_weights(resolve("mpnet"))
    except EncoderError:
        pytest.skip("no weights of all-mpnet-base-v2 here: name their folder's parent in "
                    "GENRE_LIGHTNING_ENCODERS")  # fmt: skip
    from sentence_transformers import SentenceTransformer

    encoder = open_encoder("mpnet")
    assert isinstance(encoder, TextEncoder)
    assert (encoder.width, encoder.max_tokens) == (768, 384)
    expected = SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(encoder.embed(TEXTS).numpy(), expected, atol=1e-5)
