"""Jobs of a sweep share equal parts of a dataset and open different ones again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from genre_lightning.data.datamodule import MovieDataModule
from genre_lightning.data.notes import empty_branch_notes
from genre_lightning.data.sharing import SharedData
from genre_lightning.movies.movie import DataError

TITLE = {"kind": "terms", "column": "title", "vocabulary_size": 64}
POSTER = {"kind": "pixels", "column": "poster", "size": 16}


def open_data(
    shared: SharedData, cache: Path, inputs: dict[str, dict[str, Any]], seed: int = 0, **more: Any
) -> MovieDataModule:
    settings = {"reader": "demo", "root": str(cache), "num_movies": 40, "cache_dir": cache, **more}
    data = MovieDataModule(inputs=shared.inputs(settings, inputs), seed=seed, **settings)
    shared.open(data)
    return data


def same_batches(first: MovieDataModule, second: MovieDataModule) -> bool:
    pairs = zip(first.loader("train", True), second.loader("train", True), strict=True)
    return all(
        torch.equal(a.rows, b.rows)
        and torch.equal(a.targets, b.targets)
        and all(
            torch.equal(a.parts[branch].numbers[name], numbers)
            for branch, part in b.parts.items()
            for name, numbers in part.numbers.items()
        )
        for a, b in pairs
    )


def test_equal_data_is_opened_once_and_gives_the_same_batches(tmp_path: Path) -> None:
    shared = SharedData()
    first = open_data(shared, tmp_path, {"title": TITLE})
    second = open_data(shared, tmp_path, {"title": TITLE}, seed=3, batch_size=8)
    assert second.movie_set is first.movie_set
    assert second.features["title"] is first.features["title"]
    alone = open_data(SharedData(), tmp_path, {"title": TITLE}, seed=3, batch_size=8)
    assert same_batches(second, alone)
    assert second.describe() == alone.describe()


def test_a_further_branch_reuses_the_branches_already_open(tmp_path: Path) -> None:
    shared = SharedData()
    first = open_data(shared, tmp_path, {"title": TITLE})
    both = open_data(shared, tmp_path, {"poster": POSTER, "title": TITLE})
    assert both.features["title"] is first.features["title"]
    assert same_batches(both, open_data(SharedData(), tmp_path, {"poster": POSTER, "title": TITLE}))
    other = open_data(shared, tmp_path, {"title": {**TITLE, "vocabulary_size": 32}})
    assert other.inputs["title"].network_arguments() == {"vocabulary_size": 32}


def test_each_job_reports_a_column_that_no_movie_has(tmp_path: Path) -> None:
    rows = [f"Movie {n},,{genre}" for n in range(10) for genre in ("Drama", "Horror")]
    (tmp_path / "movies.csv").write_text("\n".join(["title,poster,genres", *rows]))
    settings: Any = {
        "reader": "manifest",
        "path": str(tmp_path / "movies.csv"),
        "cache_dir": tmp_path,
    }
    shared = SharedData()

    def run_job(**inputs: dict[str, Any]) -> MovieDataModule:
        data = MovieDataModule(inputs=shared.inputs(settings, inputs), **settings)
        shared.open(data)
        return data

    first = run_job(title=TITLE, poster=POSTER)
    second = run_job(title=TITLE, poster=POSTER)
    assert len(empty_branch_notes(first)) == 1
    assert empty_branch_notes(second) == empty_branch_notes(first)
    with pytest.raises(DataError, match="no movie of the dataset has any column"):
        run_job(poster=POSTER)


def test_another_split_is_fitted_again(tmp_path: Path) -> None:
    shared = SharedData()
    first = open_data(shared, tmp_path, {"title": TITLE})
    second = open_data(shared, tmp_path, {"title": TITLE}, split_seed=1)
    assert not np.array_equal(first.splits["train"], second.splits["train"])
    assert second.inputs["title"] is not first.inputs["title"]
    alone = open_data(SharedData(), tmp_path, {"title": TITLE}, split_seed=1)
    assert same_batches(second, alone)
    assert second.describe() == alone.describe()
