"""The words on posters: read by the real networks, stored, and passed to text inputs."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from genre_lightning.errors import UserError
from genre_lightning.inputs import ocr, poster_text
from genre_lightning.inputs.encoders.spec import EncoderError, Packaged
from genre_lightning.inputs.input import Store
from genre_lightning.inputs.poster_text import NO_WORDS, PosterTextInput
from genre_lightning.inputs.table import build_input, input_from_text, state_to_text
from genre_lightning.inputs.terms import TermsInput
from tests.missing import skip_without
from tests.pictures import locate, write_poster

skip_without("rapidocr")

TERMS = {"kind": "terms", "vocabulary_size": 64, "analyzer": "word", "ngram_range": [1, 1]}
ALL = np.arange(3)


@pytest.fixture
def posters(tmp_path: Path) -> list[Path]:
    return [
        write_poster(tmp_path / "heat.png", "ROBERT DENIRO", "A CRIME STORY"),
        write_poster(tmp_path / "plain.png"),
        write_poster(tmp_path / "toys.jpg", "TOY STORY"),
    ]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache", 2, False)


def terms_of(branch_input: PosterTextInput) -> list[str]:
    assert isinstance(branch_input.text, TermsInput)
    return branch_input.text.vectorizer.terms or []


def test_lines_are_read_from_top_to_bottom(posters: list[Path]) -> None:
    branch_input = PosterTextInput("poster", TERMS)
    assert branch_input.read(posters[0]) == "ROBERT DENIRO. A CRIME STORY"
    assert branch_input.read(posters[2].read_bytes()) == "TOY STORY"
    with Image.open(posters[2]) as image:
        assert branch_input.read(image) == branch_input.read(np.array(image)) == "TOY STORY"
    assert branch_input.read(posters[1]) == NO_WORDS


def test_denormals_are_flushed_only_while_reading(posters: list[Path]) -> None:
    denormals = torch.full((8,), 1e-40)
    assert PosterTextInput("poster", TERMS).read(posters[2]) == "TOY STORY"
    assert (denormals * 1 > 0).all()
    assert (np.full(8, 1e-40, np.float32) * np.float32(1) > 0).all()


@pytest.mark.parametrize("shape", [(8, 8), (1, 400), (400, 1), (3000, 20)], ids=str)
def test_a_poster_of_any_shape_is_read(shape: tuple[int, int]) -> None:
    pixels = np.full((*shape, 3), 200, dtype=np.uint8)
    assert PosterTextInput("poster", TERMS).read(pixels) == NO_WORDS


def test_long_text_is_truncated_at_a_whole_character(monkeypatch: pytest.MonkeyPatch) -> None:
    class Result:
        txts, scores = ("é" * 400, "lost"), (0.9, 0.9)

    monkeypatch.setattr(ocr, "_engine", lambda: lambda pixels, **steps: Result())
    words = ocr.read_words(np.zeros((*ocr.SIZE, 3), np.uint8))
    assert words == "é" * 256 and len(words.encode()) == ocr.MAX_BYTES


def test_uncertain_lines_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    class Result:
        txts, scores = ("WALT  DISNEY", "PNSEX", "TOY\tSTORY"), (0.95, 0.6, 0.8)

    monkeypatch.setattr(ocr, "_engine", lambda: lambda pixels, **steps: Result())
    assert ocr.read_words(np.ones((*ocr.SIZE, 3), np.uint8)) == "WALT DISNEY. TOY STORY"


@pytest.mark.parametrize("kind", ["terms", "embedding"])
def test_datasets_and_new_movies_get_the_same_numbers(
    kind: str, posters: list[Path], store: Store
) -> None:
    text = TERMS if kind == "terms" else {"kind": "embedding", "encoder": "minilm"}
    branch_input = PosterTextInput("poster", text)

    features = branch_input.open([locate(path) for path in posters], ALL, store)
    assert features.row_index.tolist() == [0, 1, 2]
    stored, _ = features.gather(features.row_index, np.array([3]))
    rebuilt = input_from_text(state_to_text(branch_input))
    assert isinstance(rebuilt, PosterTextInput)
    for each in (branch_input, rebuilt):
        encoded = each.encode([each.read(path) for path in posters])
        assert list(encoded) == list(stored)
        for name, numbers in encoded.items():
            torch.testing.assert_close(numbers.float(), stored[name].float(), atol=2e-3, rtol=0)
    if kind == "terms":
        assert "deniro" in terms_of(branch_input)


def test_posters_are_read_once(
    posters: list[Path], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    files: list[Any] = [locate(path) for path in posters]
    first = PosterTextInput("poster", TERMS).open(files, ALL, store)
    write_poster(posters[2], "JAWS")
    read: list[str] = []

    def recording_read(pixels: np.ndarray) -> str:
        read.append(ocr.read_words(pixels))
        return read[-1]

    monkeypatch.setattr(poster_text, "read_words", recording_read)
    changed = PosterTextInput("poster", TERMS)
    again = changed.open([*files[:2], locate(posters[2])], ALL, store)
    assert read == ["JAWS"]
    assert again.row_index.tolist() == first.row_index.tolist()
    assert "jaws" in terms_of(changed)


def test_interrupted_reading_is_resumed(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    files: list[Any] = []
    for number in range(70):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
        files.append(locate(path))
    read: list[int] = []
    last = 65

    def interrupted_read(pixels: np.ndarray) -> str:
        if pixels[0, 0, 0] > last:
            raise KeyboardInterrupt
        read.append(int(pixels[0, 0, 0]))
        return f"poster {read[-1]}"

    monkeypatch.setattr(poster_text, "read_words", interrupted_read)
    with pytest.raises(KeyboardInterrupt):
        PosterTextInput("poster", TERMS).open(files, np.arange(70), store)
    assert read
    read.clear()
    last = 70
    features = PosterTextInput("poster", TERMS).open(files, np.arange(70), store)
    assert sorted(read) == [64, 65, 66, 67, 68, 69]
    assert features.row_index.tolist() == list(range(70))


def test_damaged_weights_are_reported_and_nothing_is_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "damaged_ocr").mkdir()
    (tmp_path / "damaged_ocr/__init__.py").touch()
    (tmp_path / "damaged_ocr/det.onnx").write_bytes(b"\x08\x0a" * 100)
    monkeypatch.syspath_prepend(str(tmp_path))
    damaged = Packaged("rapidocr", "damaged_ocr", "det.onnx")
    monkeypatch.setitem(ocr._WEIGHTS, "Det", damaged)
    monkeypatch.setattr(ocr, "_thread_state", threading.local())
    with pytest.raises(EncoderError, match=r"'ocr' are damaged .*det\.onnx.*: install rapidocr"):
        ocr.read_words(np.full((*ocr.SIZE, 3), 7, np.uint8))


def test_missing_dependency_of_the_ocr_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "rapidocr.main", raising=False)
    monkeypatch.setitem(sys.modules, "pyclipper", None)  # as if it were not installed
    for name in [name for name in sys.modules if name.startswith("rapidocr.ch_ppocr_det")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(ocr, "_thread_state", threading.local())
    with pytest.raises(EncoderError, match="'ocr' needs pyclipper, which is not installed"):
        ocr.read_words(np.full((*ocr.SIZE, 3), 8, np.uint8))


def test_unreadable_poster_is_named_and_left_out(posters: list[Path], store: Store) -> None:
    posters[1].write_bytes(b"no image")
    features = PosterTextInput("poster", TERMS).open(
        [locate(posters[0]), None, locate(posters[1]), locate(posters[2])], np.arange(4), store
    )
    assert (features.row_index < 0).tolist() == [False, True, True, False]
    ((name, reason),) = features.unreadable
    assert name.endswith("plain.png") and "not an image of a known format" in reason


def test_other_weights_are_refused(posters: list[Path], store: Store) -> None:
    branch_input = PosterTextInput("poster", TERMS)
    branch_input.open([locate(path) for path in posters], ALL, store)
    state = {**branch_input.state(), "sha256": "0" * 64}
    other = PosterTextInput.from_state(state)
    for use in (
        lambda: other.read(posters[0]),
        lambda: other.open([locate(posters[0])], ALL[:1], store),
    ):
        with pytest.raises(EncoderError, match=r"other weights .* install the version of"):
            use()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"\.text: its kind must be one of terms, embedding$"),
        ({"kind": "pixels"}, r"\.text: its kind must be one of terms, embedding$"),
        ({"kind": "terms", "encoder": "minilm"}, r"\.text\.encoder: the input terms has vocab"),
        ({"kind": "terms", "column": "title"}, r"\.text\.column: the input terms has vocab"),
        ({"kind": "terms", "vocabulary_size": 0}, r"\.text\.vocabulary_size"),
        ({"kind": "embedding"}, r"\.text\.encoder has to be given: the input embedding needs it"),
        ({"kind": "embedding", "encoder": "lite0"}, r"need an encoder of texts"),
        ({"kind": "embedding", "encoder": "nonesuch"}, r"nonesuch"),
    ],
    ids=["None", "pixels", "encoder", "column", "size", "no encoder", "of posters", "unknown name"],
)
def test_invalid_settings_are_refused_by_name(text: Any, message: str) -> None:
    with pytest.raises(UserError, match=rf"model\.branches\.b\.input.*{message}"):
        build_input("b", {"kind": "poster_text", "column": "poster", "text": text})


@pytest.mark.parametrize(
    "change",
    [
        {"sha256": None},
        {"sha256": "x" * 64},
        {"text": "terms"},
        {"text": {"kind": "poster_text"}},
        {"text": {"kind": ["terms"]}},
        {"text": {"kind": "terms", "column": "title"}},
        {"text": {"kind": "terms"}},
    ],
    ids=str,
)
def test_a_damaged_state_is_refused(
    change: dict[str, Any], posters: list[Path], store: Store
) -> None:
    branch_input = PosterTextInput("poster", TERMS)
    branch_input.open([locate(path) for path in posters], ALL, store)
    with pytest.raises((ValueError, TypeError)):
        PosterTextInput.from_state({**branch_input.state(), **change})
