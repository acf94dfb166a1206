"""Cells of CSV files for people, which a spreadsheet must not take for formulas.

A spreadsheet runs a cell that begins with = + - @ as a formula, also where it came from a movie's
title. So what we write for people has an apostrophe before such a text, and our own readers take it
off again. Nor may a genre's name, which can be any text, be taken for a separator or a column.

Cells that other programs wrote may hold a list, or a mark where there is nothing.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Sequence

_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_GUARDED = re.compile(r"'+[=+\-@\t\r]")
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")
#: What joins genres in a cell, of our own files and of a manifest that names nothing else.
SEPARATOR = "|"
#: Of our own files, where one is in a genre's name, the next.
_SEPARATORS = f"{SEPARATOR};,/~^"


#: What databases, pandas and MovieLens write where there is nothing.
_NOTHING = frozenset(
    (r"\N", "NaN", "nan", "None", "NULL", "null", "N/A", "n/a", "NA", "<NA>", "(no genres listed)")
)
_LIST = re.compile(r"\[\s*(\]|[\"'{].*\]$)", re.DOTALL)
#: As NumPy writes arrays, which Python would read as one text.
_WITHOUT_COMMAS = re.compile(r"[\"']\s+[\"']")


def names_in_list(cell: str) -> tuple[str, ...] | None:
    """The names in a list as JSON or Python writes it; None for any other text.

    It holds texts, ``["Action", "Comedy"]``, or objects with a ``name``, as TMDB's files do.
    """
    if not _LIST.match(cell):
        return None
    try:
        items = json.loads(cell)
    except (ValueError, RecursionError):
        if _WITHOUT_COMMAS.search(cell):
            return None
        try:
            items = ast.literal_eval(cell)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            return None
    names = [item.get("name") if isinstance(item, dict) else item for item in items]
    texts = tuple(name.strip() for name in names if isinstance(name, str))
    return texts if len(texts) == len(names) else None


def text_of(column: str, cell: str) -> str:
    """What a cell says: "" for a mark of nothing, and the names of a list joined by ``|``.

    A title is what it is: a movie may be called None.
    """
    if column == "title":
        return cell
    names = names_in_list(cell)
    return SEPARATOR.join(names) if names is not None else "" if cell in _NOTHING else cell


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
