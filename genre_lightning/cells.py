"""Cells of CSV files for people, which a spreadsheet must not take for formulas.

A spreadsheet runs a cell that begins with = + - @ as a formula, also where it came from a movie's
title. So what we write for people has an apostrophe before such a text, and our own readers take it
off again. Nor may a genre's name, which can be any text, be taken for a separator or a column.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_GUARDED = re.compile(r"'+[=+\-@\t\r]")
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")
#: What joins genres in a cell, of our own files and of a manifest that names nothing else.
SEPARATOR = "|"
#: Of our own files, where one is in a genre's name, the next.
_SEPARATORS = f"{SEPARATOR};,/~^"


def guard(text: str) -> str:
    """The text as no formula: with an apostrophe before it, where it would be one.

    Numbers are left alone. So that :func:`unguard` gives every text back, one that begins with
    apostrophes and then such a sign gets a further one.
    """
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def guarded(row: Iterable[object]) -> list[object]:
    """A row for ``csv.writer``: its texts guarded, its numbers as they are."""
    return [guard(cell) if isinstance(cell, str) else cell for cell in row]


def unguard(text: str) -> str:
    """What :func:`guard` was given."""
    # Few cells begin with an apostrophe: most need no search.
    return text[1:] if text.startswith("'") and _GUARDED.match(text) else text


def score_cell(score: float) -> str:
    """A score with nine digits, which tell any two float32 apart.

    Rounded to six decimals, the small scores of a rare genre would tie, and its average precision
    would be another.
    """
    return f"{score:.9g}"


def separator_of(genres: Sequence[str]) -> str:
    """What joins any of these genres in a cell, so that they can be told apart: ``|`` if it can."""
    usable = (mark for mark in _SEPARATORS if not any(mark in genre for genre in genres))
    return next(usable, "\n")


def score_columns(genres: Sequence[str], others: Iterable[str]) -> list[str]:
    """Heads of the columns with the scores of genres: their names, in a table with other columns.

    Where one of the others is called as a genre is, in any case, it is "genre title", say.
    """
    taken = {name.lower() for name in others}
    heads = []
    for genre in genres:
        head = genre
        while head.lower() in taken or (head != genre and head in genres):
            head = f"genre {head}"
        heads.append(head)
    return heads
