"""A finished run's report in W&B: tables of movies and genres, and precision-recall curves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import wandb

from genre_lightning.checkpoint.model import TrainedModel
from genre_lightning.data.datamodule import MovieDataModule
from genre_lightning.movies.movie import PosterFile
from genre_lightning.report.card import thumbnail
from genre_lightning.report.evaluation import SplitScores, genre_rows
from genre_lightning.report.statistics import precision_recall_steps

if TYPE_CHECKING:
    from wandb import Run


def log_report(
    run: Run, model: TrainedModel, data: MovieDataModule, scores: SplitScores, num_movies: int
) -> None:
    """Log tables and curves of the best checkpoint, all in one row.

    Args:
        run: to log to.
        model: of the best checkpoint.
        data: the data that was scored.
        scores: of the validation split.
        num_movies: number of movies in the table of movies.
    """
    genres = genre_table(model, scores)
    run.log(
        {
            "val_best/posters": movie_table(model, data, scores, num_movies),
            "val_best/genres": genres,
            "val_best/f1_by_genre": wandb.plot.bar(genres, "genre", "f1", title="F1 by genre"),
            "val_best/precision_recall": precision_recall_chart(model, scores),
        }
    )


def movie_table(
    model: TrainedModel, data: MovieDataModule, scores: SplitScores, num_movies: int
) -> wandb.Table:
    """A table of movies spread evenly over the split, the same in every run on the same data.

    Only movies with every column that the model reads are shown, if there are any. Columns: posters
    and texts that the model reads, always with the title; true and predicted genres, and each
    genre's score.
    """
    kinds = model.given_columns
    posters = [name for name, kind in kinds.items() if kind == "poster"]
    texts = ["title", *(name for name in kinds if name not in ("title", *posters))]
    is_complete = np.stack([rows.numpy() for rows in scores.has_column.values()]).all(axis=0)
    shown = np.flatnonzero(is_complete if is_complete.any() else np.ones_like(is_complete))
    shown = shown[np.linspace(0, len(shown) - 1, min(num_movies, len(shown))).astype(np.int64)]
    predicted = scores.scores >= model.thresholds

    def names(mask: Any) -> str:
        return ", ".join(genre for genre, is_set in zip(model.genres, mask, strict=True) if is_set)

    table = wandb.Table(columns=[*posters, *texts, "true", "predicted", *model.genres])
    for index in shown.tolist():
        movie = data.movie_set.movies[int(scores.rows[index])]
        table.add_data(
            *(_picture(movie.value(name)) for name in posters),
            *(movie.value(name) or "" for name in texts),
            names(scores.targets[index] > 0),
            names(predicted[index]),
            *scores.scores[index].tolist(),
        )
    return table


def _picture(value: Any) -> wandb.Image | None:
    """Thumbnail of a poster; None if the poster is missing or can't be read."""
    picture = thumbnail(value)[0] if isinstance(value, PosterFile) else None
    return None if picture is None else wandb.Image(picture, file_type="jpg")


def genre_table(model: TrainedModel, scores: SplitScores) -> wandb.Table:
    """A table of the rows from :func:`genre_lightning.report.evaluation.genre_rows`."""
    rows = genre_rows(model, scores)
    table = wandb.Table(columns=list(rows[0]))
    for row in rows:
        undefined = (isinstance(cell, float) and math.isnan(cell) for cell in row.values())
        table.add_data(
            *(
                None if is_undefined else value
                for value, is_undefined in zip(row.values(), undefined, strict=True)
            )
        )
    return table


def precision_recall_chart(model: TrainedModel, scores: SplitScores) -> Any:
    """Precision over recall: all cells in one ranking ("micro"), and each genre that occurs."""
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
