"""Validation of answers against the schema, and the probability of yes."""

from __future__ import annotations

import json
import math

import pytest

from genre_lightning.ask.answer import (
    AnswerError,
    answer_schema,
    check_genres,
    read_answer,
    yes_share,
)
from genre_lightning.errors import UserError

GENRES = ("Action", "Children's", "Film-Noir")
VALID = {"Action": 0, "Children's": 100, "Film-Noir": 7, "why": "It is dark."}


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(VALID),
        json.dumps(dict(reversed(VALID.items())), indent=2),
        "```json\n" + json.dumps(VALID) + "\n```",
        "```\n" + json.dumps(VALID) + "```",
        "Here it is:\n\n```json\n" + json.dumps(VALID, indent=2) + "\n```\n\nI hope this helps.",
        "<think>It may {be} dark.</think>\n" + json.dumps(VALID),
        json.dumps({**VALID, "Film-Noir": 7.0}),
    ],
    ids=[
        "plain",
        "in another order",
        "fenced",
        "fence without line break",
        "fenced in prose",
        "after thinking",
        "7.0",
    ],
)
def test_valid_answers_are_read(content: str) -> None:
    assert read_answer(content, GENRES) == ((0.0, 1.0, 0.07), "It is dark.")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "not JSON"),
        ("It is a dark film.", "not JSON: 'It is a dark film.'"),
        (json.dumps(VALID)[:-5], "not JSON"),
        (json.dumps(VALID) + " I hope this helps.", "not JSON"),
        (2 * ("```json\n" + json.dumps(VALID) + "\n```\n"), "not JSON"),
        ("```json\nnot it\n```", "not JSON"),
        ("[1, 2]", "not a JSON object"),
        ("7", "not a JSON object"),
        ("[" * 100_000, "not JSON"),
        ("{}", "missing key 'Action'"),
        (json.dumps({**VALID, "Western": 3}), "unknown key 'Western'"),
        (json.dumps({k: v for k, v in VALID.items() if k != "why"}), "missing key 'why'"),
        (json.dumps({**VALID, "why": None}), "'why' is not text"),
        (json.dumps({**VALID, "Action": 101}), "'Action' is '101'"),
        (json.dumps({**VALID, "Action": -1}), "not a whole number in 0..100"),
        (json.dumps({**VALID, "Action": 0.5}), "not a whole number"),
        (json.dumps({**VALID, "Action": "90"}), "not a whole number"),
        (json.dumps({**VALID, "Action": True}), "not a whole number"),
        (json.dumps({**VALID, "Action": math.nan}), "not a whole number"),
        (json.dumps({**VALID, "Action": None}), "not a whole number"),
        (json.dumps({**VALID, "Action": {"score": 3}}), "not a whole number"),
        ('{"Action": 1, ' + json.dumps(VALID)[1:], "duplicate key"),
    ],
)
def test_invalid_answers_are_refused_with_a_reason(content: str, reason: str) -> None:
    with pytest.raises(AnswerError) as caught:
        read_answer(content, GENRES)
    assert reason in str(caught.value) and len(str(caught.value)) < 200


def test_lone_surrogate_is_replaced() -> None:
    content = json.dumps(VALID).replace("dark", "\\ud83d dark")
    _, why = read_answer(content, GENRES)
    assert why == "It is ? dark." and why.encode()


def test_the_schema_is_flat_and_strict() -> None:
    schema = answer_schema(GENRES, why_max_length=40)
    assert list(schema["properties"]) == schema["required"] == [*GENRES, "why"]
    assert schema["additionalProperties"] is False
    assert schema["properties"]["Action"] == {"type": "integer", "minimum": 0, "maximum": 100}
    assert schema["properties"]["why"] == {"type": "string", "maxLength": 40}
    assert "maxLength" not in answer_schema(GENRES)["properties"]["why"]


def test_genre_named_why_is_refused() -> None:
    with pytest.raises(UserError, match=r"'why'"):
        check_genres(["Drama", "why"])


def test_yes_is_renormalised_over_the_spellings_of_yes_and_no() -> None:
    tokens = {"Yes": 0.3, " yes": 0.1, "NO": 0.15, "no.": 0.05, "Maybe": 0.4}
    logs = [(token, math.log(share)) for token, share in tokens.items()]
    assert yes_share(logs) == pytest.approx(0.4 / 0.6)
    assert yes_share([("no", 0.0), ("yes", -math.inf)]) == 0.0
    with pytest.raises(AnswerError, match=r"neither yes nor no .* 'Maybe'"):
        yes_share([("Maybe", -0.1), ("Yet", -3.0)])
