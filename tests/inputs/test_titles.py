"""Titles as one says them."""

from __future__ import annotations

import pytest

from genre_lightning.inputs.titles import natural_title


@pytest.mark.parametrize(
    ("title", "said"),
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
def test_as_one_says_it(title: str, said: str):
    assert natural_title(title) == said


@pytest.mark.parametrize(
    ("title", "said"),
    [
        ("Godfather, The (1972)", "The Godfather (1972)"),
        ("2001: A Space Odyssey [ 1968–1970 ]", "2001: A Space Odyssey (1968)"),
        ("(Heat, The) (1990) (1995)", "(The Heat) (1990) (1995)"),
        ("Heat", "Heat"),
    ],
)
def test_with_the_year_behind(title: str, said: str):
    assert natural_title(title, year=True) == said
