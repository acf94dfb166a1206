"""Cells of CSV files for people, which a spreadsheet must not take for formulas.

A spreadsheet runs a cell that begins with = + - @ as a formula, also where it came from a movie's
title. So what we write for people has an apostrophe before such a text, and our own readers take it
off again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_GUARDED = re.compile(r"'+[=+\-@\t\r]")
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")


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
