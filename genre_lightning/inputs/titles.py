"""Titles: their words, their year, and the form in which people say them."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

#: The years that count as years of release; `_YEAR` finds no others.
FIRST_YEAR, LAST_YEAR = 1800, 2099

# "(1999)", also "( 1999 )", "[1999]", "(1999/I)" and the years of a series, "(1999-2003)".
_YEAR = re.compile(r"[(\[]\s*(1[89][0-9]{2}|20[0-9]{2})(?:\s*[-‐-―/][^()\[\]]{0,9})?\s*[)\]]")

#: Articles that catalogues move to the end: "Godfather, The".
_ARTICLES = (
    *("the", "a", "an", "la", "le", "les", "l'", "un", "une", "el", "los", "las"),
    *("il", "lo", "gli", "der", "die", "das", "ein", "eine", "den", "det", "het"),
)
_TRAILING_ARTICLE = re.compile(
    rf"([^()\[\]]+?),\s+({'|'.join(_ARTICLES)})(?=\s*(?:[(\[]|[)\]]|$))", re.IGNORECASE
)


class _Characters(dict[int, str]):
    """A table for `str.translate` that is filled as characters are first seen.

    Letters, digits and combining marks (vowel signs of Indic scripts are marks) stay. Apostrophes,
    full stops and invisible characters are removed ("Schindler's" -> "schindlers", "E.T." -> "et").
    Any other character becomes a space ("Face/Off" -> "face off").
    """

    def __missing__(self, code: int) -> str:
        character = chr(code)
        category = unicodedata.category(character)
        if character in "'’‘`ʹ." or category == "Cf":
            result = ""
        elif category[0] in "LNM":
            result = character
        else:
            result = " "
        self[code] = result
        return result


_CHARACTERS = _Characters()


def normalise_title(title: str) -> tuple[str, int | None]:
    """Split a title into its words, lowercase without punctuation, and its year.

    `"Godfather, The (1972)"` gives `("godfather the", 1972)`. The year is the last number from 1800
    to 2099 that stands in its own brackets. All other digits stay ("2001: A Space Odyssey (1968)",
    "Blade Runner 2049 (2017)"), and so do other remarks in brackets, without the brackets.
    Compatibility forms are unified (NFKC: full-width letters, ligatures). Accents are kept, since
    they distinguish words and languages.

    Returns: the words joined by single spaces, possibly ""; the year, or None if there is none.
    """
    if not title.isascii():
        # NFKC would split an acute accent that stands for an apostrophe into a space and a mark.
        title = unicodedata.normalize("NFKC", title.replace("´", "'"))
    year = None
    match = _match_last_year(title)
    if match is not None:
        year = int(match[1])
        title = f"{title[: match.start()]} {title[match.end() :]}"
    text = title.lower()
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return " ".join(text.translate(_CHARACTERS).split()), year


def natural_title(title: str, year: bool = False) -> str:
    """Move a title's articles to the front; remove its year or, with ``year``, put it at the end.

    `"Godfather, The (1972)"` gives `"The Godfather"`; `"City of Lost Children, The (Cité des
    enfants perdus, La) (1995)"` gives `"The City of Lost Children (La Cité des enfants perdus)"`,
    followed by `" (1995)"` with ``year``.
    """
    year_match = _match_last_year(title)
    if year_match is not None:
        title = title[: year_match.start()] + title[year_match.end() :]

    def move_article(match: re.Match[str]) -> str:
        words, article = match[1], match[2]
        stripped = words.lstrip()
        lead = words[: len(words) - len(stripped)]
        return f"{lead}{article}{'' if article.endswith(chr(39)) else ' '}{stripped}"

    natural = " ".join(_TRAILING_ARTICLE.sub(move_article, title).split())
    return f"{natural} ({year_match[1]})" if year_match is not None and year else natural


def check_years(years: Any) -> tuple[int, int]:
    """Check the first and last year that an input saw in train, which can be untrusted.

    Raises:
        ValueError: the value is not a list of two ascending years in the allowed range.
    """
    if (
        not isinstance(years, list)
        or len(years) != 2
        or not all(type(year) is int for year in years)
        or not FIRST_YEAR <= years[0] <= years[1] <= LAST_YEAR
    ):
        raise ValueError(f"years: {years!r:.100} are not two in {FIRST_YEAR} to {LAST_YEAR}")
    return years[0], years[1]


def _match_last_year(title: str) -> re.Match[str] | None:
    """Match the last year in its own brackets; group 1 is the year without the brackets."""
    return next(reversed(list(_YEAR.finditer(title))), None)
