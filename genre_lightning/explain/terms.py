"""Contributions of each word of a text to a ``TermsMLP`` or ``TermsLinear`` on TF-IDF terms.

Computed by Integrated Gradients (Sundararajan et al. 2017, "Axiomatic attribution for deep
networks") with the empty text as the baseline: the parts sum exactly to the change of the logits.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import ClassVar, final

import numpy as np
import torch

from genre_lightning.checkpoint.model import TrainedModel
from genre_lightning.explain.explainer import (
    Explainer,
    TextExplanation,
    TextPart,
    branch_logits,
    encode_one,
    explained_networks,
    float64,
)
from genre_lightning.inputs.input import Value
from genre_lightning.inputs.poster_text import text_input
from genre_lightning.inputs.terms import TermsInput
from genre_lightning.inputs.titles import normalise_title
from genre_lightning.inputs.vectorizer import ITEM_SEPARATOR, TermVectorizer
from genre_lightning.models.terms_linear import TermsLinear
from genre_lightning.models.terms_mlp import TermsMLP

#: Tolerated rounding error between the sum of the parts and the float32 logits.
_TOLERANCE = 1e-4


@final
class TermsExplainer(Explainer):
    """Explains the words of a text, or the items of a list, by Integrated Gradients."""

    method: ClassVar[str] = "integrated gradients, exact"
    gives: ClassVar[str] = "words"

    def baseline(self, model: TrainedModel, branch: str) -> np.ndarray:
        empty: np.ndarray = branch_logits(model, branch, encode_one(model, branch, ""))[0]
        return empty

    def explain(
        self, model: TrainedModel, branch: str, value: Value, budget: int | None = None
    ) -> TextExplanation:
        """See :class:`Explainer`.

        Raises:
            RuntimeError: the contributions do not sum to the branch's part.
        """
        branch_input, _ = _terms_branch(model, branch)
        text = model.inputs[branch].read(value)
        columns, contributions, total = term_contributions(model, branch, text)
        parts = _text_parts(branch_input.vectorizer, text, columns, contributions)
        return TextExplanation(self.method, text, parts, True, total)


def term_contributions(
    model: TrainedModel, branch: str, text: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Contributions of each term of a text to the logits of its branch.

    On the straight path from the empty text to this one, every hidden unit's input changes
    linearly. A ReLU therefore switches at most once, and the integral of the gradients has a closed
    form that needs no sampling. For a linear network, a contribution is the term's weight times
    its coefficients.

    Returns:
        (T,) int64, the terms' columns in the vocabulary; (T, G) float64, their contributions; (G,)
        float64, the sum of these: the logits of the text minus those of the empty text.

    Raises:
        RuntimeError: the contributions do not sum to this difference, because the network has
            changed and this file has not.
    """
    _, networks = _terms_branch(model, branch)
    part = encode_one(model, branch, text)
    columns, weights = part.numbers["indices"], part.numbers["weights"]
    with torch.inference_mode():
        # The networks' logits are averaged, and so are the contributions.
        per_network = [
            _contributions(network, columns, weights, model.member) for network in networks
        ]
    contributions = np.mean(per_network, axis=0)
    logits = branch_logits(model, branch, part)[0]
    total = logits - branch_logits(model, branch, encode_one(model, branch, ""))[0]
    error = float(np.abs(contributions.sum(0) - total).max(initial=0.0))
    if error > _TOLERANCE * max(1.0, float(np.abs(logits).max(initial=0.0))):
        raise RuntimeError(
            f"the terms of branch {branch} differ from their sum by {error:.2g}: "
            f"{type(networks[0]).__name__} has changed and explain/terms.py has not"
        )
    return columns.cpu().numpy(), contributions, total


def _terms_branch(
    model: TrainedModel, branch: str
) -> tuple[TermsInput, list[TermsMLP | TermsLinear]]:
    """The input of a branch, and the networks whose logits it averages."""
    branch_input = text_input(model.inputs[branch])
    networks = explained_networks(model, branch)
    supported = [network for network in networks if isinstance(network, (TermsMLP, TermsLinear))]
    if not isinstance(branch_input, TermsInput) or len(supported) < len(networks):
        raise TypeError(f"branch {branch} is neither a TermsMLP nor a TermsLinear on terms")
    return branch_input, supported


def _contributions(
    network: TermsMLP | TermsLinear,
    columns: torch.Tensor,
    weights: torch.Tensor,
    member: int | None,
) -> np.ndarray:
    """(T, G) float64 contributions of T columns to the logits of one network.

    ``member`` is that of ``TrainedModel``.
    """
    if isinstance(network, TermsMLP):
        return _integrated_gradients(network, columns, weights)
    rows = network.embed.weight[columns].double()
    members = rows.view(len(columns), network.members, network.num_genres)
    is_mean = member is None or network.members == 1
    coefficients = members.mean(dim=1) if is_mean else members[:, member]
    return float64(weights.double()[:, None] * coefficients)


def _integrated_gradients(
    network: TermsMLP, columns: torch.Tensor, weights: torch.Tensor
) -> np.ndarray:
    """(T, G) float64 contributions of T columns; see :func:`term_contributions`.

    The network is ``head(relu(norm(sum of weights * embed)))``, where ``norm`` is a BatchNorm with
    stored statistics. If the network has a ``skip``, an embedding bag is added to the logits.
    """
    weights = weights.double()[:, None]
    norm = network.norm
    if norm.running_mean is None or norm.running_var is None:
        raise TypeError("the BatchNorm of a TermsMLP keeps no statistics")
    scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    # Each term's share of the input of each hidden unit, and the input for an empty text.
    shares = weights * network.embed.weight[columns].double() * scale
    start = norm.bias.double() - norm.running_mean.double() * scale
    change = shares.sum(0)
    # The share of the path from start to start + change on which a unit is active.
    crossing = torch.where(change != 0, -start / change, torch.zeros_like(change)).clamp(0.0, 1.0)
    active = torch.where(change > 0, 1.0 - crossing, crossing)
    active = torch.where(change == 0, (start > 0).double(), active)
    contributions = (shares * active) @ network.head.weight.double().T
    if network.skip is not None:
        contributions = contributions + weights * network.skip.weight[columns].double()
    return float64(contributions)


def _text_parts(
    vectorizer: TermVectorizer, text: str, columns: np.ndarray, contributions: np.ndarray
) -> tuple[TextPart, ...]:
    """Distribute the terms' (T, G) contributions among the words and the year of a text."""
    normalised, year = vectorizer.normalise(text)
    if vectorizer.analyzer == "item":
        words, spans, year_span = *_item_spans(text), None
    else:
        words = normalised.split()
        spans, year_span = word_spans(text, words)
    word_contributions = _word_contributions(vectorizer, normalised, words, columns, contributions)
    parts = [
        TextPart(word if span is None else text[slice(*span)], "word", span, values)
        for word, span, values in zip(words, spans, word_contributions, strict=True)
    ]
    year_terms = [t for t, column in enumerate(columns.tolist()) if vectorizer.is_decade(column)]
    if year_terms:
        values = contributions[year_terms].sum(0)
        parts.append(TextPart(f"released in {year}", "year", year_span, values))
    return tuple(parts)


def _word_contributions(
    vectorizer: TermVectorizer,
    text: str,
    words: Sequence[str],
    columns: np.ndarray,
    contributions: np.ndarray,
) -> np.ndarray:
    """(W, G) float64 contributions of the W words of a normalised text.

    A term's contribution is divided equally among its occurrences, and within an occurrence among
    the words it covers in proportion to the characters covered. An n-gram inside a word therefore
    counts for that word alone.
    """
    result = np.zeros((len(words), contributions.shape[1]))
    located = vectorizer.locate(text)
    if not located:
        return result
    # Index of the word that each character belongs to, -1 between words.
    owner = np.full(len(text), -1, dtype=np.int64)
    lengths = np.array([len(word) for word in words])
    starts = np.cumsum(lengths + 1) - lengths - 1
    inside = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    owner[np.repeat(starts, lengths) + inside] = np.repeat(np.arange(len(words)), lengths)

    column, start, end = np.array(located, dtype=np.int64).T
    spaces = np.array([not (owner[a:b] >= 0).any() for _, a, b in located])
    # A term of spaces alone counts for the words beside it.
    start = np.where(spaces, np.maximum(start - 1, 0), start)
    end = np.where(spaces, np.minimum(end + 1, len(text)), end)
    # One entry for each character of each occurrence of a term.
    size = end - start
    occurrence = np.repeat(np.arange(len(size)), size)
    character = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size) + start[occurrence]
    word = owner[character]
    occurrence, word = occurrence[word >= 0], word[word >= 0]
    covered = np.bincount(occurrence, minlength=len(size))
    term = np.searchsorted(columns, column)  # decades come last and are never located
    num_occurrences = np.bincount(term, minlength=len(columns))
    share = 1.0 / (covered[occurrence] * num_occurrences[term[occurrence]])
    # Summed by term and word first, as a term covers several characters of a word.
    pair, inverse = np.unique(term[occurrence] * len(words) + word, return_inverse=True)
    terms, owners = np.divmod(pair, len(words))
    np.add.at(result, owners, np.bincount(inverse, share)[:, None] * contributions[terms])
    return result


def _item_spans(text: str) -> tuple[list[str], list[tuple[int, int] | None]]:
    """The normalised items of a list and their spans in the text, without empty items."""
    names: list[str] = []
    spans: list[tuple[int, int] | None] = []
    start = 0
    for item in text.split(ITEM_SEPARATOR):
        name, _ = normalise_title(item)
        if name:
            begin = start + len(item) - len(item.lstrip())
            names.append(name)
            spans.append((begin, start + len(item.rstrip())))
        start += len(item) + len(ITEM_SEPARATOR)
    return names, spans


def _normalise_by_character(text: str) -> tuple[list[str], list[tuple[int, int]]]:
    """The words of a text, normalised character by character, with start and end of each."""
    pieces = {character: _normalise_character(character) for character in set(text)}
    located: list[tuple[list[str], int, int]] = []
    open_word = False
    for index, character in enumerate(text):
        piece = pieces[character]
        if piece is None:
            open_word = False
        elif piece and open_word:
            word, start, _ = located[-1]
            word.append(piece)
            located[-1] = (word, start, index + 1)
        elif piece:
            located.append(([piece], index, index + 1))
            open_word = True
    normalised = [unicodedata.normalize("NFKC", "".join(word)) for word, _, _ in located]
    return normalised, [(start, end) for _, start, end in located]


def word_spans(
    text: str, words: Sequence[str]
) -> tuple[list[tuple[int, int] | None], tuple[int, int] | None]:
    """Locate the words of a normalised text, and the year that was removed, in the original text.

    The text is normalised character by character. If this gives different words, as it can in
    scripts whose letters change with their neighbours, all spans are None.

    Args:
        text: the original text.
        words: of the normalised text.

    Returns:
        Start and end of each word, and of the year; None for an unknown span or no year.
    """
    normalised, spans = _normalise_by_character(text)
    extra = len(normalised) - len(words)
    if extra < 0:
        return [None] * len(words), None
    # Apart from the year, the words are the same in both. The year is the last part in brackets, so
    # the longest common start leaves the last of equal words to the year.
    prefix = _common_prefix_length(normalised, words)
    if prefix + _common_prefix_length(normalised[::-1], words[::-1]) < len(words):
        return [None] * len(words), None
    year_spans = spans[prefix : prefix + extra]
    year = (year_spans[0][0], year_spans[-1][1]) if year_spans else None
    return [*spans[:prefix], *spans[prefix + extra :]], year


def _normalise_character(character: str) -> str | None:
    """The normalised form of a character, possibly empty; None for a gap between words."""
    piece = normalise_title(character)[0]
    # An apostrophe also normalises to nothing; put between two letters, only a gap leaves a space.
    return None if not piece and " " in normalise_title(f"a{character}b")[0] else piece


def _common_prefix_length(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the common prefix of two lists."""
    pairs = zip(first, second, strict=False)
    return next(
        (index for index, (left, right) in enumerate(pairs) if left != right),
        min(len(first), len(second)),
    )
