"""CSV files by row and column; what they refuse is tested through the readers that use them."""

from __future__ import annotations

import pytest

from genre_lightning.movies.movie import DataError
from genre_lightning.movies.table import Row, read_table


def test_rows_by_column(tmp_path):
    path = tmp_path / "movies.csv"
    path.write_text('ID, Title ,,note\n7,"Heat, The",x, a \n\n8,"Two\nlines",y,\n')
    columns, rows = read_table(path, ("id",))
    assert columns == ["id", "title", "note"]
    assert rows == [
        Row(2, "movies.csv:2", {"id": "7", "title": "Heat, The", "note": "a"}),
        Row(4, "movies.csv:4 (line 5)", {"id": "8", "title": "Two\nlines", "note": ""}),
    ]


def test_several_columns_without_a_name_are_no_doubles(tmp_path):
    path = tmp_path / "movies.csv"
    path.write_text(",id,,\n0,7,,\n")
    columns, rows = read_table(path, ("id",))
    assert columns == ["id"] and [row.cells for row in rows] == [{"id": "7"}]


def test_columns_that_have_to_be_there(tmp_path):
    path = tmp_path / "movies.csv"
    path.write_text("title\nHeat\n")
    with pytest.raises(DataError, match=r"csv:1: the header has no column id and no poster; it ha"):
        read_table(path, ("id", "poster", "title"))
