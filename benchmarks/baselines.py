"""Scores of scikit-learn models and of constant predictions on the same movies, as baselines.

    python -m benchmarks.baselines --root data/ml1m              scores the test split
    python -m benchmarks.baselines --root data/ml1m --split val  while developing

Reader and split are those of training (``data=ml1m`` with its defaults). Baselines are trained on
train; C is chosen by mAP on validation; thresholds are fitted on validation by the models' default
method and by "shared"; then each is scored once on the split. With ``--split val`` C and thresholds
are fitted to the movies that are scored, so the scores are too good.

Ends with one JSON line: ``figure`` is the best mAP of a baseline, ``ratio`` that over the mAP of
the prior, ``n`` the number of movies scored, ``aim`` the mAP that fusion should reach. The results
are deterministic, so ``spread`` is 0.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from sklearn.metrics import average_precision_score

from benchmarks.text_models import FEATURES, regression_scores, title_features
from genre_lightning.movies.movie import MovieSet, encode_genres
from genre_lightning.movies.readers import read_movies
from genre_lightning.movies.split import split_movies
from genre_lightning.scoring.metrics import genre_metrics
from genre_lightning.scoring.thresholds import DEFAULT_METHOD, fit_thresholds

CONSTANT_GENRES = ("Drama", "Comedy")
C_VALUES = (0.3, 1.0, 3.0, 10.0, 30.0)
AIM_MAP = 0.30


@dataclass(frozen=True)
class Result:
    """One line of the table; ``setting`` was chosen on validation."""

    name: str
    thresholds: str
    setting: str
    map_macro: float
    f1_micro: float
    f1_macro: float


def score_baselines(
    movie_set: MovieSet,
    *,
    split: str = "test",
    val_fraction: float = 0.15,
    test_fraction: float = 0.2,
    seed: int = 0,
    c_values: Sequence[float] = C_VALUES,
    constant_genres: Sequence[str] = CONSTANT_GENRES,
) -> tuple[list[Result], int]:
    """Train and score every baseline; return the table's lines and the number of movies scored.

    Raises:
        DataError: the movies can't be split.
        ValueError: ``split`` is neither val nor test, or the dataset lacks a constant genre.
    """
    if split not in ("val", "test"):
        raise ValueError(f"split is {split!r}; choose val or test")
    for genre in constant_genres:
        if genre not in movie_set.genres:
            raise ValueError(f"constant genre {genre!r} is none of {', '.join(movie_set.genres)}")
    labels = encode_genres(movie_set.movies, movie_set.genres)
    rows = split_movies(
        [movie.split for movie in movie_set.movies],
        labels,
        val_fraction=val_fraction,
        test_fraction=test_fraction,
        seed=seed,
    )
    titles = {part: [movie_set.movies[row].title for row in rows[part]] for part in rows}
    truth = {part: labels[rows[part]] for part in rows}

    results = []
    for name in FEATURES:
        train, val, scored = title_features(name, titles["train"], titles["val"], titles[split])
        fits = [regression_scores(train, truth["train"], [val, scored], c) for c in c_values]
        best = int(np.argmax([mean_average_precision(truth["val"], fit[0]) for fit in fits]))
        val_scores, scores = fits[best]
        setting = f"C={c_values[best]:g}"
        results += _scored_lines(f"{name} TF-IDF + LR", setting, val_scores, scores, truth, split)
    prior = truth["train"].mean(axis=0, dtype=np.float32)
    results += _scored_lines(
        "prior",
        "",
        np.tile(prior, (len(truth["val"]), 1)),
        np.tile(prior, (len(truth[split]), 1)),
        truth,
        split,
    )
    constant = np.isin(movie_set.genres, list(constant_genres)).astype(np.float32)
    results.append(
        _result(
            f"always {' + '.join(constant_genres)}",
            "none",
            "",
            np.tile(constant, (len(truth[split]), 1)),
            truth[split],
            torch.full((len(constant),), 0.5),
        )
    )
    return results, len(truth[split])


def mean_average_precision(labels: np.ndarray, scores: np.ndarray) -> float:
    """Mean average precision over the genres that have a positive, like ``map_macro``."""
    present = labels.any(axis=0)
    return float(
        np.mean(
            [average_precision_score(labels[:, g], scores[:, g]) for g in np.flatnonzero(present)]
        )
    )


def _scored_lines(
    name: str,
    setting: str,
    val_scores: np.ndarray,
    scores: np.ndarray,
    truth: dict[str, np.ndarray],
    split: str,
) -> list[Result]:
    lines = []
    for method in (DEFAULT_METHOD, "shared"):
        thresholds = fit_thresholds(
            torch.from_numpy(val_scores), torch.from_numpy(truth["val"]), method
        )
        lines.append(_result(name, method, setting, scores, truth[split], thresholds))
    return lines


def _result(
    name: str,
    thresholds_name: str,
    setting: str,
    scores: np.ndarray,
    labels: np.ndarray,
    thresholds: torch.Tensor,
) -> Result:
    metrics = genre_metrics(torch.from_numpy(scores), torch.from_numpy(labels), thresholds)
    chosen = {key: metrics[key] for key in ("map_macro", "f1_micro", "f1_macro")}
    return Result(name, thresholds_name, setting, **chosen)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table and the JSON line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.baselines")
    parser.add_argument("--root", default="data/ml1m", help="the ml1m dataset, folder or zip")
    parser.add_argument("--split", default="test", choices=["val", "test"])
    parser.add_argument("--seed", type=int, default=0, help="seed of the split")
    options = parser.parse_args(arguments)
    movie_set = read_movies("ml1m", root=options.root)
    results, num_movies = score_baselines(movie_set, split=options.split, seed=options.seed)

    print(f"{options.split} split, {num_movies} movies, {platform.machine()}")
    print(f"{'model':26} {'thresholds':11} {'chosen':8} {'mAP':>6} {'micro F1':>9} {'macro F1':>9}")
    for line in results:
        print(
            f"{line.name:26} {line.thresholds:11} {line.setting:8} {line.map_macro:6.3f} "
            f"{line.f1_micro:9.3f} {line.f1_macro:9.3f}"
        )
    best = max(results, key=lambda line: line.map_macro)
    prior = next(line for line in results if line.name == "prior")
    print(
        json.dumps(
            {
                "name": "baselines",
                "figure": round(best.map_macro, 4),
                "ratio": round(best.map_macro / prior.map_macro, 3),
                "n": num_movies,
                "spread": 0.0,
                "aim": AIM_MAP,
                "split": options.split,
                "results": [asdict(line) for line in results],
            }
        )
    )


if __name__ == "__main__":
    main()
