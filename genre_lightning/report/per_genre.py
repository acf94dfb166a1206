"""The sections by genre: table, curves, calibration, and co-occurrence."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from genre_lightning.checkpoint.model import TrainedModel
from genre_lightning.report import charts
from genre_lightning.report.evaluation import SplitScores
from genre_lightning.report.numbers import number, span
from genre_lightning.report.statistics import (
    Bootstrap,
    Reliability,
    cooccurrence,
    percentile_interval,
    precision_recall_steps,
    reliability,
    row_shares,
)
from genre_lightning.scoring.metrics import per_genre_metrics


def genre_table(
    model: TrainedModel, scores: SplitScores, model_bootstrap: Bootstrap, order: np.ndarray
) -> list[dict[str, Any]]:
    """Build a row for each genre, in the order of the genre indices ``order``."""
    columns = per_genre_metrics(scores.scores, scores.targets, model.thresholds)
    predicted = (scores.scores >= model.thresholds).sum(dim=0).tolist()
    rows = []
    for g in order.tolist():
        row: dict[str, Any] = {name: column[g].item() for name, column in columns.items()}
        # an undefined metric counts as 0 in the averages, but is shown as a dash
        if not row["support"]:
            row["recall"] = row["f1"] = math.nan
        if not predicted[g]:
            row["precision"] = math.nan
        f1 = percentile_interval(row["f1"], model_bootstrap.per_genre["f1"][:, g])
        name = f"F1 of {model.genres[g]}: {number(f1.value)}"
        name += f", 95% interval {span(f1)}" if span(f1) else ""
        chart = charts.small_interval(name, f1) if row["support"] else ""
        row |= {
            "genre": model.genres[g],
            "predicted": predicted[g],
            "chart": chart,
            "f1_span": span(f1),
        }
        rows.append(row)
    return rows


def curves(model: TrainedModel, scores: SplitScores, order: np.ndarray) -> list[dict[str, Any]]:
    """Draw a precision-recall curve for each genre, in the order of the genre indices ``order``."""
    columns = per_genre_metrics(scores.scores, scores.targets, model.thresholds)
    values, targets = scores.scores.numpy(), scores.targets.numpy()
    panels = []
    for g in order.tolist():
        genre, support = model.genres[g], int(columns["support"][g])
        if not support:
            panels.append({"genre": genre, "ap": math.nan, "chart": None})
            continue
        predicted = bool((values[:, g] >= model.thresholds[g].item()).any())
        recall, precision = precision_recall_steps(values[:, g], targets[:, g])
        point = (columns["recall"][g].item(), columns["precision"][g].item())
        ap = columns["ap"][g].item()
        chart = charts.precision_recall_panel(
            f"Precision over recall of {genre}: average precision {ap:.3f}",
            recall,
            precision,
            support / len(values),
            point if predicted else None,
        )
        panels.append({"genre": genre, "ap": ap, "chart": chart})
    return panels


def calibration(model: TrainedModel, scores: SplitScores, order: np.ndarray) -> dict[str, Any]:
    """Compare scores with the share of true cells, over all genres and for each in ``order``."""
    values, targets = scores.scores.numpy(), scores.targets.numpy()
    bins = reliability(values, targets)
    panels = []
    for g in order.tolist():
        genre_bins = reliability(values[:, g], targets[:, g])
        panels.append(
            {
                "genre": model.genres[g],
                "ece": genre_bins.ece,
                "chart": charts.reliability_panel(
                    f"Reliability of {model.genres[g]}: expected calibration error "
                    f"{genre_bins.ece:.3f}",
                    genre_bins,
                ),
            }
        )
    return {
        "ece": bins.ece,
        "brier": bins.brier,
        "mean_score": float(values.mean()),
        "frequency": float(targets.mean()),
        "chart": charts.reliability_panel(
            f"Reliability over all genres: expected calibration error {bins.ece:.3f}",
            bins,
            large=True,
        ),
        "bins": _bin_rows(bins),
        "panels": panels,
    }


def _bin_rows(bins: Reliability) -> list[dict[str, Any]]:
    return [
        {
            "range": f"{bins.edges[k]:.1f}–{bins.edges[k + 1]:.1f}",
            "count": int(bins.count[k]),
            "mean_score": float(bins.mean_score[k]),
            "frequency": float(bins.frequency[k]),
        }
        for k in range(len(bins.count))
    ]


def genre_pairs(model: TrainedModel, scores: SplitScores, order: np.ndarray) -> dict[str, Any]:
    """Count which of the genres in ``order`` are true together and predicted together."""
    names = [model.genres[g] for g in order]
    true = (scores.targets.numpy() > 0)[:, order]
    predicted = (scores.scores >= model.thresholds).numpy()[:, order]
    true_pairs = cooccurrence(true, true)
    predicted_pairs = cooccurrence(predicted, predicted)
    crossed = cooccurrence(true, predicted)
    support = true.sum(axis=0)
    with np.errstate(invalid="ignore"):
        shares = np.where(support[:, None] > 0, crossed / support[:, None], np.nan)
    cross = [
        {"genre": names[i], "support": int(support[i]), "shares": shares[i].tolist()}
        for i in range(len(names))
    ]
    differences = predicted_pairs - true_pairs
    upper = [(i, j) for i in range(len(names)) for j in range(i + 1, len(names))]

    def largest_differences(more: bool) -> list[dict[str, Any]]:
        sign = 1 if more else -1
        ranked = sorted(upper, key=lambda pair: -sign * differences[pair])
        return [
            {
                "pair": (names[i], names[j]),
                "true": int(true_pairs[i, j]),
                "predicted": int(predicted_pairs[i, j]),
            }
            for i, j in ranked[:5]
            if sign * differences[i, j] > 0
        ]

    return {
        "genres": names,
        "cross": cross,
        "true": charts.heat_map("Co-occurrence of true genres", row_shares(true_pairs), names),
        "predicted": charts.heat_map(
            "Co-occurrence of predicted genres", row_shares(predicted_pairs), names
        ),
        "more": largest_differences(True),
        "fewer": largest_differences(False),
    }
