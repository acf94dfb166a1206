"""Contributions of each word of a text to a branch on a frozen encoder's vector of the whole text.

Words are left out one at a time, and the remaining text is embedded again (Li et al. 2016,
"Understanding neural networks through representation erasure"). Redundant words can replace each
other, so the changes don't sum to the branch's part.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar, final

import numpy as np

from genre_lightning.checkpoint.model import TrainedModel
from genre_lightning.explain.average import average_logits
from genre_lightning.explain.explainer import Explainer, TextExplanation, TextPart, branch_logits
from genre_lightning.inputs.embedding import EmbeddingInput
from genre_lightning.inputs.encode import encode_items
from genre_lightning.inputs.input import Value
from genre_lightning.inputs.poster_text import text_input

#: The most texts to embed for one explanation, and their total number of words: about ten seconds
#: of MiniLM on one core. In texts of more than 140 words, several words are left out together; for
#: an encoder that costs seven times as much, in texts of more than 53.
MAX_TEXTS, MAX_WORDS = 400, 20_000
#: A budget counts texts for MiniLM. A costlier encoder gets fewer, but at least this many.
MIN_TEXTS = 6

# Runs of characters between spaces, dashes and the bars of a list. In kana and Han, which are
# written without spaces, single characters.
_WRITTEN = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\s|\u2013\u2014\u3040-\u30ff\u3400-\u9fff]+")
_WORD = re.compile(r"\w(?:.*\w)?", re.DOTALL)


@final
class LeftOutExplainer(Explainer):
    """Explains the words of an embedded text by leaving each out."""

    method: ClassVar[str] = "leave one out: what is lost without the word"
    gives: ClassVar[str] = "words"

    def baseline(self, model: TrainedModel, branch: str) -> np.ndarray | None:
        """The logits of the average training vector, if the network has stored it."""
        return average_logits(model, branch)

    def explain(
        self, model: TrainedModel, branch: str, value: Value, budget: int | None = None
    ) -> TextExplanation | None:
        branch_input = model.inputs[branch]
        # What the encoder sees, such as a title with its article in front.
        text = branch_input.read(value)
        if text is None:
            return None
        words = find_words(text)
        encodes = text_input(branch_input)
        cost = encodes.spec.cost if isinstance(encodes, EmbeddingInput) else 1
        afforded = max(MIN_TEXTS, budget // cost) if budget and cost > 1 else budget
        most = min(afforded or MAX_TEXTS, MAX_TEXTS, MAX_WORDS // cost // max(1, len(words)))
        groups = group_words(words, most)
        without = [leave_out(text, group) for group in groups]
        # One call, so that the encoder can batch the texts. A text without any words left counts
        # as absent: the branch then gives its baseline.
        asked = [text, *(left for left in without if left)]
        part = encode_items({branch: branch_input}, {branch: asked}, model.device)[branch]
        whole, *found = branch_logits(model, branch, part)
        baseline = self.baseline(model, branch)
        nothing = np.zeros_like(whole) if baseline is None else baseline
        seen = iter(found)
        # For a poster, the text shown is the words read on it.
        given = text if branch_input.of == "poster" else value
        spans = as_given(given, text, groups)
        parts = []
        for group, left, span in zip(groups, without, spans, strict=True):
            lost = whole - (next(seen) if left else nothing)
            parts.append(TextPart(text[group[0][0] : group[-1][1]], "word", span, lost))
        return TextExplanation(self.method, given, tuple(parts), False, whole - nothing)


def as_given(
    given: str, seen: str, groups: Sequence[Sequence[tuple[int, int]]]
) -> list[tuple[int, int] | None]:
    """Locate groups of words of the text that the encoder sees in the text as given.

    The encoder's text can have the words in a different order and lack some of them. Equal words
    are matched in order.

    Args:
        given: text as given.
        seen: text that the encoder sees.
        groups: start and end in ``seen`` of each word of each group.

    Returns:
        Start and end of each group in ``given``; None if its words are not adjacent there or are
        missing.
    """
    if given == seen:
        return [(group[0][0], group[-1][1]) for group in groups]
    words = find_words(given)
    left = {
        text: [n for n, w in enumerate(words) if given[slice(*w)] == text]
        for text in {given[slice(*word)] for word in words}
    }
    spans: list[tuple[int, int] | None] = []
    for group in groups:
        places = [(left.get(seen[slice(*word)]) or [-1]).pop(0) for word in group]
        together = places == list(range(places[0], places[0] + len(places)))
        if together and places[0] >= 0:
            spans.append((words[places[0]][0], words[places[-1]][1]))
        else:
            spans.append(None)
    return spans


def find_words(text: str) -> list[tuple[int, int]]:
    """Start and end of each word without surrounding punctuation; skips punctuation by itself."""
    words = []
    for written in _WRITTEN.finditer(text):
        if word := _WORD.search(written[0]):
            words.append((written.start() + word.start(), written.start() + word.end()))
    return words


def group_words(words: Sequence[tuple[int, int]], most: int) -> list[list[tuple[int, int]]]:
    """Group consecutive words, as few per group as gives at most ``most`` groups."""
    size = -(-len(words) // max(1, most)) or 1
    return [list(words[start : start + size]) for start in range(0, len(words), size)]


def leave_out(text: str, words: Sequence[tuple[int, int]]) -> str:
    """Remove consecutive words from a text, with the adjoining punctuation and the space after."""
    start, end = words[0][0], words[-1][1]
    for written in _WRITTEN.finditer(text):
        if written.start() <= start < written.end():
            start = written.start()
        if written.start() < end <= written.end():
            end = written.end()
    return f"{text[:start]}{text[end:].lstrip()}".rstrip() if start else text[end:].strip()
