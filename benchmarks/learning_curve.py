"""Scores by the number of movies to learn from: how many are enough?

    python -m benchmarks.learning_curve --root data/ml1m
    python -m benchmarks.learning_curve --root data/ml1m --models full --columns FILE.csv

Draws random subsets of train, trains each model on each subset, and scores it on movies of train
that no subset contains. The test split is not used. Runs that are already completed in the output
folder are not repeated. Ends with one JSON line: ``figure`` is the first model's mean mAP with the
most movies, ``ratio`` that over the mAP with the fewest, ``spread`` the standard deviation over
subsets.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.measure import command_environment, hardware, json_line, spread
from benchmarks.scores import Run, score_cells
from genre_lightning.movies.ml1m import read_ml1m
from genre_lightning.movies.movie import Movie, PosterFile


def write_subset(path: Path, learnt: Sequence[Movie], held_out: Sequence[Movie]) -> None:
    """Write movies as a CSV for ``data=manifest``.

    Args:
        path: path of the CSV.
        learnt: movies of the split train.
        held_out: the movies of the split test.
    """
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "title", "poster", "genres", "split"])
        for split, movies in (("train", learnt), ("test", held_out)):
            for movie in movies:
                poster = movie.value("poster")
                poster_path = ""
                if isinstance(poster, PosterFile) and poster.exists:
                    poster_path = str(poster.path)
                genres = "|".join(movie.genres)
                writer.writerow([movie.id, movie.title, poster_path, genres, split])


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is missing and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, required=True, help="folder of the real movies")
    parser.add_argument("--models", nargs="+", default=["fusion", "pretrained"], help="of model=")
    parser.add_argument("--columns", help="CSV with further columns by id")
    parser.add_argument("--sizes", nargs="+", type=int, default=[60, 120, 250, 500, 1000, 2000])
    parser.add_argument("--held-out", type=int, default=1000, help="movies that are scored")
    parser.add_argument("--subsets", type=int, default=3, help="random subsets of each size")
    parser.add_argument("--out", type=Path, default=Path("runs/learning-curve"))
    parser.add_argument("--extra", nargs="*", default=[], help="further overrides for every run")
    args = parser.parse_args(arguments)

    if not args.root.is_dir():
        parser.error(f"{args.root} is not a folder; unpack the zip of the movies")
    movies = [movie for movie in read_ml1m(args.root.resolve()).movies if movie.split == "train"]
    if max(args.sizes) + args.held_out > len(movies):
        parser.error(
            f"train has {len(movies)} movies, fewer than {max(args.sizes)} to learn from and "
            f"{args.held_out} to score: lower --sizes or --held-out"
        )
    out: Path = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    order = np.random.default_rng(0).permutation(len(movies))
    held_out = [movies[row] for row in order[: args.held_out]]
    rest = order[args.held_out :]
    columns = [] if args.columns is None else [f"data.columns={Path(args.columns).resolve()}"]
    results: dict[tuple[str, int], list[dict[str, float]]] = {}
    with command_environment() as environment:
        for size in args.sizes:
            for subset in range(args.subsets):
                # A larger subset contains the smaller ones of the same number.
                rows = np.random.default_rng(subset).permutation(rest)[:size]
                path = out / f"{size}-{subset}.csv"
                write_subset(path, [movies[row] for row in rows], held_out)
                data = ["data=manifest", f"data.path={path}", *columns]
                for model in args.models:
                    overrides = [*data, f"model={model}", *args.extra]
                    run = Run(model, subset, out / f"{model}-{size}-{subset}", overrides)
                    results.setdefault((model, size), []).append(run.train(environment)["test"])

    print(f"\n{args.held_out} held-out movies of train, {args.subsets} subset(s), {hardware()}")
    print("| model | movies | mAP | micro F1 | macro F1 |\n| --- | --- | --- | --- | --- |")
    for model in args.models:
        for size in args.sizes:
            print(f"| {model} | {size:,} | {score_cells(results[model, size])} |")
    few, many = (
        [scores["map_macro"] for scores in results[args.models[0], size]]
        for size in (min(args.sizes), max(args.sizes))
    )
    figure = float(np.mean(many))
    line = json_line(figure, figure / float(np.mean(few)), len(many), spread(many), None)
    print(line)


if __name__ == "__main__":
    main()
