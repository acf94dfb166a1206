"""Text for people to read."""

from __future__ import annotations

import pytest

from genre_lightning.wording import counted, first_few, listed, printable, shortened, without_middle


@pytest.mark.parametrize(
    ("text", "max_length", "expected"),
    [("", 3, ""), ("abc", 3, "abc"), ("abcd", 3, "ab…"), ("Léon 🎬 x", 7, "Léon 🎬…")],
    ids=["empty", "fits", "one more", "not ASCII"],
)
def test_shortened_text_fits_the_length(text: str, max_length: int, expected: str) -> None:
    actual = shortened(text, max_length)
    assert actual == expected and len(actual) <= max_length


def test_one_is_counted_in_the_singular() -> None:
    assert [counted(n, "movie") for n in (0, 1, 2)] == ["0 movies", "1 movie", "2 movies"]
    assert counted(1234, "epoch") == "1,234 epochs"


@pytest.mark.parametrize(
    ("names", "last", "expected"),
    [
        (["title"], "and", "title"),
        (["title", "poster"], "or", "title or poster"),
        (["title", "poster", "cast"], "and", "title, poster and cast"),
    ],
    ids=["one", "two", "three"],
)
def test_names_are_listed(names: list[str], last: str, expected: str) -> None:
    assert listed(names, last) == expected


def test_printable_escapes_control_characters() -> None:
    assert printable("Léon 🎬") == "Léon 🎬"
    assert printable("a\x1b[2J\nb\u202e") == r"a\x1b[2J\nb\u202e"


@pytest.mark.parametrize(
    ("count", "expected"), [(0, ""), (1, "a"), (3, "a; b; c"), (4, "a; b; c and 1 more")]
)
def test_the_first_few_and_how_many_more(count: int, expected: str) -> None:
    assert first_few(list("abcde")[:count], 3, "; ") == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("12345678", "12345678"), ("123456789", "1234…789")], ids=len
)
def test_a_long_text_loses_its_middle(text: str, expected: str) -> None:
    assert without_middle(text, 8) == expected
