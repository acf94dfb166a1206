from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks import baselines, thresholds
from genre_lightning.movies.movie import Movie, MovieSet

GENRES = ("Comedy", "Drama", "Horror")
WORDS = {"Comedy": "wedding party fool", "Drama": "letter river mother", "Horror": "ghost blood"}


def made_up_movies(num_movies: int = 300) -> MovieSet:
    """Movies whose titles have a word for each of their genres, and a meaningless word."""
    generator = np.random.default_rng(0)
    movies = []
    for i in range(num_movies):
        genres = tuple(g for g in GENRES if generator.random() < 0.4) or ("Drama",)
        words = [str(generator.choice(WORDS[g].split())) for g in genres]
        words.append(str(generator.choice(["the", "night", "of", "blue"])))
        split = "test" if i % 5 == 0 else "train"
        title = f"{' '.join(words)} {i} ({1950 + i % 50})"
        movies.append(Movie(str(i), {"title": title}, genres, split, f"made up:{i}"))
    return MovieSet(movies, GENRES)


def write_ml1m(root, movie_set: MovieSet) -> None:
    root.mkdir()
    (root / "ml1m-images").mkdir()
    (root / "genres.txt").write_text("\n".join(movie_set.genres) + "\n", encoding="utf-8")
    for split in ("train", "test"):
        lines = [
            f"{movie.id}::{movie.title}::{'|'.join(movie.genres)}\n"
            for movie in movie_set.movies
            if movie.split == split
        ]
        (root / f"movies_{split}.dat").write_text("".join(lines), encoding="utf-8")


@pytest.mark.parametrize("split, num_movies", [("val", 36), ("test", 60)])
def test_title_models_beat_the_prior_and_the_constant(split: str, num_movies: int) -> None:
    results, scored = baselines.score_baselines(made_up_movies(), split=split, c_values=(1.0, 10.0))
    assert scored == num_movies
    by_name = {(line.name, line.thresholds): line for line in results}
    methods = {line.thresholds for line in results}
    assert methods == {baselines.DEFAULT_METHOD, "shared", "none"}
    constant = by_name["always Drama + Comedy", "none"]
    for method in (baselines.DEFAULT_METHOD, "shared"):
        prior = by_name["prior", method]
        for features in ("word", "char", "char + decade"):
            line = by_name[f"{features} TF-IDF + LR", method]
            assert line.setting in ("C=1", "C=10")
            assert line.map_macro > 0.9 > prior.map_macro
            assert line.f1_micro > max(prior.f1_micro, constant.f1_micro)
            assert line.f1_macro > max(prior.f1_macro, constant.f1_macro)


def test_scores_of_the_prior_and_the_constant() -> None:
    movie_set = made_up_movies()
    results, _ = baselines.score_baselines(movie_set, c_values=(1.0,))
    test = [movie for movie in movie_set.movies if movie.split == "test"]
    share = {g: sum(g in movie.genres for movie in test) / len(test) for g in GENRES}
    prior = next(line for line in results if line.name == "prior")
    assert prior.map_macro == pytest.approx(sum(share.values()) / 3, abs=1e-6)
    constant = next(line for line in results if line.name.startswith("always"))
    f1 = [2 * share[g] / (1 + share[g]) for g in ("Comedy", "Drama")]
    assert constant.f1_macro == pytest.approx(sum(f1) / 3, abs=1e-6)


def test_settings_do_not_depend_on_the_test_split() -> None:
    movie_set = made_up_movies()
    changed = [
        movie
        if movie.split != "test"
        else Movie(movie.id, {"title": "unlike all others"}, ("Horror",), "test", movie.where)
        for movie in movie_set.movies
    ]
    settings = [
        [(line.name, line.setting) for line in baselines.score_baselines(movies)[0]]
        for movies in (movie_set, MovieSet(changed, GENRES))
    ]
    assert settings[0] == settings[1]
    on_val = [
        baselines.score_baselines(movies, split="val", c_values=(1.0,))[0]
        for movies in (movie_set, MovieSet(changed, GENRES))
    ]
    assert on_val[0] == on_val[1]


def test_invalid_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="val or test"):
        baselines.score_baselines(made_up_movies(), split="train")
    with pytest.raises(ValueError, match="Western"):
        baselines.score_baselines(made_up_movies(), constant_genres=("Western",))
    with pytest.raises(ValueError, match="num_fit"):
        thresholds.compare_methods(np.ones((3, 2), np.float32), np.ones((3, 2)), num_fit=3)


@pytest.mark.parametrize(
    "benchmark, options",
    [
        pytest.param(baselines, ["--split", "val"], id="baselines"),
        pytest.param(thresholds, ["--repeats", "3", "--num-fit", "60"], id="thresholds"),
    ],
)
def test_commands_end_with_one_json_line(benchmark, options, tmp_path, capsys) -> None:
    write_ml1m(tmp_path / "ml1m", made_up_movies(200))
    benchmark.main(["--root", str(tmp_path / "ml1m"), *options])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"figure", "ratio", "n", "spread", "aim"} <= set(result)
    assert result["ratio"] > 0.9


def test_thresholds_are_compared_without_the_test_split() -> None:
    movie_set = made_up_movies()
    scores, labels = thresholds.cross_validated_scores(movie_set, "word")
    assert scores.shape == labels.shape == (240, 3)
    # The movies are held out, yet their words predict the genres.
    assert baselines.mean_average_precision(labels, scores) > 0.9
    first = thresholds.compare_methods(scores, labels, num_fit=50, repeats=4)
    second = thresholds.compare_methods(scores, labels, num_fit=50, repeats=4)
    assert all((first[method] == second[method]).all() for method in first)
    assert all(values.shape == (4, 2) for values in first.values())
