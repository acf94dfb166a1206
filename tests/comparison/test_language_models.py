"""Runs of genre-ask beside trained runs: named by their model, with their costs per movie."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from genre_lightning.comparison.leaderboard import compare, csv_rows, markdown, ranked_table
from genre_lightning.comparison.page import render_leaderboard
from genre_lightning.comparison.ranking import Comparison
from tests.comparison.written_runs import write_run


@pytest.fixture
def board(tmp_path: Path) -> Comparison:
    """A trained run, and two of a language model, with different prompts."""
    write_run(tmp_path / "trained", val={"map_macro": 0.3, "num_movies": 50})
    for number, (prompt, value) in enumerate([("zero_shot", 0.5), ("few_shot", 0.2)]):
        write_run(
            tmp_path / f"asked-{number}",
            {"model": {"name": "some-vl-7b"}, "prompt.name": prompt},
            (),
            choices={"prompt": prompt, "model": "none, as in a run of genre-ask"},
            monitor_value=value,
            val={"map_macro": value, "num_movies": 40 + 10 * number},
            tokens_per_movie=1234.4 + number,
            seconds_per_movie=0.257,
        )
    return compare([tmp_path])


def test_a_language_model_is_named_in_the_model_column(board: Comparison) -> None:
    headings, rows = ranked_table(board)
    models = [row[headings.index("model")] for row in rows]
    assert models == ["some-vl-7b", "fusion", "some-vl-7b"]
    assert "model.name" not in headings and "prompt" in headings


def test_tokens_and_seconds_per_movie_are_shown(board: Comparison) -> None:
    headings, rows = ranked_table(board)
    shown = [(row[headings.index("tokens a movie")], row[headings.index("seconds a movie")])
             for row in rows]  # fmt: skip
    assert shown == [("1,234", "0.257"), ("–", "–"), ("1,235", "0.257")]
    csv_headings, *lines = csv_rows(board)
    tokens = csv_headings.index("tokens_per_movie")
    assert [line[tokens] for line in lines] == [1234.4, None, 1235.4]
    page = render_leaderboard(board, datetime.now(UTC))
    assert '<th data-sort="number">Tokens a movie</th>' in page and ">1,234</td>" in page
    assert "| tokens a movie |" in markdown(board)


def test_different_numbers_of_movies_are_noted(board: Comparison) -> None:
    (note,) = [note for note in board.notes if "movies" in note]
    assert note.startswith("val/map_macro is over 40 to 50 movies")


def test_trained_runs_have_no_columns_of_costs(tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    headings, _ = ranked_table(compare([tmp_path]))
    assert not {"tokens a movie", "seconds a movie"} & set(headings)
