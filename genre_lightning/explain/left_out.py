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
_TOKEN = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\s|\u2013\u2014\u3040-\u30ff\u3400-\u9fff]+")
_WORD = re.compile(r"\w(?:.*\w)?", re.DOTALL)


@final
class LeaveOneOutExplainer(Explainer):
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
        encoding_input = text_input(branch_input)
        cost = encoding_input.spec.cost if isinstance(encoding_input, EmbeddingInput) else 1
        max_texts = max(MIN_TEXTS, budget // cost) if budget and cost > 1 else budget
        max_groups = min(max_texts or MAX_TEXTS, MAX_TEXTS, MAX_WORDS // cost // max(1, len(words)))
        groups = group_words(words, max_groups)
        shortened = [leave_out(text, group) for group in groups]
        # One call, so that the encoder can batch the texts. A text without any words left counts
        # as absent: the branch then gives its baseline.
        texts = [text, *(rest for rest in shortened if rest)]
        part = encode_items({branch: branch_input}, {branch: texts}, model.device)[branch]
        full_logits, *logits = branch_logits(model, branch, part)
        baseline = self.baseline(model, branch)
        reference = np.zeros_like(full_logits) if baseline is None else baseline
        remaining = iter(logits)
        # For a poster, the text shown is the words read on it.
        shown = text if branch_input.of == "poster" else value
        spans = locate_groups(shown, text, groups)
        parts = []
        for group, rest, span in zip(groups, shortened, spans, strict=True):
            contributions = full_logits - (next(remaining) if rest else reference)
            parts.append(TextPart(text[group[0][0] : group[-1][1]], "word", span, contributions))
        return TextExplanation(self.method, shown, tuple(parts), False, full_logits - reference)


def locate_groups(
    original: str, encoded: str, groups: Sequence[Sequence[tuple[int, int]]]
) -> list[tuple[int, int] | None]:
    """Locate groups of words of the text that the encoder sees in the text as given.

    The encoder's text can have the words in a different order and lack some of them. Equal words
    are matched in order.

    Args:
        original: text as given.
        encoded: text that the encoder sees.
        groups: start and end in ``encoded`` of each word of each group.

    Returns:
        Start and end of each group in ``original``; None if its words are not adjacent there or are
        missing.
    """
    if original == encoded:
        return [(group[0][0], group[-1][1]) for group in groups]
    words = find_words(original)
    unused = {
        text: [n for n, w in enumerate(words) if original[slice(*w)] == text]
        for text in {original[slice(*word)] for word in words}
    }
    spans: list[tuple[int, int] | None] = []
    for group in groups:
        indices = [(unused.get(encoded[slice(*word)]) or [-1]).pop(0) for word in group]
        adjacent = indices == list(range(indices[0], indices[0] + len(indices)))
        if adjacent and indices[0] >= 0:
            spans.append((words[indices[0]][0], words[indices[-1]][1]))
        else:
            spans.append(None)
    return spans


def find_words(text: str) -> list[tuple[int, int]]:
    """Start and end of each word without surrounding punctuation; skips punctuation by itself."""
    words = []
    for token in _TOKEN.finditer(text):
        if word := _WORD.search(token[0]):
            words.append((token.start() + word.start(), token.start() + word.end()))
    return words


def group_words(words: Sequence[tuple[int, int]], max_groups: int) -> list[list[tuple[int, int]]]:
    """Group consecutive words, as few per group as gives at most ``max_groups`` groups."""
    size = -(-len(words) // max(1, max_groups)) or 1
    return [list(words[start : start + size]) for start in range(0, len(words), size)]


def leave_out(text: str, words: Sequence[tuple[int, int]]) -> str:
    """Remove consecutive words from a text, with the adjoining punctuation and the space after."""
    start, end = words[0][0], words[-1][1]
    for token in _TOKEN.finditer(text):
        if token.start() <= start < token.end():
            start = token.start()
        if token.start() < end <= token.end():
            end = token.end()
    return f"{text[:start]}{text[end:].lstrip()}".rstrip() if start else text[end:].strip()
