"""Titles as one says them, for encoders that have learnt from sentences."""

from __future__ import annotations

import re

from genre_lightning.inputs.vectorizer import YEAR

#: Articles that catalogues put behind: "Godfather, The".
_ARTICLES = (
    *("the", "a", "an", "la", "le", "les", "l'", "un", "une", "el", "los", "las"),
    *("il", "lo", "gli", "der", "die", "das", "ein", "eine", "den", "det", "het"),
)
_BEHIND = re.compile(
    rf"([^()\[\]]+?),\s+({'|'.join(_ARTICLES)})(?=\s*(?:[(\[]|[)\]]|$))", re.IGNORECASE
)


def natural_title(title: str, year: bool = False) -> str:
    """A title with its articles in front, and without its year or with the year behind.

    `"Godfather, The (1972)"` gives `"The Godfather"`; `"City of Lost Children, The (Cité des
    enfants perdus, La) (1995)"` gives `"The City of Lost Children (La Cité des enfants perdus)"`,
    or with the year the same and `" (1995)"`.
    """
    years = list(YEAR.finditer(title))
    if years:
        title = title[: years[-1].start()] + title[years[-1].end() :]

    def front(match: re.Match[str]) -> str:
        words, article = match[1], match[2]
        stripped = words.lstrip()
        lead = words[: len(words) - len(stripped)]
        return f"{lead}{article}{'' if article.endswith(chr(39)) else ' '}{stripped}"

    natural = " ".join(_BEHIND.sub(front, title).split())
    return f"{natural} ({years[-1][1]})" if years and year else natural
