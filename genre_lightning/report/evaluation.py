"""Scoring a split with a trained model: metrics, and the files in which they are saved."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from genre_lightning.cells import guard, guarded, score_cell, score_columns, separator_of
from genre_lightning.checkpoint.model import TrainedModel
from genre_lightning.data.datamodule import MovieDataModule
from genre_lightning.data.leakage import num_learnt_movies
from genre_lightning.files import whole_file
from genre_lightning.models.fusion import ACTIVATIONS
from genre_lightning.runs.quoting import relative_to_cwd, shell_command
from genre_lightning.scoring.losses import build_loss
from genre_lightning.scoring.metrics import genre_metrics, per_genre_metrics
from genre_lightning.wording import counted


@dataclass(frozen=True)
class SplitScores:
    """A model's outputs for the movies of one split.

    Attributes:
        split: "train", "val" or "test".
        rows: (N,) int64, each movie's index in the dataset.
        logits: (N, G) float32, from ``Fusion.final_logits``.
        scores: (N, G) float32 in [0, 1].
        targets: (N, G) float32 multi-hot.
        branch_logits: by branch, (N, G) float32, its part of the summed logits; zero for a movie
            that lacks its column.
        has_column: by branch, (N,) bool, whether the movie has its column.
        folds: (N,) int64 if each movie was scored by the member of its fold, else None.
    """

    split: str
    rows: Tensor
    logits: Tensor
    scores: Tensor
    targets: Tensor
    branch_logits: dict[str, Tensor]
    has_column: dict[str, Tensor]
    folds: Tensor | None = None


@torch.inference_mode()
def score_split(
    model: TrainedModel,
    data: MovieDataModule,
    split: str,
    device: torch.device | str = "cpu",
    batch_size: int | None = None,
) -> SplitScores:
    """Score every movie of a split, in float32 and without augmentation.

    Args:
        model: from :func:`genre_lightning.checkpoint.model.load_model`, on ``device``.
        data: set up with the model's genres and inputs.
        split: "train", "val" or "test".
        device: where to compute.
        batch_size: None for that of validation; another can change the last digit of scores.
    """
    outputs: list[tuple[Tensor, ...]] = []
    collected_folds: list[Tensor] = []
    branches: dict[str, list[Tensor]] = {name: [] for name in model.inputs}
    has_column: dict[str, list[Tensor]] = {name: [] for name in model.inputs}
    model.network.eval()
    for batch in data.loader(split, batch_size=batch_size, device=device):
        folds = batch.folds if split != "test" and data.validates_by_folds else None
        parts = model.network.branch_logits(batch.parts, len(batch), folds)
        logits = model.network.final_logits(parts, folds)
        scores = ACTIVATIONS[model.activation](logits)
        collected_folds += [] if folds is None else [folds]
        outputs.append((batch.rows, logits, scores, batch.targets))
        for name, part in parts.items():
            branches[name].append(part)
            has_column[name].append(
                torch.isin(torch.arange(len(batch)), batch.parts[name].rows.cpu())
            )
    rows, logits, scores, targets = (
        torch.cat(tensors).cpu() for tensors in zip(*outputs, strict=True)
    )
    return SplitScores(
        split=split,
        rows=rows,
        logits=logits,
        scores=scores,
        targets=targets,
        branch_logits={name: torch.cat(values).cpu() for name, values in branches.items()},
        has_column={name: torch.cat(values) for name, values in has_column.items()},
        folds=torch.cat(collected_folds).cpu() if collected_folds else None,
    )


def split_metrics(model: TrainedModel, scores: SplitScores) -> dict[str, float]:
    """Return all metrics at the checkpoint's thresholds, ``loss`` and ``num_movies``."""
    metrics = genre_metrics(scores.scores, scores.targets, model.thresholds)
    loss = build_loss(**model.loss)(scores.logits, scores.targets)
    return {**metrics, "loss": float(loss), "num_movies": len(scores.rows)}


def genre_rows(model: TrainedModel, scores: SplitScores) -> list[dict[str, Any]]:
    """Return a row for each genre: genre, f1, precision, recall, ap, support and threshold."""
    columns = per_genre_metrics(scores.scores, scores.targets, model.thresholds)
    return [
        {"genre": genre, **{name: column[g].item() for name, column in columns.items()}}
        for g, genre in enumerate(model.genres)
    ]


def print_genre_table(
    model: TrainedModel, scores: SplitScores, metrics: Mapping[str, float], console: Console
) -> None:
    """Print a table of metrics per genre, most frequent genre first, with averages below."""
    rows = sorted(genre_rows(model, scores), key=lambda row: -row["support"])
    table = Table(title=f"{scores.split}: {counted(len(scores.rows), 'movie')}")
    table.add_column("genre")
    names = ("f1", "precision", "recall", "ap", "support", "threshold")
    for name in names:
        table.add_column(name, justify="right")
    for row in rows:
        cells = [
            f"{row[name]:.0f}"
            if name == "support"
            else f"{row[name]:.3f}"
            if row[name] == row[name]
            else "-"
            for name in names
        ]
        table.add_row(row["genre"], *cells)
    table.add_section()
    for average in ("micro", "macro"):
        cells = [f"{metrics[f'{name}_{average}']:.3f}" for name in ("f1", "precision", "recall")]
        table.add_row(f"{average} average", *cells, f"{metrics[f'map_{average}']:.3f}", "", "")
    console.print(table)


def print_written(folder: Path, console: Console) -> None:
    """Print where the report is, and the files of :func:`write_evaluation` beside it."""
    report = shell_command(relative_to_cwd(folder / "report.html"))
    console.print(
        f"Written: {report}, metrics.json, per_genre.csv and predictions.csv", soft_wrap=True
    )


def write_evaluation(
    folder: Path, model: TrainedModel, data: MovieDataModule, scores: SplitScores
) -> dict[str, float]:
    """Write ``metrics.json``, ``per_genre.csv`` and ``predictions.csv`` into ``folder``.

    Returns:
        The contents of ``metrics.json``: the metrics, and ``num_learnt_movies`` if the model has
        learnt from movies of the split.
    """
    folder.mkdir(parents=True, exist_ok=True)
    metrics = split_metrics(model, scores)
    if count := num_learnt_movies(data, scores.split, model.learnt_from, model.learnt_movies):
        metrics["num_learnt_movies"] = count
    with whole_file(folder / "metrics.json") as file:
        file.write(json.dumps(metrics, indent=2) + "\n")
    rows = genre_rows(model, scores)
    with whole_file(folder / "per_genre.csv") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows({**row, "genre": guard(row["genre"])} for row in rows)
    _write_predictions(folder / "predictions.csv", model, data, scores)
    return metrics


def _write_predictions(
    path: Path, model: TrainedModel, data: MovieDataModule, scores: SplitScores
) -> None:
    """Write a row for each movie: its genres, the predicted ones, and all scores."""
    movies = data.movie_set.movies
    with whole_file(path) as file:
        table = csv.writer(file)
        columns = [name for name in model.columns if name != "title"]
        header = ["id", "title", "true", "predicted", *(f"has_{name}" for name in columns)]
        table.writerow(guarded([*header, *score_columns(model.genres, header)]))
        separator = separator_of(model.genres)
        is_present = [data.states(name) == "present" for name in columns]
        for row, values, target in zip(
            scores.rows.tolist(), scores.scores, scores.targets, strict=True
        ):
            predicted = values >= model.thresholds
            # As genre-predict writes them, the most likely genre first.
            by_score = values.argsort(descending=True, stable=True).tolist()
            names = [
                separator.join(model.genres[genre] for genre in order if mask[genre])
                for order, mask in ((range(len(target)), target > 0), (by_score, predicted))
            ]
            score_cells = map(score_cell, values.tolist())
            movie = movies[row]
            has_flags = [int(states[row]) for states in is_present]
            table.writerow([*guarded([movie.id, movie.title, *names]), *has_flags, *score_cells])
