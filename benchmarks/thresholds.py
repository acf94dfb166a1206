"""How well each method of fitting thresholds does on movies it was not fitted on.

    python -m benchmarks.thresholds --root data/ml1m

Uses all movies except the test split: their scores come from 5-fold cross-validation of a logistic
regression on titles. Then, repeatedly, thresholds are fitted on a random draw of as many movies as
a validation split has, and scored on all the others.

Ends with one JSON line: ``figure`` is the default method's mean of micro and macro F1,
``ratio`` that over the better of "shared" and "per_genre", ``n`` the draws, ``spread`` the standard
deviation over the draws, ``aim`` the ratio to reach.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

import numpy as np
import torch
from sklearn.metrics import f1_score
from sklearn.model_selection import KFold

from benchmarks.text_models import FEATURES, regression_scores, title_features
from genre_lightning.movies.movie import MovieSet, encode_genres
from genre_lightning.movies.readers import read_movies
from genre_lightning.scoring.thresholds import DEFAULT_METHOD, METHODS, fit_thresholds

AIM_RATIO = 1.0


def cross_validated_scores(
    movie_set: MovieSet, features: str, *, c: float = 3.0, folds: int = 5, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Scores (N, G) float32 and labels (N, G) uint8 of all movies except the test split."""
    movies = [movie for movie in movie_set.movies if movie.split != "test"]
    labels = encode_genres(movies, movie_set.genres)
    titles = [movie.title for movie in movies]
    scores = np.empty(labels.shape, dtype=np.float32)
    for fit, rest in KFold(folds, shuffle=True, random_state=seed).split(titles):
        train, held_out = title_features(
            features, [titles[row] for row in fit], [titles[row] for row in rest]
        )
        scores[rest] = regression_scores(train, labels[fit], [held_out], c)[0]
    return scores, labels


def compare_methods(
    scores: np.ndarray,
    labels: np.ndarray,
    *,
    methods: Sequence[str] = METHODS,
    num_fit: int = 466,
    repeats: int = 100,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Micro and macro F1, (repeats, 2), of each method on the movies it was not fitted on.

    All methods use the same draws.

    Raises:
        ValueError: ``num_fit`` is below 1 or leaves no movie to score.
    """
    if not 0 < num_fit < len(scores):
        raise ValueError(f"num_fit is {num_fit}; it must be from 1 to {len(scores) - 1}")
    generator = np.random.default_rng(seed)
    f1_scores: dict[str, list[list[float]]] = {method: [] for method in methods}
    for _ in range(repeats):
        order = generator.permutation(len(scores))
        fit, rest = order[:num_fit], order[num_fit:]
        for method in methods:
            thresholds = fit_thresholds(
                torch.from_numpy(scores[fit]), torch.from_numpy(labels[fit]), method
            )
            predicted = scores[rest] >= thresholds.numpy()
            f1_scores[method].append(
                [
                    float(f1_score(labels[rest], predicted, average=average, zero_division=0))
                    for average in ("micro", "macro")
                ]
            )
    return {method: np.array(values) for method, values in f1_scores.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table and the JSON line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.thresholds")
    parser.add_argument("--root", default="data/ml1m", help="the ml1m dataset, folder or zip")
    parser.add_argument("--features", default="char + decade", choices=sorted(FEATURES))
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--num-fit", type=int, default=466, help="movies to fit thresholds on")
    options = parser.parse_args(arguments)
    movie_set = read_movies("ml1m", root=options.root)
    scores, labels = cross_validated_scores(movie_set, options.features)
    f1_scores = compare_methods(scores, labels, num_fit=options.num_fit, repeats=options.repeats)

    print(f"{options.num_fit} movies to fit, {len(scores) - options.num_fit} to score")
    print(f"{'method':12} {'micro F1':>9} {'macro F1':>9} {'mean':>7} {'sd':>7}")
    means = {method: float(values.mean()) for method, values in f1_scores.items()}
    for method, values in f1_scores.items():
        micro, macro = values.mean(axis=0)
        spread = values.mean(axis=1).std()
        print(f"{method:12} {micro:9.4f} {macro:9.4f} {means[method]:7.4f} {spread:7.4f}")
    print(
        json.dumps(
            {
                "name": "thresholds",
                "figure": round(means[DEFAULT_METHOD], 4),
                "ratio": round(means[DEFAULT_METHOD] / max(means["shared"], means["per_genre"]), 4),
                "n": options.repeats,
                "spread": round(float(f1_scores[DEFAULT_METHOD].mean(axis=1).std()), 4),
                "aim": AIM_RATIO,
                "results": {
                    method: dict(
                        zip(("f1_micro", "f1_macro"), map(float, values.mean(axis=0)), strict=True)
                    )
                    for method, values in f1_scores.items()
                },
            }
        )
    )


if __name__ == "__main__":
    main()
