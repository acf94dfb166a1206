"""The page itself: from the scores of a split to one self-contained HTML file."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from markupsafe import Markup
from torch import Tensor

from genre_lightning.checkpoint.model import TrainedModel
from genre_lightning.data.datamodule import MovieDataModule
from genre_lightning.files import whole_file
from genre_lightning.models.fusion import ACTIVATIONS
from genre_lightning.page.document import render_page
from genre_lightning.report import charts
from genre_lightning.report.charts import Mark
from genre_lightning.report.evaluation import SplitScores
from genre_lightning.report.gallery import make_gallery
from genre_lightning.report.statistics import (
    Bootstrap,
    Interval,
    Reliability,
    best_constant,
    bootstrap,
    cooccurrence,
    interval,
    num_resamples,
    precision_recall_steps,
    reliability,
    row_shares,
)
from genre_lightning.runs.result import package_versions
from genre_lightning.scoring.metrics import genre_metrics, per_genre_metrics
from genre_lightning.scoring.thresholds import DEFAULT_METHOD, fit_thresholds

#: Of the overall table, in its order.
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
#: A chart for each genre, and a square of all pairs, stop being legible and small beyond these.
MOST_PANELS = 40
MOST_PAIRED = 28
GALLERY = 6


@dataclass(frozen=True)
class Origin:
    """Where a report comes from, to be read on it.

    Attributes:
        checkpoint: the file.
        command: what makes the report again.
        created: when it was made.
    """

    checkpoint: Path
    command: str
    created: datetime


def write_report(
    path: Path,
    model: TrainedModel,
    data: MovieDataModule,
    scores: SplitScores,
    origin: Origin,
    validation: SplitScores | None = None,
    seed: int = 0,
) -> None:
    """Write ``report.html``, whole or not at all: one file that opens without a network.

    Args:
        path: of the file.
        model: whose scores these are.
        data: set up, with the model's genres.
        scores: of :func:`genre_lightning.report.evaluation.score_split`.
        origin: of the report.
        validation: scores of the validation split, to fit thresholds for each branch alone; a model
            of one branch needs none.
        seed: of the bootstrap.

    Raises:
        ValueError: a model of two branches without ``validation``.
    """
    html = render_report(model, data, scores, origin, validation, seed)
    with whole_file(path) as file:
        file.write(html)


def render_report(
    model: TrainedModel,
    data: MovieDataModule,
    scores: SplitScores,
    origin: Origin,
    validation: SplitScores | None = None,
    seed: int = 0,
) -> str:
    """The report as HTML; arguments are those of :func:`write_report`."""
    resamples = num_resamples(*scores.scores.shape)
    fitted = _bootstrap(scores.scores, scores.targets, model.thresholds, resamples, seed)
    support = scores.targets.sum(dim=0).long().numpy()
    by_support = np.argsort(-support, kind="stable")
    return render_page(
        "genre_lightning.report",
        "report",
        filters={"number": number, "signed": signed, "span": span},
        facts=_facts(model, data, scores, origin),
        caution=_caution(model, data, scores.split),
        split=_split_name(scores.split),
        num_movies=len(scores.rows),
        resamples=resamples,
        seed=seed,
        origin=origin,
        versions=package_versions(),
        activation=model.activation,
        overall=_overall(model, data, scores, fitted, resamples, seed),
        genres=_genre_table(model, scores, fitted, by_support),
        curves=_curves(model, scores, by_support[:MOST_PANELS]),
        calibration=_calibration(model, scores, by_support[:MOST_PANELS]),
        pairs=_pairs(model, scores, by_support[:MOST_PAIRED]),
        branches=_branches(model, data, scores, validation, fitted, resamples, seed, by_support),
        num_genres=len(model.genres),
        most_panels=MOST_PANELS,
        most_paired=MOST_PAIRED,
        gallery=make_gallery(model, data, scores, GALLERY),
        has_title=model.network.title is not None,
        has_poster=model.network.poster is not None,
    )


def number(value: float, digits: int = 3) -> str:
    """As in a table; a dash for nan."""
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def signed(value: float, digits: int = 2) -> str:
    """With its sign, a true minus; a dash for nan."""
    if math.isnan(value):
        return "–"
    text = f"{abs(value):.{digits}f}"
    zero = float(text) == 0
    return text if zero else f"{'−' if value < 0 else '+'}{text}"


def span(value: Interval, show: Any = number) -> str:
    """The ends of an interval; nothing where it is undefined."""
    return "" if math.isnan(value.low) else f"{show(value.low)} to {show(value.high)}"


def _split_name(split: str) -> str:
    return {"val": "validation", "train": "training"}.get(split, split)


def _bootstrap(
    scores: Tensor, targets: Tensor, thresholds: Tensor, resamples: int, seed: int
) -> Bootstrap:
    return bootstrap(
        scores.numpy(), targets.numpy(), thresholds.numpy(), resamples=resamples, seed=seed
    )


def _facts(
    model: TrainedModel, data: MovieDataModule, scores: SplitScores, origin: Origin
) -> list[tuple[str, str]]:
    states = data.poster_states()[scores.rows.numpy()]
    counts = {state: int((states == state).sum()) for state in ("missing", "unreadable")}
    present = len(states) - sum(counts.values())
    posters = f"{present:,} present" + "".join(
        f", {count:,} {state}" for state, count in counts.items() if count
    )
    branches = [name for name in ("title", "poster") if getattr(model.network, name) is not None]
    digest = hashlib.sha256(origin.checkpoint.read_bytes()).hexdigest()[:12]
    source = Path(str(data.options.get("root") or data.options.get("path") or data.reader)).name
    name = data.reader if source == data.reader else f"{data.reader} ({source})"
    return [
        ("Movies", f"{len(scores.rows):,}, the {_split_name(scores.split)} split"),
        ("Data set", f"{name}: {len(data.movie_set.movies):,} movies"),
        ("Genres", f"{len(model.genres)}; {float(scores.targets.sum(1).mean()):.2f} a movie"),
        ("Posters", posters),
        ("Model", " + ".join(branches) + (" branch" if len(branches) == 1 else " branches")),
        ("Checkpoint", f"{origin.checkpoint.name}, SHA-256 {digest}…"),
        ("Made", origin.created.strftime("%Y-%m-%d %H:%M %Z").strip()),
    ]


def _caution(model: TrainedModel, data: MovieDataModule, split: str) -> str:
    if split == "train":
        return "The model was trained on movies of a training split: these numbers flatter it."
    if split == "val":
        return (
            "The thresholds, and the best epoch, are chosen on the validation split in training. "
            "Where these are the same movies, as they are unless other data was named, the numbers "
            "flatter the model; the test split gives fair ones."
        )
    if data.describe()["data"] != model.data:
        return "These are other data, or otherwise split, than the checkpoint was trained on."
    return ""


def _overall(
    model: TrainedModel,
    data: MovieDataModule,
    scores: SplitScores,
    fitted: Bootstrap,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    metrics = genre_metrics(scores.scores, scores.targets, model.thresholds)
    half_way = torch.full_like(model.thresholds, 0.5)
    at_half = _bootstrap(scores.scores, scores.targets, half_way, resamples, seed).metrics
    train, val = data.splits["train"], data.splits["val"]
    counts = data.genre_counts()
    chosen = best_constant(counts, len(train))
    constant = torch.zeros_like(model.thresholds)
    constant[torch.from_numpy(chosen)] = 1.0
    prior = torch.from_numpy((counts / len(train)).astype(np.float32))
    val_labels = torch.from_numpy(data.labels[val].astype(np.float32))
    cuts = fit_thresholds(prior.expand(len(val), -1), val_labels, DEFAULT_METHOD)
    everywhere = scores.targets.shape
    baselines = {
        "constant": genre_metrics(constant.expand(everywhere), scores.targets, half_way),
        "prior": genre_metrics(prior.expand(everywhere), scores.targets, cuts),
    }
    rows: list[dict[str, Any]] = []
    for key, label in METRICS.items():
        ranking = key.startswith("map")
        half_value = metrics[key if ranking else f"{key}_at_0.5"]
        rows.append(
            {
                "key": key,
                "label": label,
                "fitted": interval(metrics[key], fitted.metrics[key]),
                "half": None if ranking else interval(half_value, at_half[key]),
                **{name: values[key] for name, values in baselines.items()},
                "prior_half": None if ranking else baselines["prior"][f"{key}_at_0.5"],
            }
        )
    chart = charts.dot_rows(
        "Scores of the model with 95% intervals, beside the constant and the prior baseline",
        [
            (
                row["label"],
                [
                    Mark("constant", row["constant"]),
                    Mark("prior", row["prior"]),
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
        "constant": [model.genres[g] for g in chosen],
        "prior": [model.genres[g] for g in np.flatnonzero((prior >= cuts).numpy())],
    }


def _genre_table(
    model: TrainedModel, scores: SplitScores, fitted: Bootstrap, order: np.ndarray
) -> list[dict[str, Any]]:
    columns = per_genre_metrics(scores.scores, scores.targets, model.thresholds)
    predicted = (scores.scores >= model.thresholds).sum(dim=0).tolist()
    rows = []
    for g in order.tolist():
        row: dict[str, Any] = {name: column[g].item() for name, column in columns.items()}
        # a metric counts as 0 in the averages where it is undefined, but is not shown as one
        if not row["support"]:
            row["recall"] = row["f1"] = math.nan
        if not predicted[g]:
            row["precision"] = math.nan
        f1 = interval(row["f1"], fitted.per_genre["f1"][:, g])
        name = f"F1 of {model.genres[g]}: {number(f1.value)}, 95% interval {span(f1)}"
        chart = charts.small_interval(name, f1) if row["support"] else ""
        row |= {
            "genre": model.genres[g],
            "predicted": predicted[g],
            "chart": chart,
            "f1_span": span(f1),
        }
        rows.append(row)
    return rows


def _curves(model: TrainedModel, scores: SplitScores, order: np.ndarray) -> list[dict[str, Any]]:
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


def _calibration(model: TrainedModel, scores: SplitScores, order: np.ndarray) -> dict[str, Any]:
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


def _pairs(model: TrainedModel, scores: SplitScores, order: np.ndarray) -> dict[str, Any]:
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

    def listed(more: bool) -> list[dict[str, Any]]:
        sign = 1 if more else -1
        ranked = sorted(upper, key=lambda pair: -sign * differences[pair])
        return [
            {
                "pair": f"{names[i]} + {names[j]}",
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
        "more": listed(True),
        "fewer": listed(False),
    }


#: Columns of the branches' table.
_BRANCH_METRICS = ("map_macro", "f1_macro", "f1_micro")


def _branches(
    model: TrainedModel,
    data: MovieDataModule,
    scores: SplitScores,
    validation: SplitScores | None,
    fitted: Bootstrap,
    resamples: int,
    seed: int,
    order: np.ndarray,
) -> dict[str, Any] | None:
    """What each branch is worth; None for a model of one."""
    if model.network.title is None or model.network.poster is None:
        return None
    if validation is None:
        raise ValueError("a model of two branches needs the scores of the validation split")
    answers = _branch_answers(model, scores)
    has_poster = torch.from_numpy(data.poster_states() == "present")
    seen = has_poster[scores.rows]
    val_seen = has_poster[validation.rows]
    val_answers = _branch_answers(model, validation)
    cuts = {
        "title": fit_thresholds(val_answers["title"], validation.targets),
        # a movie without a poster has no answer of the poster branch to learn from
        "poster": fit_thresholds(val_answers["poster"][val_seen], validation.targets[val_seen])
        if bool(val_seen.any())
        else model.thresholds,
        "both": model.thresholds,
    }
    everything = torch.ones_like(seen)
    groups = [("All movies", everything, ["title", "both"])]
    if bool(seen.all()):
        groups = [("All movies", everything, ["title", "poster", "both"])]
    else:
        if bool(seen.any()):
            groups.append(("With a poster", seen, ["title", "poster", "both"]))
        groups.append(("Without a poster", ~seen, ["both"]))
    return {
        "groups": [
            {
                "name": name,
                "num_movies": int(rows.sum()),
                "rows": _branch_rows(
                    {
                        part: (answers[part][rows], scores.targets[rows], cuts[part])
                        for part in parts
                    },
                    {"both": fitted} if bool(rows.all()) else {},
                    resamples,
                    seed,
                ),
            }
            for name, rows, parts in groups
        ],
        "chart": _branch_chart(model, answers, scores.targets, seen, order),
        "chart_movies": int(seen.sum()),
    }


def _branch_answers(model: TrainedModel, scores: SplitScores) -> dict[str, Tensor]:
    """Scores (N, G) of the prior with the title, with the poster, and with both."""
    activation, prior = ACTIVATIONS[model.activation], model.network.prior.cpu()
    return {
        "title": activation(prior + scores.title_logits),
        "poster": activation(prior + scores.poster_logits),
        "both": scores.scores,
    }


def _branch_rows(
    parts: Mapping[str, tuple[Tensor, Tensor, Tensor]],
    known: Mapping[str, Bootstrap],
    resamples: int,
    seed: int,
) -> list[dict[str, Any]]:
    labels = {"title": "Title alone", "poster": "Poster alone", "both": "Title + poster"}
    if list(parts) == ["both"]:
        labels["both"] = "Title alone"
    values = {name: genre_metrics(*part) for name, part in parts.items()}
    resampled = {
        name: known[name].metrics
        if name in known
        else _bootstrap(*part, resamples=resamples, seed=seed).metrics
        for name, part in parts.items()
    }
    rows = [
        {
            "label": labels[name],
            "gain": False,
            "values": [interval(values[name][m], resampled[name][m]) for m in _BRANCH_METRICS],
        }
        for name in parts
    ]
    if "title" in parts and "both" in parts:
        # the same movies are drawn for both, so the difference is paired
        rows.append(
            {
                "label": "Gain from posters",
                "gain": True,
                "values": [
                    interval(
                        values["both"][m] - values["title"][m],
                        resampled["both"][m] - resampled["title"][m],
                        least=-1.0,
                    )
                    for m in _BRANCH_METRICS
                ],
            }
        )
    return rows


def _branch_chart(
    model: TrainedModel,
    answers: Mapping[str, Tensor],
    targets: Tensor,
    seen: Tensor,
    order: Sequence[int] | np.ndarray,
) -> Markup | None:
    if not bool(seen.any()):
        return None
    precisions = {
        name: per_genre_metrics(answer[seen], targets[seen], model.thresholds)["ap"]
        for name, answer in answers.items()
    }
    rows = [
        (
            model.genres[g],
            [
                Mark(kind, precisions[part][g].item())
                for part, kind in (("title", "title"), ("poster", "poster"), ("both", "model"))
            ],
        )
        for g in np.asarray(order).tolist()
        if bool(targets[seen][:, g].any())
    ]
    return charts.dot_rows(
        "Average precision of each genre by title alone, poster alone and both",
        rows[:MOST_PANELS],
    )
