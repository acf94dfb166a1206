from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from genre_lightning.checkpoint.model import TrainedModel, load_model
from genre_lightning.explain.explainer import TextExplanation
from genre_lightning.explain.parts import score_parts
from genre_lightning.explain.table import branch_weights, explain_branch
from genre_lightning.explain.terms import term_contributions
from genre_lightning.inputs.terms import TermsInput
from genre_lightning.inputs.titles import normalise_title
from genre_lightning.inputs.vectorizer import TermVectorizer
from tests.explain.conftest import SYNOPSIS, TITLE, draw_poster, text_logits

TITLES = {
    "plain": "Heat (1995)",
    "repeated word": "The Last of the Mohicans (1992)",
    "apostrophe": "Schindler's List (1993)",
    "slash": "Face/Off (1997)",
    "accent": "Léon: The Professional (1994)",
    "no year": "Night of the Living Dead",
    "unknown": "qqq",
    "empty": "",
    "only a year": "(1994)",
}
ANALYZERS = {
    "char_wb": {},
    "char_wb from 1": {"ngram_range": [1, 3]},
    "char": {"analyzer": "char", "ngram_range": [1, 4]},
    "word": {"analyzer": "word", "ngram_range": [1, 2]},
    "no decade": {"decade": False},
}


@pytest.fixture(scope="module", params=[*ANALYZERS, "linear skip", "members", "linear"])
def model(request: pytest.FixtureRequest, make_checkpoint: Callable[..., Path]) -> TrainedModel:
    if request.param == "linear skip":
        return load_model(make_checkpoint(title={"hidden": 16, "skip": True}, seed=1))
    if request.param == "members":
        return load_model(make_checkpoint(title={"hidden": 16, "members": 3}, seed=1))
    if request.param == "linear":
        linear = {"name": "terms_linear", "members": 3}
        return load_model(make_checkpoint(title=linear, seed=1))
    return load_model(make_checkpoint(terms=ANALYZERS[request.param], seed=1))


def explain(model: TrainedModel, text: str, branch: str = TITLE) -> TextExplanation:
    found = explain_branch(model, branch, text)
    assert isinstance(found, TextExplanation)
    assert found.method == "integrated gradients, exact" and found.exact
    assert found.text == text
    return found


def named_contributions(model: TrainedModel, text: str) -> tuple[list[str], np.ndarray]:
    """The names of a title's terms, and their contributions."""
    branch_input = model.inputs[TITLE]
    assert isinstance(branch_input, TermsInput)
    columns, contributions, _ = term_contributions(model, TITLE, text)
    return [branch_input.vectorizer.name(column) for column in columns.tolist()], contributions


def sum_of_parts(found: TextExplanation) -> np.ndarray:
    return sum((part.contributions for part in found.parts), np.zeros(4))


@pytest.mark.parametrize("title", TITLES.values(), ids=TITLES.keys())
def test_contributions_of_a_title_add_up(model: TrainedModel, title: str):
    change = (text_logits(model, TITLE, title) - text_logits(model, TITLE, "")).double().numpy()
    _, contributions, total = term_contributions(model, TITLE, title)
    np.testing.assert_allclose(contributions.sum(0), change, atol=1e-4)
    np.testing.assert_allclose(total, change, atol=1e-6)
    if title:
        found = explain(model, title)
        np.testing.assert_allclose(sum_of_parts(found), change, atol=1e-4)
        np.testing.assert_allclose(found.total, change, atol=1e-6)


def test_a_title_changes_the_logits(model: TrainedModel):
    assert np.abs(explain(model, TITLES["plain"]).total).max() > 0.05


@pytest.mark.parametrize("title", [TITLES["plain"], TITLES["repeated word"], TITLES["no year"]])
def test_term_contributions_equal_numerical_integration(model: TrainedModel, title: str):
    branch_input, branch = model.inputs[TITLE], model.network.branches[TITLE]
    assert isinstance(branch_input, TermsInput)
    row = branch_input.vectorizer.transform([title])
    indices = torch.from_numpy(row.indices.astype(np.int64))
    whole = torch.from_numpy(row.weights)
    steps = 4000
    integral = np.zeros((len(indices), 4))
    offsets = torch.arange(steps) * len(indices)
    shares = (torch.arange(steps) + 0.5) / steps
    weights = (shares[:, None] * whole).requires_grad_()
    logits = branch(indices=indices.repeat(steps), offsets=offsets, weights=weights.flatten())
    for genre in range(4):
        (gradient,) = torch.autograd.grad(logits[:, genre].sum(), weights, retain_graph=True)
        integral[:, genre] = gradient.double().mean(0).numpy() * whole.double().numpy()
    columns, found, _ = term_contributions(model, TITLE, title)
    assert columns.tolist() == indices.tolist()
    np.testing.assert_allclose(found, integral, atol=2e-4)


def test_word_contributions_equal_a_plain_loop(model: TrainedModel):
    branch_input = model.inputs[TITLE]
    assert isinstance(branch_input, TermsInput)
    title = "The Night of the Big Heat: Alien, and the Night (1995)"
    columns, contributions, _ = term_contributions(model, TITLE, title)
    text, _ = normalise_title(title)
    words = text.split()
    owner: list[int | None] = []
    for number, word in enumerate(words):
        owner += [*([number] * len(word)), None]
    expected = np.zeros((len(words), 4))
    located = branch_input.vectorizer.locate(text)
    for term, column in enumerate(columns.tolist()):
        places = [(start, end) for other, start, end in located if other == column]
        for start, end in places:
            covered = [number for number in owner[start:end] if number is not None]
            if not covered:
                beside = owner[max(start - 1, 0) : end + 1]
                covered = [number for number in beside if number is not None]
            for number in covered:
                expected[number] += contributions[term] / len(covered) / len(places)
    found = [part.contributions for part in explain(model, title).parts if part.kind == "word"]
    np.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize("network", [None, {"name": "terms_linear"}], ids=["mlp", "linear"])
def test_contributions_that_do_not_add_up_are_an_error(
    network: dict[str, Any] | None, make_checkpoint: Callable[..., Path]
):
    model = load_model(make_checkpoint(title=network or {"hidden": 16}))
    branch = model.network.branches[TITLE]
    branch.register_forward_hook(lambda module, args, output: output**2)
    with pytest.raises(RuntimeError, match=r"differ from their sum.* has changed"):
        explain(model, TITLES["plain"])


@pytest.mark.parametrize(
    ("title", "texts"),
    [
        ("Heat (1995)", ["Heat", "released in 1995"]),
        ("Schindler's List (1993)", ["Schindler's", "List", "released in 1993"]),
        ("Face/Off", ["Face", "Off"]),
        ("Léon: The Professional (1994)", ["Léon", "The", "Professional", "released in 1994"]),
        ("Le\u0301on (1994)", ["Le\u0301on", "released in 1994"]),
        ("1984 (1984)", ["1984", "released in 1984"]),
        ("Empire (1980/I)", ["Empire", "released in 1980"]),
        ("E.T. the Extra-Terrestrial", ["E.T", "the", "Extra", "Terrestrial"]),
    ],
)
def test_parts_are_words_as_written(tiny: TrainedModel, title: str, texts: list[str]):
    parts = explain(tiny, title).parts
    assert [part.text for part in parts] == texts
    for part in parts:
        assert part.span is not None
        if part.kind == "word":
            assert title[slice(*part.span)] == part.text
        else:
            assert title[slice(*part.span)].startswith(part.text[-4:])


def test_a_title_that_normalisation_changes_too_much_has_no_spans(tiny: TrainedModel):
    # The lower case of a capital sigma differs at the end of a word.
    parts = explain(tiny, "ΟΔΟΣ (1995)").parts
    assert [(part.text, part.span) for part in parts] == [
        ("οδος", None),
        ("released in 1995", None),
    ]


def test_an_ngram_within_a_word_counts_only_for_that_word(tiny: TrainedModel):
    terms, contributions = named_contributions(tiny, "Heat Alien")
    heat, alien = explain(tiny, "Heat Alien").parts
    in_heat = [" heat ".find(term) >= 0 for term in terms]
    assert 0 < sum(in_heat) < len(in_heat)
    expected = contributions[in_heat].sum(0)
    np.testing.assert_allclose(heat.contributions, expected, atol=1e-9)
    expected = contributions[np.logical_not(in_heat)].sum(0)
    np.testing.assert_allclose(alien.contributions, expected, atol=1e-9)


def test_an_ngram_of_two_words_is_shared_by_them(tiny: TrainedModel):
    terms, contributions = named_contributions(tiny, "Heat Night")
    heat = explain(tiny, "Heat Night").parts[0]
    own = [terms.index(term) for term in terms if term in " heat "]
    expected = contributions[own].sum(0) - contributions[terms.index("t ")] / 2
    np.testing.assert_allclose(heat.contributions, expected, atol=1e-9)


def test_an_unknown_word_adds_nothing_and_is_not_ranked(tiny: TrainedModel):
    found = explain(tiny, "Heat qqq (1995)")
    assert [part.text for part in found.parts if not part.contributions.any()] == ["qqq"]
    for genre in range(4):
        ranked = found.ranked(genre)
        assert sorted(text for text, _ in ranked) == ["Heat", "released in 1995"]
        sizes = [abs(value) for _, value in ranked]
        assert sizes == sorted(sizes, reverse=True)
        assert found.ranked(genre, 1) == ranked[:1]


def test_a_repeated_word_is_ranked_once(tiny: TrainedModel):
    found = explain(tiny, "The Last of the Mohicans")
    for genre in range(4):
        ranked = dict(found.ranked(genre))
        assert list(ranked).count("The") == 1 and "the" not in ranked
        both = [part.contributions[genre] for part in found.parts if part.text in ("The", "the")]
        assert len(both) == 2
        assert ranked["The"] == pytest.approx(sum(both))
        assert sum(ranked.values()) == pytest.approx(found.total[genre], abs=1e-4)


def test_any_text_column_is_explained(stacked: TrainedModel):
    found = explain(stacked, SYNOPSIS, "plot")
    words = "A crew in deep space A beast hunts the crew one by one space is silent"
    assert " ".join(part.text for part in found.parts) == words
    for part in found.parts:
        assert part.span is not None and SYNOPSIS[slice(*part.span)] == part.text
    change = text_logits(stacked, "plot", SYNOPSIS) - text_logits(stacked, "plot", "")
    weighted = change.double().numpy() * branch_weights(stacked, "plot")
    np.testing.assert_allclose(sum_of_parts(found), weighted, atol=1e-4)
    np.testing.assert_allclose(found.total, weighted, atol=1e-4)
    np.testing.assert_array_equal(found.parts[1].contributions, found.parts[9].contributions)
    unknown = explain(stacked, "nothing that it knows", "plot")
    assert not sum_of_parts(unknown).any() and len(unknown.parts) == 4


def test_items_of_a_list_are_explained(make_checkpoint: Callable[..., Path]):
    cast = TermsInput("cast", vocabulary_size=16, analyzer="item", ngram_range=[1, 1])
    cast.vectorizer.fit(["Tom Hanks|Tim Allen", "Al Pacino|Val Kilmer|Tom Hanks"])
    model = load_model(make_checkpoint(more={"actors": (cast, {"name": "terms_linear"})}))
    text = " Tom Hanks || Al Pacino|...|Nobody"
    found = explain(model, text, "actors")
    assert [part.text for part in found.parts] == ["Tom Hanks", "Al Pacino", "Nobody"]
    assert [part.span for part in found.parts] == [(1, 10), (14, 23), (28, 34)]
    assert [bool(part.contributions.any()) for part in found.parts] == [True, True, False]
    np.testing.assert_allclose(sum_of_parts(found), found.total, atol=1e-5)


@pytest.mark.parametrize("analyzer", ["char_wb", "word", "char"])
def test_a_text_of_thousands_of_words_is_explained_quickly(
    analyzer: str, make_checkpoint: Callable[..., Path]
):
    terms = {"analyzer": analyzer, "ngram_range": [1, 2] if analyzer == "word" else [2, 5]}
    model = load_model(make_checkpoint(terms=terms))
    # With a year in the middle, the spans have to be searched for.
    text = "Night of the Living Dead, walking. " * 500 + "(1968) " + "It's the Big Heat! " * 500
    explain(model, "Heat")
    started = time.perf_counter()
    found = explain(model, text)
    assert time.perf_counter() - started < 5  # measured: 0.2 s; a quadratic algorithm takes minutes
    words = [part for part in found.parts if part.kind == "word"]
    assert len(words) == 5000
    for part in words:
        assert part.span is not None and text[slice(*part.span)] == part.text
    np.testing.assert_allclose(sum_of_parts(found), found.total, atol=1e-4)


def test_words_add_up_to_the_titles_part(tiny: TrainedModel):
    title = TITLES["repeated word"]
    parts = score_parts(tiny, {"title": title, "poster": draw_poster()})
    np.testing.assert_allclose(sum_of_parts(explain(tiny, title)), parts.branches[TITLE], atol=1e-4)


def test_a_value_that_is_not_text_is_refused(tiny: TrainedModel):
    with pytest.raises(TypeError, match="not a string"):
        explain_branch(tiny, TITLE, b"Heat")


@pytest.mark.parametrize("settings", ANALYZERS.values(), ids=ANALYZERS.keys())
def test_located_terms_equal_the_terms_of_the_features(settings: dict):
    titles = ["the night of the living dead", "a", "a b", "of", ""]
    vectorizer = TermVectorizer(vocabulary_size=512, sublinear_tf=False, **settings).fit(titles)
    for title in titles:
        located = vectorizer.locate(title)
        row = vectorizer.transform([title])
        columns, counts = np.unique([column for column, _, _ in located], return_counts=True)
        assert columns.tolist() == row.indices.tolist()
        assert len(vectorizer._idf) >= len(columns)
        raw = counts * vectorizer._idf[columns.astype(int)]
        np.testing.assert_allclose(row.weights, raw / np.linalg.norm(raw), rtol=1e-6)
        for column, start, end in located:
            assert title[start:end].strip() == vectorizer.name(column).strip()
