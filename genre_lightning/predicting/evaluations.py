"""Evaluations of a checkpoint: read what evaluate.py wrote and check it against the model."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from genre_lightning.cells import score_columns, separator_of, unguard
from genre_lightning.checkpoint.model import TrainedModel
from genre_lightning.comparison.run import number_or_none
from genre_lightning.errors import UserError
from genre_lightning.movies.split_names import SPLITS
from genre_lightning.report.overall import METRICS
from genre_lightning.runs.ckpt_path import CONFIG_FOLDER
from genre_lightning.scoring.metrics import genre_metrics

PREDICTIONS = "predictions.csv"
#: Rounding error of scores with six decimals, as in the predictions.csv of older versions.
_ROUNDING = 1e-6
#: Tolerated difference between a metric of predictions.csv and that in metrics.json.
_METRIC_TOLERANCE = 1e-3


class CardError(UserError):
    """An evaluation that a model card can't use; the message names the file and says why."""


@dataclass(frozen=True)
class Evaluation:
    """An evaluation of a checkpoint by evaluate.py.

    Attributes:
        folder: of the evaluation.
        split: "train", "val" or "test".
        other_data: name of the reader, if evaluated on other data; None for the checkpoint's own.
        metrics: from ``metrics.json``.
        scores: (N, G) float32, from ``predictions.csv``.
        targets: (N, G) float32 zeros and ones, from ``predictions.csv``.
    """

    folder: Path
    split: str
    other_data: str | None
    metrics: dict[str, float]
    scores: np.ndarray
    targets: np.ndarray


def read_evaluation(folder: Path, model: TrainedModel) -> Evaluation:
    """Read a folder that evaluate.py wrote, and check that it belongs to this model.

    Raises:
        CardError: a file is missing or damaged, or the predictions are not this model's: their
            genres or thresholds differ.
    """
    config_file = folder / CONFIG_FOLDER / "config.yaml"
    config = _read(config_file, yaml.safe_load)
    metrics = _read_metrics(folder / "metrics.json")
    split = config.get("split") if isinstance(config, dict) else None
    if split not in SPLITS:
        raise CardError(f"{config_file}: it names no split that was scored")
    scores, targets = _read_predictions(folder / PREDICTIONS, model)
    _check_metrics(folder / "metrics.json", metrics, scores, targets, model.thresholds)
    data = config.get("data")
    reader = data.get("reader") if isinstance(data, dict) else data
    return Evaluation(
        folder, split, None if data is None else str(reader), metrics, scores, targets
    )


def _read(path: Path, parse: Callable[[str], Any]) -> Any:
    """Parse the text of a file.

    Raises:
        CardError: the file is missing, can't be read or can't be parsed.
    """
    try:
        return parse(path.read_text("utf-8"))
    except FileNotFoundError:
        raise CardError(f"{path} is not there: name a folder that evaluate.py wrote") from None
    except (OSError, ValueError, csv.Error, yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CardError(f"{path} can't be read: {reason}") from error


def _read_metrics(path: Path) -> dict[str, float]:
    metrics = _read(path, json.loads)
    if not isinstance(metrics, dict) or any(number_or_none(v) is None for v in metrics.values()):
        raise CardError(f"{path}: it does not hold one number for each metric")
    return {name: float(value) for name, value in metrics.items()}


def _read_predictions(path: Path, model: TrainedModel) -> tuple[np.ndarray, np.ndarray]:
    """Read (N, G) float32 scores and targets from a predictions.csv of this model.

    Raises:
        CardError: the file can't be read, or its predictions are not this model's.
    """
    rows = _read(path, lambda text: list(csv.reader(io.StringIO(text))))
    width = len(model.genres)
    header = [unguard(cell) for cell in rows[0]] if rows else []
    has_model_genres = header[-width:] == score_columns(model.genres, header[:-width])
    if header[2:4] != ["true", "predicted"] or not has_model_genres:
        raise CardError(f"{path}: its genres are not those of the checkpoint")
    column_of = {genre: column for column, genre in enumerate(model.genres)}
    separator = separator_of(model.genres)
    scores = np.empty((len(rows) - 1, width), dtype=np.float32)
    targets, predicted = np.zeros_like(scores), np.zeros_like(scores)
    for row, cells in enumerate(rows[1:]):
        try:
            scores[row] = [float(cell) for cell in cells[-width:]]
            for cell, labels in ((cells[2], targets), (cells[3], predicted)):
                for genre in filter(None, unguard(cell).split(separator)):
                    labels[row, column_of[genre]] = 1
        except (ValueError, KeyError, IndexError) as error:
            raise CardError(f"{path}: row {row + 2} can't be read ({error})") from error
    if not len(scores) or not bool(((scores >= 0) & (scores <= 1)).all()):
        raise CardError(f"{path}: its scores are not numbers in 0..1, one row a movie")
    thresholds = model.thresholds.numpy()
    if bool((np.abs(scores - thresholds)[(scores >= thresholds) != predicted] > _ROUNDING).any()):
        raise CardError(
            f"{path}: its predictions are not at the thresholds of this checkpoint, so they are "
            "another model's"
        )
    return _undo_rounding(scores, predicted, thresholds), targets


def _undo_rounding(scores: np.ndarray, predicted: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Move scores that rounding has carried across a threshold back to the right side."""
    below = np.nextafter(thresholds, np.float32(-1))
    corrected = np.where(predicted > 0, np.maximum(scores, thresholds), np.minimum(scores, below))
    return corrected.astype(np.float32)


def _check_metrics(
    path: Path,
    metrics: dict[str, float],
    scores: np.ndarray,
    targets: np.ndarray,
    thresholds: Tensor,
) -> None:
    """Refuse a metrics.json that does not match the predictions."""
    recomputed = genre_metrics(torch.from_numpy(scores), torch.from_numpy(targets), thresholds)
    for name in METRICS:
        if abs(recomputed[name] - metrics.get(name, -1.0)) > _METRIC_TOLERANCE:
            raise CardError(
                f"{path}: its {name} is {metrics.get(name)}, and that of {PREDICTIONS} "
                f"{recomputed[name]:.4f}: evaluate the checkpoint again"
            )
