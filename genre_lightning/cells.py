"""Cells of CSV files: protection from spreadsheet formulas, separators, lists, and missing values.

A spreadsheet runs a cell that begins with = + - @ as a formula, even if it is a movie's title. So
we write an apostrophe before such texts in files for people, and our own readers remove it. Genre
names can be any text, so separators and column names are chosen not to collide with them.

Cells written by other programs can contain lists, or markers for missing values.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Sequence

_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_GUARDED = re.compile(r"'+[=+\-@\t\r]")
_NUMBER = re.compile(r"[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|inf|nan)", re.IGNORECASE)
#: Joins genres in a cell, in our own files and by default in a manifest.
SEPARATOR = "|"
#: Separators for our own files, in order of preference; one that is in a genre's name is skipped.
_SEPARATORS = f"{SEPARATOR};,/~^"


#: Markers for missing values, as written by databases, pandas and MovieLens.
_MISSING = frozenset(
    (r"\N", "NaN", "nan", "None", "NULL", "null", "N/A", "n/a", "NA", "<NA>", "(no genres listed)")
)
_LIST = re.compile(r"\[\s*(\]|[\"'{].*\]$)", re.DOTALL)
#: NumPy writes arrays without commas, which Python would parse as one concatenated string.
_WITHOUT_COMMAS = re.compile(r"[\"']\s+[\"']")


def names_in_list(cell: str) -> tuple[str, ...] | None:
    """Parse the names in a JSON or Python list; None for any other text.

    The items are strings, ``["Action", "Comedy"]``, or objects with a ``name``, as in TMDB's files.
    """
    # The first character alone excludes nearly every cell, faster than the pattern.
    if cell[:1] != "[" or not _LIST.match(cell):
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
    """Text of a cell: "" for a missing value, and the names in a list joined by ``|``.

    Titles are returned unchanged, since a movie can be called None.
    """
    if column == "title":
        return cell
    names = names_in_list(cell)
    return SEPARATOR.join(names) if names is not None else "" if cell in _MISSING else cell


def guard(text: str) -> str:
    """Put an apostrophe before a text that a spreadsheet would take for a formula.

    Numbers are unchanged. A text that begins with apostrophes and then such a sign gets another
    apostrophe, so that :func:`unguard` can restore every text.
    """
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def guarded(row: Iterable[object]) -> list[object]:
    """A row for ``csv.writer``, with texts guarded and numbers unchanged."""
    return [guard(cell) if isinstance(cell, str) else cell for cell in row]


def unguard(text: str) -> str:
    """Undo :func:`guard`."""
    # Few cells begin with an apostrophe, so most need no regex search.
    return text[1:] if text.startswith("'") and _GUARDED.match(text) else text


def score_cell(score: float) -> str:
    """Format a score with nine significant digits, which distinguish any two float32 values.

    With six decimals, small scores of a rare genre would tie and change its average precision.
    """
    return f"{score:.9g}"


def separator_of(genres: Sequence[str]) -> str:
    """A separator that is in none of these genres: ``|`` if possible."""
    unused = (mark for mark in _SEPARATORS if not any(mark in genre for genre in genres))
    return next(unused, "\n")


def score_columns(genres: Sequence[str], others: Iterable[str]) -> list[str]:
    """Headers of the columns with scores, in a table with other columns: the genres' names.

    A name that equals another column's, ignoring case, gets a prefix, as in "genre title".
    """
    taken = {name.lower() for name in others}
    headers = []
    for genre in genres:
        header = genre
        while header.lower() in taken or (header != genre and header in genres):
            header = f"genre {header}"
        headers.append(header)
    return headers
