"""Scores of a model when columns are missing: ``python -m benchmarks.columns CKPT [CKPT ...]``.

Tries every subset of the columns that the model reads, and removes the others from all movies of
the split. Thresholds stay those of the checkpoint. Several checkpoints, e.g. of several seeds, give
mean and standard deviation.
"""

from __future__ import annotations

import argparse
from itertools import combinations
from pathlib import Path

import numpy as np

from benchmarks.measure import json_line, spread
from genre_lightning.checkpoint.model import TrainedModel, load_model
from genre_lightning.data.datamodule import MovieDataModule
from genre_lightning.report.evaluation import score_split, split_metrics

METRICS = ("map_macro", "f1_micro", "f1_macro")


def subsets(columns: list[str]) -> list[tuple[str, ...]]:
    """Every nonempty subset, smallest first."""
    return [subset for size in range(1, len(columns) + 1) for subset in combinations(columns, size)]


def score_subset(
    model: TrainedModel, data: MovieDataModule, present: tuple[str, ...], split: str
) -> list[float]:
    """The metrics of a split when its movies have only the columns in ``present``."""
    row_indices = {name: features.row_index for name, features in data.features.items()}
    try:
        for name, branch_input in model.inputs.items():
            if branch_input.column not in present:
                data.features[name].row_index = np.full_like(row_indices[name], -1)
        metrics = split_metrics(model, score_split(model, data, split))
    finally:
        for name, row_index in row_indices.items():
            data.features[name].row_index = row_index
    return [metrics[name] for name in METRICS]


def main() -> None:
    """Print a Markdown table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoints", nargs="+", type=Path, metavar="CKPT")
    parser.add_argument("--split", default="test", choices=("train", "val", "test"))
    parser.add_argument("--cache-dir", default="~/.cache/genre-lightning")
    options = parser.parse_args()
    scores: dict[tuple[str, ...], list[list[float]]] = {}
    for path in options.checkpoints:
        model = load_model(path)
        data = MovieDataModule.from_description(
            model.data, cache_dir=options.cache_dir, inputs=model.inputs, genres=model.genres
        )
        data.setup()
        for present in subsets(list(dict.fromkeys(model.columns))):
            scores.setdefault(present, []).append(score_subset(model, data, present, options.split))
    print("| columns | mAP | micro F1 | macro F1 |\n| --- | --- | --- | --- |")
    for present, rows in scores.items():
        values = np.array(rows)
        means, deviations = values.mean(axis=0), values.std(axis=0, ddof=min(1, len(rows) - 1))
        cells = [f"{m:.3f} ± {d:.3f}" for m, d in zip(means, deviations, strict=True)]
        print(f"| {' + '.join(present)} | {' | '.join(cells)} |")
    all_columns = [row[0] for row in list(scores.values())[-1]]
    print(
        json_line(
            sum(all_columns) / len(all_columns), None, len(all_columns), spread(all_columns), None
        )
    )


if __name__ == "__main__":
    main()
