from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genre_lightning.cells import guard, score_cell, score_columns, separator_of, unguard


@pytest.mark.parametrize("sign", ["=", "+", "-", "@", "\t", "\r"])
def test_formulas_are_escaped(sign: str):
    assert guard(f"{sign}x") == f"'{sign}x"
    assert guard(f"'{sign}x") == f"''{sign}x"


@pytest.mark.parametrize(
    "text", ["", "Heat", "'Round Midnight", "-5", "+3.25", "-1.5e-05", "-.5", "-inf", "a=b", " =x"]
)
def test_other_text_is_not_escaped(text: str):
    assert guard(text) == text


@given(st.text(alphabet="'=+-@\t\rx5. ") | st.text())
def test_unguard_inverts_guard(text: str):
    assert unguard(guard(text)) == text


@pytest.mark.parametrize(
    ("genres", "separator"),
    [([], "|"), (["Action", "A; B"], "|"), (["Sci|Fi", "War"], ";"), (["A|B", "A; B/C"], ",")],
)
def test_separator_occurs_in_no_genre(genres: list[str], separator: str):
    assert separator_of(genres) == separator


@given(st.lists(st.text(alphabet="|;,/~^AB", min_size=1)))
def test_joined_genres_can_be_split(genres: list[str]):
    separator = separator_of(genres)
    assert separator.join(genres).split(separator) == (genres or [""])


@pytest.mark.parametrize(
    ("genres", "heads"),
    [
        (["Action", "Drama"], ["Action", "Drama"]),
        (["Title", "id"], ["genre Title", "id"]),
        (["title", "genre title"], ["genre genre title", "genre title"]),
    ],
)
def test_genre_columns_do_not_clash(genres: list[str], heads: list[str]):
    assert score_columns(genres, ["title", "predicted"]) == heads


@given(st.floats(0.0, 1.0, width=32))
def test_score_survives_writing_and_reading(score: float):
    assert np.float32(score_cell(score)) == np.float32(score)
