"""Titles normalised to words and a year, and titles in natural word order."""

from __future__ import annotations

import pytest

from genre_lightning.inputs.titles import natural_title, normalise_title


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ("Godfather, The (1972)", "The Godfather"),
        ("Heat (1995)", "Heat"),
        ("2001: A Space Odyssey (1968)", "2001: A Space Odyssey"),
        (
            "City of Lost Children, The (Cité des enfants perdus, La) (1995)",
            "The City of Lost Children (La Cité des enfants perdus)",
        ),
        ("Avventura, L' (Adventure, The) (1960)", "L'Avventura (The Adventure)"),
        ("I, Robot (2004)", "I, Robot"),
        ("Me, Myself & Irene (2000)", "Me, Myself & Irene"),
        ("Good, the Bad and the Ugly, The (1966)", "The Good, the Bad and the Ugly"),
        ("(1995)", ""),
        ("", ""),
    ],
)
def test_natural_title(title: str, expected: str):
    assert natural_title(title) == expected


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ("Godfather, The (1972)", "The Godfather (1972)"),
        ("2001: A Space Odyssey [ 1968–1970 ]", "2001: A Space Odyssey (1968)"),
        ("(Heat, The) (1990) (1995)", "(The Heat) (1990) (1995)"),
        ("Heat", "Heat"),
    ],
)
def test_natural_title_with_year(title: str, expected: str):
    assert natural_title(title, year=True) == expected


@pytest.mark.parametrize(
    ("title", "words", "year"),
    [
        ("Godfather, The (1972)", "godfather the", 1972),
        ("2001: A Space Odyssey (1968)", "2001 a space odyssey", 1968),
        ("1984 (1984)", "1984", 1984),
        ("Blade Runner 2049 (2017)", "blade runner 2049", 2017),
        ("Blade Runner 2049", "blade runner 2049", None),
        ("(500) Days of Summer (2009)", "500 days of summer", 2009),
        ("Seven (Se7en) (1995)", "seven se7en", 1995),
        ("City (La Cité (des enfants) perdus) (1995)", "city la cité des enfants perdus", 1995),
        ("Movie (1999) (V)", "movie v", 1999),
        ("Remake (1960) (1998)", "remake 1960", 1998),
        ("  Heat   (1995)  \t", "heat", 1995),
        ("Heat(1995)", "heat", 1995),
        ("Heat ( 1995 )", "heat", 1995),
        ("Heat [1995]", "heat", 1995),
        ("Series (1999-2003)", "series", 1999),
        ("Series (1999–)", "series", 1999),
        ("Twin (1990/II)", "twin", 1990),
        ("Future (3001)", "future 3001", None),
        ("Old (1066)", "old 1066", None),
        ("M*A*S*H (1970)", "m a s h", 1970),
        ("Schindler's List (1993)", "schindlers list", 1993),
        ("Schindler’s List (1993)", "schindlers list", 1993),
        ("Schindler\u00b4s List (1993)", "schindlers list", 1993),
        ("Bril\u02b9iantovaia ruka (1969)", "briliantovaia ruka", 1969),
        ("E.T. (1982)", "et", 1982),
        ("Face/Off (1997)", "face off", 1997),
        ("Spider-Man (2002)", "spider man", 2002),
        ("snake_case (2002)", "snake case", 2002),
        ("Ｆｕｌｌ　ｗｉｄｔｈ （１９９９）", "full width", 1999),
        ("Cafe\u0301 (2000)", "café", 2000),
        ("ЙЁЖ (2000)", "йёж", 2000),
        ("हिन्दी (2000)", "हिन्दी", 2000),
        ("İstanbul (2000)", "i̇stanbul", 2000),
        ("a\u200bb\u0000c (2000)", "ab c", 2000),
        ("🎬 film (2000)", "film", 2000),
        ("\udcff broken (2000)", "broken", 2000),
        ("?!... (2000)", "", 2000),
        ("(2000)", "", 2000),
        ("", "", None),
    ],
)
def test_normalise_title(title, words, year):
    assert normalise_title(title) == (words, year)
    assert normalise_title(words) == (words, None)


def test_normalise_title_is_idempotent():
    for code in [*range(0x3000), *range(0xA000, 0x11000), *range(0x1D400, 0x1F700)]:
        words, _ = normalise_title(f"a{chr(code)}B (1990)")
        assert normalise_title(words) == (words, None), hex(code)
