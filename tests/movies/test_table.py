"""Reading CSV files; the tests of the readers cover most of what is refused."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest

from genre_lightning.movies.movie import DataError
from genre_lightning.movies.table import Row, read_table
from genre_lightning.predicting.printing import CommandError
from genre_lightning.predicting.tables import MovieRows


def test_rows_are_read_by_column_name(tmp_path):
    path = tmp_path / "movies.csv"
    path.write_text('ID, Title ,,note\n7,"Heat, The",x, a \n\n8,"Two\nlines",y,\n')
    columns, rows = read_table(path, ("id",))
    assert columns == ["id", "title", "note"]
    assert rows == [
        Row(2, "movies.csv:2", {"id": "7", "title": "Heat, The", "note": "a"}),
        Row(4, "movies.csv:4 (line 5)", {"id": "8", "title": "Two\nlines", "note": ""}),
    ]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=repr)
def test_quotes_in_an_unquoted_tsv_are_kept(tmp_path: Path, end: str):
    path = tmp_path / "title.basics.tsv"
    titles = ['"Weird Al" Story', "Heat", '"Crocodile" Dundee "II"', '"Open', '"']
    rows = [f"tt{number}\t{title}\tComedy" for number, title in enumerate(titles)]
    path.write_text(end.join(["id\ttitle\tgenres", *rows, ""]), newline="")
    _, read = read_table(path, ("title",))
    assert [row.cells["title"] for row in read] == titles
    assert [row.where for row in read] == [f"title.basics.tsv:{number}" for number in range(2, 7)]


def test_a_tsv_may_have_quoted_cells(tmp_path: Path):
    path = tmp_path / "movies.tsv"
    path.write_text('title\tplot\n"""Weird Al"" Story"\t"two\nlines, a\ttab"\n"Heat"\t""\n')
    _, read = read_table(path, ("title",))
    assert [list(row.cells.values()) for row in read] == [
        ['"Weird Al" Story', "two\nlines, a\ttab"],
        ["Heat", ""],
    ]


@pytest.mark.parametrize(
    "text",
    [
        'title,year\n"Weird Al" Story,2022\n',
        # One row was quoted by a program, the other written by hand.
        'title\tyear\n"""Weird Al"" Story"\t2022\n"Crocodile" Dundee\t1986\n',
    ],
    ids=["comma", "tab"],
)
def test_an_unescaped_quote_is_refused_with_advice(tmp_path: Path, text: str):
    path = tmp_path / "movies.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=r'^movies\.csv:\d \(.*as a whole: """Weird Al"" Story'):
        read_table(path, ("title",))


def test_several_columns_without_a_name_are_ignored(tmp_path):
    path = tmp_path / "movies.csv"
    path.write_text(",id,,\n0,7,,\n")
    columns, rows = read_table(path, ("id",))
    assert columns == ["id"] and [row.cells for row in rows] == [{"id": "7"}]


@pytest.mark.parametrize(
    ("pack", "message"),
    [
        (gzip.compress, "compressed by gzip: unpack it first"),
        (bz2.compress, "compressed by bzip2: unpack it first"),
        (lzma.compress, "compressed by xz: unpack it first"),
        (lambda text: b"PK\x03\x04" + text, "a zip, as workbooks are: unpack it, or save"),
        (lambda text: text.decode().encode("utf-16"), "in UTF-16: save it as CSV in UTF-8"),
    ],
    ids=["gzip", "bzip2", "xz", "zip", "utf-16"],
)
def test_compressed_and_utf16_files_are_refused(
    tmp_path: Path, pack: Callable[[bytes], bytes], message: str
):
    path = tmp_path / "movies.csv"
    path.write_bytes(pack(b"id,title\n7,Heat\n"))
    with pytest.raises(DataError, match=f"movies.csv is {message}"):
        read_table(path, ("id",))
    with path.open("rb") as file, pytest.raises(CommandError, match=f"movies.csv is {message}"):
        MovieRows(file, path, {"title": "text"})


def test_the_header_alone_decides_the_delimiter(tmp_path: Path):
    path = tmp_path / "movies.csv"
    path.write_text("id,title\r7,Face/Off; a; b; c\r", newline="")  # as old Macs end lines
    _, (row,) = read_table(path, ("id",))
    assert row.cells == {"id": "7", "title": "Face/Off; a; b; c"}


@pytest.mark.parametrize("start", ["\n", "\r\n", ",,\n"], ids=["line", "windows", "cells"])
def test_a_blank_row_above_the_header_is_refused(tmp_path: Path, start: str):
    path = tmp_path / "movies.csv"
    path.write_text(f"{start}id,title,poster\n7,Heat,\n")
    with pytest.raises(DataError, match=r"csv:1: the first row is blank; it must name .*id"):
        read_table(path, ("id",))


def test_missing_required_columns_are_refused(tmp_path):
    path = tmp_path / "movies.csv"
    path.write_text("title\nHeat\n")
    with pytest.raises(DataError, match=r"csv:1: the header has no column id and no poster; it ha"):
        read_table(path, ("id", "poster", "title"))
