"""Text for people to read: lists of names, counts, shortened text, and untrusted text."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


def listed(names: Sequence[str], last: str = "and") -> str:
    """Join one or more names as in a sentence: "title, poster and synopsis".

    Args:
        names: the names, in order.
        last: the word before the last name, such as "or".
    """
    *others, end = names
    return f"{', '.join(others)} {last} {end}" if others else end


def first_few(texts: Sequence[str], max_count: int, join: str = ", ") -> str:
    """Join the first texts, and count the others: "A, B and 3 more"."""
    shown, more = join.join(texts[:max_count]), len(texts) - max_count
    return f"{shown} and {more} more" if more > 0 else shown


def counted(count: int, noun: str) -> str:
    """A count and a noun whose plural ends in s: "1 movie", "1,234 movies"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def first_of(count: int) -> str:
    """The end of a clause about the first of some things: ", the first of 12"; "" for only one."""
    return f", the first of {count:,}" if count > 1 else ""


def closest_name(name: str, known: Iterable[str], min_similarity: float = 0.6) -> str | None:
    """The most similar known name; None if none is as similar as ``min_similarity``, in 0..1."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=min_similarity)
    return close[0] if close else None


def did_you_mean(name: str | None) -> str:
    """The end of a sentence about a misspelt name."""
    return "" if name is None else f"; did you mean {name}?"


def shortened(text: str, max_characters: int) -> str:
    """Shorten text to a maximum number of characters, with "…" at the end if it was longer."""
    return text if len(text) <= max_characters else f"{text[: max_characters - 1]}…"


def without_middle(text: str, max_characters: int) -> str:
    """Shorten text that differs at either end, such as paths and names of runs: "data/…/b.csv"."""
    if len(text) <= max_characters:
        return text
    tail = (max_characters - 1) // 2
    return f"{text[: max_characters - 1 - tail]}…{text[-tail:]}"


def printable(text: str) -> str:
    """Escape control characters, which a terminal would execute, as in Python strings."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


def format_duration(seconds: float) -> str:
    """A duration for people: 420 s, 14 min, 2 h 05; in seconds for less than 10 minutes."""
    if seconds < 600:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d}"
