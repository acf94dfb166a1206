from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from genre_lightning.data.description import describe_source, expand_path, read_source, same_source
from genre_lightning.movies.movie import DataError

DEFAULTS: dict[str, Any] = {"columns": None, "val_fraction": 0.15}


def test_read_source_reads_a_description(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "movies.csv").write_text("")
    monkeypatch.chdir(tmp_path)
    options = {"path": "movies.csv", "columns": None, "genre_separator": ";", "download": True}
    source = describe_source("manifest", options)
    assert source == {
        "reader": "manifest", "path": str(tmp_path / "movies.csv"), "genre_separator": ";",
    }  # fmt: skip
    settings = {**source, "val_fraction": 0.3}
    assert read_source(settings, DEFAULTS, tmp_path) == settings


def test_demo_movies_are_generated_in_the_cache(tmp_path: Path) -> None:
    source = read_source({"reader": "demo", "root": "/elsewhere"}, DEFAULTS, tmp_path)
    assert source == {"reader": "demo", "root": str(tmp_path)}


@pytest.mark.parametrize("name", ["download", "seed", "inputs"])
def test_options_that_a_description_must_not_set_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=name):
        read_source({"reader": "demo", name: True}, DEFAULTS, tmp_path)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({}, {"genre_separator": "|"}, True),
        ({"genre_separator": "|"}, {"genre_separator": "|"}, True),
        ({}, {"genre_separator": ","}, False),
        ({"path": "a.csv"}, {"path": "b.csv"}, False),
        ({"split_seed": 0}, {"split_seed": 1}, False),
    ],
    ids=["default separator", "equal", "separator", "path", "split"],
)
def test_same_source_compares_descriptions(
    one: dict[str, Any], other: dict[str, Any], same: bool
) -> None:
    manifest = {"reader": "manifest"}
    assert same_source({**manifest, **one}, {**manifest, **other}) is same
    assert same_source({**manifest, **other}, {**manifest, **one}) is same


@pytest.mark.parametrize("path", [5, "a\0b", None], ids=repr)
def test_same_source_compares_what_is_no_path(path: Any) -> None:
    manifest = {"reader": "manifest", "path": path}
    assert same_source(manifest, manifest)
    assert not same_source(manifest, {"reader": "manifest", "path": "/movies.csv"})


def test_same_source_ignores_where_demo_movies_were_generated() -> None:
    assert same_source({"reader": "demo", "root": "/an/earlier/cache"}, {"reader": "demo"})


def test_only_paths_are_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expand_path("root", "~/movies") == str(tmp_path / "movies")
    assert expand_path("genre_separator", "~") == "~" and expand_path("columns", None) is None
