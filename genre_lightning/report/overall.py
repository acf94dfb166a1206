"""The section "Overall": every metric with its interval, beside two baselines."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from genre_lightning.checkpoint.model import TrainedModel
from genre_lightning.data.datamodule import MovieDataModule
from genre_lightning.report import charts
from genre_lightning.report.charts import Mark
from genre_lightning.report.evaluation import SplitScores
from genre_lightning.report.statistics import Bootstrap, best_constant, bootstrap, interval
from genre_lightning.scoring.metrics import genre_metrics
from genre_lightning.scoring.thresholds import DEFAULT_METHOD, fit_thresholds

#: Metrics of the overall table, in its order, and their labels.
METRICS = {
    "f1_micro": "F1, micro",
    "f1_macro": "F1, macro",
    "f1_samples": "F1, mean over movies",
    "f1_weighted": "F1, weighted",
    "precision_micro": "Precision, micro",
    "precision_macro": "Precision, macro",
    "recall_micro": "Recall, micro",
    "recall_macro": "Recall, macro",
    "map_macro": "mAP, macro",
    "map_micro": "mAP, micro",
}
HEADLINE = ("f1_micro", "f1_macro", "map_macro")


def overall_section(
    model: TrainedModel,
    data: MovieDataModule,
    scores: SplitScores,
    model_bootstrap: Bootstrap,
) -> dict[str, Any]:
    """Return the template's values for the whole split.

    Args:
        model: the model that was scored.
        data: set up.
        scores: of the split.
        model_bootstrap: resamples at the model's own thresholds.
    """
    metrics = genre_metrics(scores.scores, scores.targets, model.thresholds)
    half_thresholds = torch.full_like(model.thresholds, 0.5)
    half_bootstrap = bootstrap(
        scores.scores.numpy(),
        scores.targets.numpy(),
        half_thresholds.numpy(),
        resamples=model_bootstrap.resamples,
        seed=model_bootstrap.seed,
    ).metrics
    baselines = _baselines(data, scores, half_thresholds)
    rows: list[dict[str, Any]] = []
    for key, label in METRICS.items():
        is_ranking = key.startswith("map")
        half_value = metrics[key if is_ranking else f"{key}_at_0.5"]
        rows.append(
            {
                "key": key,
                "label": label,
                "fitted": interval(metrics[key], model_bootstrap.metrics[key]),
                "half": None if is_ranking else interval(half_value, half_bootstrap[key]),
                **{name: baseline.metrics[key] for name, baseline in baselines.items()},
                "prior_half": (
                    None
                    if is_ranking or not baselines
                    else baselines["prior"].metrics[f"{key}_at_0.5"]
                ),
            }
        )
    baseline_note = ", beside the constant and the prior baseline" if baselines else ""
    chart = charts.dot_rows(
        f"Scores of the model with 95% intervals{baseline_note}",
        [
            (
                row["label"],
                [
                    *(Mark(name, row[name]) for name in baselines),
                    Mark("model", row["fitted"].value, row["fitted"].low, row["fitted"].high),
                ],
            )
            for row in rows
            if row["key"].startswith(("f1", "map"))
        ],
    )
    return {
        "rows": rows,
        "headline": [row for row in rows if row["key"] in HEADLINE],
        "chart": chart,
        "baselines": {
            name: [model.genres[g] for g in baseline.predicts]
            for name, baseline in baselines.items()
        },
    }


class _Baseline(NamedTuple):
    """A predictor that treats all movies alike: the genres that it predicts, and its metrics."""

    predicts: np.ndarray
    metrics: dict[str, float]


def _baselines(
    data: MovieDataModule, scores: SplitScores, half_thresholds: torch.Tensor
) -> dict[str, _Baseline]:
    """The constant and the prior, fitted on the dataset's train and val; empty without them."""
    train, val = data.splits["train"], data.splits["val"]
    if not len(train) or not len(val):
        return {}
    counts = data.genre_counts()
    chosen = best_constant(counts, len(train))
    constant = torch.zeros_like(half_thresholds)
    constant[torch.from_numpy(chosen)] = 1.0
    prior = torch.from_numpy((counts / len(train)).astype(np.float32))
    val_labels = torch.from_numpy(data.labels[val].astype(np.float32))
    prior_thresholds = fit_thresholds(prior.expand(len(val), -1), val_labels, DEFAULT_METHOD)
    shape = scores.targets.shape
    return {
        "constant": _Baseline(
            chosen, genre_metrics(constant.expand(shape), scores.targets, half_thresholds)
        ),
        "prior": _Baseline(
            np.flatnonzero((prior >= prior_thresholds).numpy()),
            genre_metrics(prior.expand(shape), scores.targets, prior_thresholds),
        ),
    }
