from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genre_lightning.cells import guard, unguard


@pytest.mark.parametrize("sign", ["=", "+", "-", "@", "\t", "\r"])
def test_no_cell_begins_as_a_formula(sign: str):
    assert guard(f"{sign}x") == f"'{sign}x"
    assert guard(f"'{sign}x") == f"''{sign}x"


@pytest.mark.parametrize("text", ["", "Heat", "'Round Midnight", "-5", "+3.25", "a=b", " =x"])
def test_what_is_no_formula_stays_as_it_is(text: str):
    assert guard(text) == text


@given(st.text(alphabet="'=+-@\t\rx5. ") | st.text())
def test_every_text_comes_back(text: str):
    assert unguard(guard(text)) == text
