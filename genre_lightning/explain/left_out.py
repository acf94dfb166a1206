"""What each word of a text adds where its branch sees a frozen encoder's vector of the whole text.

Words are left out one at a time, and the text that is left is embedded again (Li et al. 2016,
"Understanding neural networks through representation erasure"). Two words that say the same cover
for each other, so the changes don't sum to the branch's part.
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

#: The most texts that are embedded for one explanation, and the most words of them all: some ten
#: seconds of MiniLM on one core. A text of more than 140 words loses several of them at once; for
#: an encoder that costs seven times as much, one of more than 53.
MAX_TEXTS, MAX_WORDS = 400, 20_000
#: A budget is of MiniLM's texts. A costlier encoder has fewer, but no less than these.
MIN_TEXTS = 6

# What is between spaces, dashes and the bars of a list of names. In scripts written without them,
# each character: kana and Han.
_WRITTEN = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\s|\u2013\u2014\u3040-\u30ff\u3400-\u9fff]+")
_WORD = re.compile(r"\w(?:.*\w)?", re.DOTALL)


@final
class LeftOutExplainer(Explainer):
    """The words of a text that is embedded, each by leaving it out."""

    method: ClassVar[str] = "leave one out: what is lost without the word"
    gives: ClassVar[str] = "words"

    def baseline(self, model: TrainedModel, branch: str) -> np.ndarray | None:
        """The logits of the average vector of train, where the network knows it."""
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
        # All in one call of the encoder, which makes batches of them. A text of which nothing is
        # left counts as absent: the branch then says nothing, beyond its baseline.
        asked = [text, *(left for left in without if left)]
        part = encode_items({branch: branch_input}, {branch: asked}, model.device)[branch]
        whole, *found = branch_logits(model, branch, part)
        baseline = self.baseline(model, branch)
        nothing = np.zeros_like(whole) if baseline is None else baseline
        seen = iter(found)
        # Of a poster, its words are what is shown.
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
    """Where groups of words of the text that the encoder sees stand in the text as given.

    Words are the same in both, in another order maybe, and some may be left out; of equal ones the
    first is the first. None for words that stand apart or are not in it.
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
    """Start and end of each word, without the punctuation around it; what has none is no word."""
    words = []
    for written in _WRITTEN.finditer(text):
        if word := _WORD.search(written[0]):
            words.append((written.start() + word.start(), written.start() + word.end()))
    return words


def group_words(words: Sequence[tuple[int, int]], most: int) -> list[list[tuple[int, int]]]:
    """Consecutive words together, as few as make no more than ``most`` groups."""
    size = -(-len(words) // max(1, most)) or 1
    return [list(words[start : start + size]) for start in range(0, len(words), size)]


def leave_out(text: str, words: Sequence[tuple[int, int]]) -> str:
    """The text without consecutive words, the punctuation that touches them, and a space."""
    start, end = words[0][0], words[-1][1]
    for written in _WRITTEN.finditer(text):
        if written.start() <= start < written.end():
            start = written.start()
        if written.start() < end <= written.end():
            end = written.end()
    return f"{text[:start]}{text[end:].lstrip()}".rstrip() if start else text[end:].strip()
