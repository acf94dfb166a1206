"""Text that is cut to fit."""

from __future__ import annotations

import pytest

from genre_lightning.page.shortening import shortened


@pytest.mark.parametrize(
    ("text", "most", "expected"),
    [("", 3, ""), ("abc", 3, "abc"), ("abcd", 3, "ab…"), ("Léon 🎬 x", 7, "Léon 🎬…")],
    ids=["empty", "fits", "one more", "not ASCII"],
)
def test_it_has_as_many_characters_at_most(text: str, most: int, expected: str) -> None:
    found = shortened(text, most)
    assert found == expected and len(found) <= most
