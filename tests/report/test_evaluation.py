"""The CSV files of an evaluation, which people open in spreadsheets."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from genre_lightning.movies.table import read_table
from genre_lightning.report.evaluation import write_evaluation
from tests.fuzz.hostile import FORMULAS


def test_csv_cells_are_never_formulas_and_are_read_back(
    make_case: Callable[..., Any], tmp_path: Path
) -> None:
    genres = ["=SUM(A1)", "+War", "Drama"]
    case = make_case(genres, ("name",))
    rows = case.scores.rows.tolist()
    movies = case.data.movie_set.movies
    for row, title in zip(rows, FORMULAS, strict=False):
        movies[row] = replace(movies[row], id=f"@{row}", columns={"title": title})
    write_evaluation(tmp_path, case.model, case.data, case.scores)
    for name in ("predictions.csv", "per_genre.csv"):
        with (tmp_path / name).open(newline="", encoding="utf-8") as file:
            cells = [cell for line in csv.reader(file) for cell in line]
        assert not [cell for cell in cells if cell[:1] in tuple("=+@\t\r")]
        assert all(float(cell) < 0 for cell in cells if cell[:1] == "-")
    # Readers of datasets convert the names of columns to lower case.
    columns, table = read_table(tmp_path / "predictions.csv", ["title"])
    assert columns[-3:] == [genre.lower() for genre in genres]
    assert [row.cells["title"] for row in table[: len(FORMULAS)]] == list(FORMULAS)
    assert table[0].cells["id"] == f"@{rows[0]}"
    _, table = read_table(tmp_path / "per_genre.csv", ["genre"])
    assert [row.cells["genre"] for row in table] == genres


def test_average_precision_can_be_computed_from_the_predictions(
    make_case: Callable[..., Any], tmp_path: Path
) -> None:
    # Scores as low as label sets give a rare genre: six decimals would not distinguish them.
    case = make_case(["A", "B", "C"], ("name",))
    scores = replace(case.scores, scores=case.scores.scores * 1e-6)
    metrics = write_evaluation(tmp_path, case.model, case.data, scores)
    columns, table = read_table(tmp_path / "predictions.csv", ["title"])
    values = np.array([[float(row.cells[name]) for name in columns[-3:]] for row in table])
    true = np.array([[g in row.cells["true"].split("|") for g in "ABC"] for row in table])
    expected = average_precision_score(true.ravel(), values.ravel())
    assert metrics["map_micro"] == pytest.approx(expected, abs=1e-6)


def test_genres_named_like_other_columns_stay_distinct(
    make_case: Callable[..., Any], tmp_path: Path
) -> None:
    genres = ["Sci|Fi", "has_poster", "title"]
    case = make_case(["A", "B", "C"], ("name", "picture"))
    write_evaluation(tmp_path, replace(case.model, genres=genres), case.data, case.scores)
    columns, table = read_table(tmp_path / "predictions.csv", ["title"])
    assert columns[-3:] == ["sci|fi", "genre has_poster", "genre title"]
    for row, scores, targets in zip(table, case.scores.scores, case.scores.targets, strict=True):
        assert np.float32(row.cells["genre title"]) == scores[2].item()
        assert row.cells["true"] == ";".join(g for g, on in zip(genres, targets, strict=True) if on)
