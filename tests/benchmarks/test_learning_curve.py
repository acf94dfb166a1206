"""The learning curve on a small dataset."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tests.benchmarks.test_baselines import made_up_movies, write_ml1m
from tests.forking import REPOSITORY, run_command


@pytest.mark.slow
def test_subsets_grow_and_exclude_the_scored_movies(tmp_path: Path) -> None:
    movie_set = made_up_movies()
    write_ml1m(tmp_path / "ml1m", movie_set)
    out = tmp_path / "out"
    command = ["-m", "benchmarks.learning_curve", "--root", tmp_path / "ml1m", "--out", out]
    command += ["--models", "title", "--subsets", 1, "--held-out", 60]
    finished = run_command(
        [*command, "--sizes", 40, 120, "--extra", "data.batch_size=16"], REPOSITORY
    )
    assert finished.returncode == 0, finished.stderr
    lines = finished.stdout.splitlines()
    movies = {}
    for size in (40, 120):
        with (out / f"{size}-0.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        movies[size] = {
            split: {row["id"] for row in rows if row["split"] == split}
            for split in ("train", "test")
        }
        result = json.loads((out / f"title-{size}-0" / "result.json").read_text())
        score = result["test"]["map_macro"]
        assert result["test"]["num_movies"] == 60
        assert any(line.startswith(f"| title | {size} | {score:.3f} ± ") for line in lines)
    assert movies[40]["train"] < movies[120]["train"] and len(movies[120]["train"]) == 120
    assert movies[40]["test"] == movies[120]["test"]
    assert not movies[120]["train"] & movies[120]["test"]
    test_ids = {movie.id for movie in movie_set.movies if movie.split == "test"}
    assert not test_ids & (movies[120]["train"] | movies[120]["test"])
    line = json.loads(lines[-1])
    # Each word stands for a genre, so the score grows with the number of movies.
    assert line["figure"] == pytest.approx(score, abs=1e-5) and line["ratio"] > 1
    assert set(line) >= {"figure", "ratio", "n", "spread", "aim"}
    refused = run_command([*command, "--sizes", 200], REPOSITORY)
    assert refused.returncode == 2
    assert "train has 240 movies, fewer than 200 to learn from and 60" in refused.stderr
