"""The steps of deployment.md that turn texts into terms for ONNX, against the package."""

from __future__ import annotations

import math
import re
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from genre_lightning.inputs.titles import natural_title
from genre_lightning.inputs.vectorizer import ANALYZERS, TermVectorizer

PAGE = Path(__file__).resolve().parents[2] / "docs" / "deployment.md"
#: The page's two regular expressions: for years, and for articles that follow their words.
YEAR, ARTICLE = re.findall(r"```text\n\s*(\S*[(]\S.*)\n\s*```", PAGE.read_text("utf-8"))[-2:]

TITLES = [
    *("Heat (1995)", "Godfather, The (1972)", "2001: A Space Odyssey (1968)", "M (1931)", "$"),
    *("E.T. the Extra-Terrestrial (1982)", "Schindler's List [1993]", "Face/Off (1997/I)", ""),
    *("City of Lost Children, The (Cité des enfants perdus, La) (1995)", "(1899)", "Ⅷ ﬁn (2150)"),
    *(
        "Léon: The Professional (1994)",
        "Amélie (Fabuleux destin, Le) (2001)",
        "Ｆｕｌｌ (1890-1895)",
    ),
    *("Tom Hanks|Tim Allen|", "Al Pacino | Robert De Niro|al pacino", "जय हो (2014)", "a\u200bb"),
    *("Avventura, L' (1960)", "Die, Die, My Darling, Die (1965)", "İstanbul, AN (2030)", "the the"),
    *("Rosemary\u00b4s Baby (1968)", "Bril\u02b9iantovaia ruka (1969)", "a `b\u2018 c\u2019s"),
]


def words_and_year(text: str) -> tuple[list[str], int | None]:
    text = unicodedata.normalize("NFKC", text.replace("\u00b4", "'"))
    found = list(re.finditer(YEAR, text))
    year = None
    if found:
        year = int(found[-1][1])
        text = text[: found[-1].start()] + " " + text[found[-1].end() :]
    text = unicodedata.normalize("NFKC", text.lower())
    kept = ""
    for character in text:
        category = unicodedata.category(character)
        if character in "'\u2019\u2018\u0060\u02b9." or category == "Cf":
            continue
        kept += character if category[0] in "LNM" else " "
    return kept.split(), year


def ngrams(parts: str | list[str], low: int, high: int) -> list[Any]:
    return [parts[at : at + n] for n in range(low, high + 1) for at in range(len(parts) - n + 1)]


def weights_by_column(text: str, state: dict[str, Any]) -> dict[int, float]:
    """The weights that the steps of the page give."""
    low, high = state["ngram_range"]
    words, year = words_and_year(text)
    if state["analyzer"] == "char_wb":
        padded = [f" {word} " for word in words]
        terms = [t for w in padded for t in ngrams(w, low, high) or [w]]
    elif state["analyzer"] == "word":
        terms = [" ".join(ngram) for ngram in ngrams(words, low, high)]
    elif state["analyzer"] == "char":
        terms = ngrams(" ".join(words), low, high)
    else:
        terms = [" ".join(words_and_year(item)[0]) for item in text.split("|")]
    weights: dict[int, float] = {}
    for term in dict.fromkeys(terms):
        if term in state["terms"]:
            count = terms.count(term)
            column = state["terms"].index(term)
            frequency = 1 + math.log(count) if state["sublinear_tf"] else count
            weights[column] = frequency * state["idf"][column]
    norm = math.sqrt(sum(weight**2 for weight in weights.values()))
    weights = {column: weight / norm for column, weight in weights.items()}
    if state["decade"] and state["analyzer"] != "item" and year is not None and state["years"]:
        first, last = state["years"]
        p = (min(max(year, first, 1910), min(last, 2020)) - 1910) / 10
        d = math.floor(p)
        for column, share in ((d, 1 - (p - d)), (d + 1, p - d)):
            if share:
                index = state["vocabulary_size"] - 12 + column
                weights[index] = state["decade_weight"] * share
    return weights


@pytest.mark.filterwarnings("ignore:The parameter 'ngram_range' will not be used")
@pytest.mark.parametrize("sublinear_tf", [False, True])
@pytest.mark.parametrize("analyzer", ANALYZERS)
def test_terms_match_the_page(analyzer: str, sublinear_tf: bool) -> None:
    vectorizer = TermVectorizer(300, analyzer, (2, 4) if "char" in analyzer else (1, 2),
                                sublinear_tf=sublinear_tf)  # fmt: skip
    vectorizer.fit(TITLES[: -len(TITLES) // 4])
    state = vectorizer.state_dict()
    rows = vectorizer.transform(TITLES)
    entries = 0
    for number, title in enumerate(TITLES):
        part = slice(rows.indptr[number], rows.indptr[number + 1])
        columns = rows.indices[part].tolist()
        actual = dict(zip(columns, rows.weights[part].tolist(), strict=True))
        assert columns == sorted(columns)
        assert actual == pytest.approx(weights_by_column(title, state), rel=1e-6), title
        entries += len(actual)
    assert entries > (15 if analyzer == "item" else 40)


@pytest.mark.parametrize("title", TITLES)
def test_natural_titles_match_the_page(title: str) -> None:
    found = list(re.finditer(YEAR, title))
    text = title[: found[-1].start()] + title[found[-1].end() :] if found else title

    def article_first(match: re.Match[str]) -> str:
        blanks, rest = re.fullmatch(r"(\s*)(.*)", match[1], re.DOTALL).groups()  # type: ignore[union-attr]
        return f"{blanks}{match[2]}{'' if match[2].endswith(chr(39)) else ' '}{rest}"

    moved = re.sub(ARTICLE, article_first, text, flags=re.IGNORECASE)
    assert " ".join(moved.split()) == natural_title(title)
