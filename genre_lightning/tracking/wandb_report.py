"""What a finished run shows in W&B: posters with predictions, genres, precision-recall curves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import wandb

from genre_lightning.checkpoint.model import TrainedModel
from genre_lightning.data.datamodule import MovieDataModule
from genre_lightning.report.evaluation import SplitScores, genre_rows
from genre_lightning.report.statistics import precision_recall_steps

if TYPE_CHECKING:
    from wandb import Run


def log_report(
    run: Run, model: TrainedModel, data: MovieDataModule, scores: SplitScores, posters: int
) -> None:
    """Log tables and curves of the best checkpoint, all in one row.

    Args:
        run: to log to.
        model: of the best checkpoint.
        data: what was scored.
        scores: of the validation split.
        posters: movies in the table of posters.
    """
    genres = genre_table(model, scores)
    run.log(
        {
            "val_best/posters": poster_table(model, data, scores, posters),
            "val_best/genres": genres,
            "val_best/f1_by_genre": wandb.plot.bar(genres, "genre", "f1", title="F1 by genre"),
            "val_best/precision_recall": precision_recall_chart(model, scores),
        }
    )


def poster_table(
    model: TrainedModel, data: MovieDataModule, scores: SplitScores, count: int
) -> wandb.Table:
    """Movies spread evenly over the split, the same ones in every run on the same data.

    Columns: poster (where the run looks at posters; movies without one are then left out), title,
    true and predicted genres, and each genre's score.
    """
    rows = scores.rows.numpy()
    cache = data.posters
    shown = np.arange(len(rows)) if cache is None else np.flatnonzero(cache.row[rows] >= 0)
    shown = shown[np.linspace(0, len(shown) - 1, min(count, len(shown))).astype(np.int64)]
    predicted = scores.scores >= model.thresholds

    def names(mask: Any) -> str:
        return ", ".join(genre for genre, on in zip(model.genres, mask, strict=True) if on)

    table = wandb.Table(
        columns=[
            *([] if cache is None else ["poster"]),
            "title",
            "true",
            "predicted",
            *model.genres,
        ]
    )
    for place in shown.tolist():
        row = int(rows[place])
        poster = (
            []
            if cache is None
            else [wandb.Image(np.array(cache.images[cache.row[row]]), file_type="jpg")]
        )
        told = (names(scores.targets[place] > 0), names(predicted[place]))
        table.add_data(
            *poster, data.movie_set.movies[row].title, *told, *scores.scores[place].tolist()
        )
    return table


def genre_table(model: TrainedModel, scores: SplitScores) -> wandb.Table:
    """A row for each genre, as :func:`genre_lightning.report.evaluation.genre_rows` gives it."""
    rows = genre_rows(model, scores)
    table = wandb.Table(columns=list(rows[0]))
    for row in rows:
        undefined = (isinstance(value, float) and math.isnan(value) for value in row.values())
        table.add_data(
            *(None if skip else v for v, skip in zip(row.values(), undefined, strict=True))
        )
    return table


def precision_recall_chart(model: TrainedModel, scores: SplitScores) -> Any:
    """Precision over recall: of all cells as one list ("micro"), and of each genre that occurs."""
    values, targets = scores.scores.numpy(), scores.targets.numpy()
    curves = {}
    if targets.any():
        curves["micro"] = precision_recall_steps(values.ravel(), targets.ravel())
    for g, genre in enumerate(model.genres):
        if targets[:, g].any():
            curves[genre] = precision_recall_steps(values[:, g], targets[:, g])
    return wandb.plot.line_series(
        xs=[recall.tolist() for recall, _ in curves.values()],
        ys=[precision.tolist() for _, precision in curves.values()],
        keys=list(curves),
        title="Precision over recall",
        xname="recall",
    )


def log_checkpoint(run: Run, path: Path, metrics: Mapping[str, float]) -> None:
    """Log the best checkpoint as an artifact of type "model", with its metrics."""
    artifact = wandb.Artifact(f"model-{run.id}", type="model", metadata=dict(metrics))
    artifact.add_file(str(path), name=path.name)
    run.log_artifact(artifact, aliases=["best", "latest"])
