"""Scores a language model's answers like a trained model's: calibrated, with fitted thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from genre_lightning.ask.question import POSTER, Questioner
from genre_lightning.checkpoint.model import TrainedModel
from genre_lightning.data.datamodule import MovieDataModule
from genre_lightning.errors import UserError
from genre_lightning.files import whole_file
from genre_lightning.inputs.vectors import MIN_PROBABILITY, VectorsInput
from genre_lightning.models.fusion import ACTIVATIONS
from genre_lightning.models.networks import build_network
from genre_lightning.report.evaluation import SplitScores
from genre_lightning.scoring.thresholds import Calibration, fit_calibration, fit_thresholds

#: Name of the only branch of the model that represents the answers.
BRANCH = "answers"
FILE = "answers.npz"
#: Score of a movie without an answer in the loss; everywhere else it scores 0.
_UNANSWERED_SCORE = 1e-6


def save_answers(path: Path, ids: Sequence[str], scores: np.ndarray, genres: Sequence[str]) -> None:
    """Write the answers in the format of the input ``vectors``, without unanswered movies.

    Args:
        path: the ``.npz`` file.
        ids: ids of N movies.
        scores: (N, G) float32 in [0, 1]; a row of nan for a movie without an answer.
        genres: G names, in the order of the columns.
    """
    answered = ~np.isnan(scores).any(axis=1)
    with whole_file(path, "wb") as file:
        np.savez(
            file,
            ids=np.array(ids, dtype=str)[answered],
            x=scores[answered],
            genres=np.array(genres, dtype=str),
        )


def fit_calibrated_model(
    questioner: Questioner, data: MovieDataModule, rows: np.ndarray, scores: np.ndarray
) -> TrainedModel:
    """Fit a model that maps answers to scores, and its thresholds, on validation movies.

    The model is linear in the logits: one slope shared by all genres, and an offset per genre.
    Movies without an answer are not used.

    Args:
        questioner: the questioner that got the answers.
        data: data module, already set up.
        rows: (N,) int64, rows of the validation movies that were asked about.
        scores: (N, G) float32 in [0, 1]; a row of nan for a movie without an answer.

    Raises:
        UserError: no validation movie was answered.
    """
    answered = ~np.isnan(scores).any(axis=1)
    if not answered.any():
        raise UserError(
            f"none of the {len(rows):,} validation movies has an answer, and thresholds are fitted "
            "on them"
        )
    branch_input = VectorsInput(f"/{FILE}")  # not opened: the answers are at hand
    branch_input.width = len(questioner.genres)
    network = build_network(
        len(questioner.genres),
        {BRANCH: {"name": "embedding_head", "hidden": 0, "norm": "none", "input_dropout": 0.0}},
        {BRANCH: branch_input},
    ).eval()
    model = TrainedModel(
        network=network,
        activation="sigmoid",
        loss={"name": "bce"},
        genres=questioner.genres,
        thresholds=torch.full((len(questioner.genres),), 0.5),
        inputs={BRANCH: branch_input},
        data=data.source(),
        shows={name: "poster" if name == POSTER else "text" for name in questioner.show},
    )
    clipped = _clip(scores[answered], questioner.answers)
    targets = data.labels[rows[answered]].astype(np.float64)
    _set_weights(model, fit_calibration(clipped, targets))
    val_scores = score_answers(model, questioner, data, "val", rows, scores)
    model.thresholds.copy_(
        fit_thresholds(val_scores.scores[answered], val_scores.targets[answered])
    )
    return model


def _set_weights(model: TrainedModel, calibration: Calibration) -> None:
    """Set the network's weights so that it maps log-odds to calibrated logits."""
    slope = calibration.slope / calibration.sd
    head = model.network.branches[BRANCH]
    with torch.no_grad():
        weight = torch.eye(len(model.genres)) * slope
        head.get_parameter("head.weight").copy_(weight[None])
        head.get_parameter("head.bias").zero_()
        bias = calibration.offset + calibration.offsets - slope * calibration.mean
        model.network.prior.copy_(torch.from_numpy(bias))


def _clip(scores: np.ndarray, answers: str) -> np.ndarray:
    """Clip scores away from 0 and 1; those of JSON answers by half of their rounding step."""
    margin = MIN_PROBABILITY if answers == "json" else _UNANSWERED_SCORE
    return scores.clip(margin, 1 - margin)


def score_answers(
    model: TrainedModel,
    questioner: Questioner,
    data: MovieDataModule,
    split: str,
    rows: np.ndarray,
    scores: np.ndarray,
) -> SplitScores:
    """Score the answers about movies of one split like those of a trained model.

    A movie without an answer scores 0 for every genre, so that no genre is predicted.

    Args:
        model: the result of :func:`fit_calibrated_model`.
        questioner: the questioner that got the answers.
        data: data module, already set up.
        split: "train", "val" or "test".
        rows: (N,) int64, rows of the movies that were asked about.
        scores: (N, G) float32 in [0, 1]; a row of nan for a movie without an answer.
    """
    answered = torch.from_numpy(~np.isnan(scores).any(axis=1))
    clipped = torch.from_numpy(_clip(np.nan_to_num(scores, nan=0.5), questioner.answers))
    with torch.inference_mode():
        part: Tensor = model.network.branches[BRANCH](vectors=torch.logit(clipped.double()).float())
        part = part * answered[:, None]
        logits = model.network.total({BRANCH: part})
        logits = torch.where(
            answered[:, None], logits, torch.logit(torch.tensor(_UNANSWERED_SCORE))
        )
        final_scores = ACTIVATIONS[model.activation](logits) * answered[:, None]
    return SplitScores(
        split=split,
        rows=torch.from_numpy(rows),
        logits=logits,
        scores=final_scores,
        targets=torch.from_numpy(data.labels[rows].astype(np.float32)),
        branch_logits={BRANCH: part},
        has_column={BRANCH: answered},
    )
