"""Format and checks of a model's answers: a JSON object, or yes or no for each genre."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any

from genre_lightning.errors import UserError

#: Key of the model's reason, beside those of the genres.
WHY = "why"
MAX_SCORE = 100
#: Maximum number of characters of ``why`` that are kept.
MAX_WHY_CHARACTERS = 1000

_THINKING = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)
_FENCE = re.compile(r"^[ \t]*```(?:json)?[ \t]*\n(.*?)\n?```[ \t]*$", re.DOTALL | re.MULTILINE)


class AnswerError(Exception):
    """An answer that can't be used; the message is the reason."""


def check_genres(genres: Sequence[str]) -> None:
    """Refuse genres that can't be the keys of an answer.

    Raises:
        UserError: a genre has the name of the key ``why``.
    """
    if WHY in genres:
        raise UserError(f"a genre of the dataset is called {WHY!r}, as is a key of the answers")


def answer_schema(genres: Sequence[str], why_max_length: int | None = None) -> dict[str, Any]:
    """JSON schema of an answer: a flat object of integers in 0..100 by genre, and ``why``.

    Args:
        genres: names, in the order of the answer.
        why_max_length: maximum characters of ``why``; None for no limit, which some servers refuse.
    """
    why: dict[str, Any] = {"type": "string"}
    if why_max_length is not None:
        why["maxLength"] = why_max_length
    number = {"type": "integer", "minimum": 0, "maximum": MAX_SCORE}
    return {
        "type": "object",
        "properties": {**{genre: dict(number) for genre in genres}, WHY: why},
        "required": [*genres, WHY],
        "additionalProperties": False,
    }


def read_answer(content: str, genres: Sequence[str]) -> tuple[tuple[float, ...], str]:
    """Parse an answer and check it against the schema, which some servers accept but ignore.

    Skips a leading ``<think>`` block. If there is one fenced Markdown block, only that is parsed.

    Returns:
        G scores in 0..1, and the text of ``why``.

    Raises:
        AnswerError: the answer does not match the schema.
    """
    text = _THINKING.sub("", content)
    fenced = _FENCE.findall(text)
    try:
        pairs = json.loads(fenced[0] if len(fenced) == 1 else text, object_pairs_hook=list)
    except (ValueError, RecursionError):
        raise AnswerError(f"not JSON: {_quote(content)}") from None
    if not isinstance(pairs, list) or not all(isinstance(pair, tuple) for pair in pairs):
        raise AnswerError(f"not a JSON object: {_quote(content)}")
    answer = dict(pairs)
    if len(answer) < len(pairs):
        raise AnswerError("duplicate key")
    expected = {*genres, WHY}
    missing = [name for name in (*genres, WHY) if name not in answer]
    if missing:
        raise AnswerError(f"missing key {missing[0]!r}")
    if unknown := [name for name in answer if name not in expected]:
        raise AnswerError(f"unknown key {_quote(unknown[0])}")
    why = answer[WHY]
    if not isinstance(why, str):
        raise AnswerError(f"{WHY!r} is not text")
    # Lone surrogates can't be encoded in UTF-8.
    reason = why.encode("utf-8", "replace").decode("utf-8").strip()[:MAX_WHY_CHARACTERS]
    return tuple(_score(genre, answer[genre]) for genre in genres), reason


def _score(genre: str, value: Any) -> float:
    # As in JSON Schema, 85.0 is an integer and true is not.
    is_whole = type(value) is int or (type(value) is float and value.is_integer())
    if not is_whole or not 0 <= value <= MAX_SCORE:
        raise AnswerError(
            f"{genre!r} is {_quote(json.dumps(value))}, not a whole number in 0..{MAX_SCORE}"
        )
    return float(value) / MAX_SCORE


def yes_share(tokens: Sequence[tuple[str, float]]) -> float:
    """The probability of yes against no.

    Args:
        tokens: candidates for the answer's first token, with log-probabilities. Several can mean
            the same word: "Yes", " yes".

    Raises:
        AnswerError: neither yes nor no is a candidate.
    """
    sums = {"yes": 0.0, "no": 0.0}
    for token, logprob in tokens:
        word = token.strip().strip(".\"'").lower()
        if word in sums and math.isfinite(logprob):
            sums[word] += math.exp(min(logprob, 0.0))
    total = sum(sums.values())
    if not total:
        likeliest = max(tokens, key=lambda pair: pair[1], default=("", 0.0))[0]
        raise AnswerError(
            f"neither yes nor no is likely; the likeliest first token is {likeliest!r:.50}"
        )
    return sums["yes"] / total


def _quote(text: str) -> str:
    """The beginning of a model's text, in one line."""
    return repr(" ".join(text.split())[:80])
