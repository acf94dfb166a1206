"""Notes on a dataset, shown before training."""

from __future__ import annotations

import pytest

from genre_lightning.data.notes import unread_column_notes


@pytest.mark.parametrize(
    ("columns", "note"),
    [
        (["title", "poster", "cast"], None),
        (
            ["title", "plot"],
            "no branch reads the column plot. To add one: +model/branch@model.branches.plot="
            "text_tfidf model.branches.plot.input.column=plot",
        ),
        (
            ["title", "Box office", "a=b", "plot"],
            "no branch reads the columns Box office, a=b, plot. To add one: +model/branch@model."
            "branches.plot=text_tfidf model.branches.plot.input.column=plot",
        ),
        (
            ["title", "Plot"],
            "no branch reads the column Plot. To add one: +model/branch@model.branches.Plot="
            "text_tfidf model.branches.Plot.input.column=Plot",
        ),
        (
            ["title", "type"],  # PyTorch's ModuleDict has an attribute of this name
            "no branch reads the column type. To add one: +model/branch@model.branches.type_text="
            "text_tfidf model.branches.type_text.input.column=type",
        ),
        (
            ["Überblick", *(f"{n}." for n in range(6))],
            "no branch reads the columns Überblick, 0., 1., 2., 3. and 2 more. To add one: "
            "+model/branch@model.branches.NAME=text_tfidf model.branches.NAME.input.column=NAME",
        ),
    ],
    ids=["none", "one", "first plain name", "capital", "reserved name", "no plain name"],
)
def test_columns_that_no_branch_reads_are_named(columns: list[str], note: str | None):
    assert unread_column_notes(columns, {"title", "cast"}) == ([note] if note else [])
