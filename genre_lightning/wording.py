"""Text for people to read: names, counts, text that has to fit, text from untrusted files."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


def listed(names: Sequence[str], last: str = "and") -> str:
    """At least one name as a list in a sentence: "title, poster and synopsis".

    Args:
        names: in order.
        last: the word before the last name, such as "or".
    """
    *others, end = names
    return f"{', '.join(others)} {last} {end}" if others else end


def first_few(texts: Sequence[str], most: int, join: str = ", ") -> str:
    """The first of some texts, and how many more there are: "A, B and 3 more"."""
    shown, more = join.join(texts[:most]), len(texts) - most
    return f"{shown} and {more} more" if more > 0 else shown


def counted(count: int, noun: str) -> str:
    """How many there are of something whose plural ends in s: "1 movie", "1,234 movies"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def closest_name(name: str, known: Iterable[str], likeness: float = 0.6) -> str | None:
    """The known name that was most likely meant; None where none is like it, from 0 to 1."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=likeness)
    return close[0] if close else None


def did_you_mean(name: str | None) -> str:
    """The end of a sentence about a misspelt name."""
    return "" if name is None else f"; did you mean {name}?"


def shortened(text: str, most: int) -> str:
    """Text of at most so many characters: the last one is "…" where there was more."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def printable(text: str) -> str:
    """Text whose control characters, which a terminal obeys, are escaped as in Python."""
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )


def shown_time(seconds: float) -> str:
    """A duration for people: 420 s, 14 min, 2 h 05; runs of some minutes are told apart."""
    if seconds < 600:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d}"
