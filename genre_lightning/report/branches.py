"""The section "What each branch is worth": each branch alone, all but one, and all together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from markupsafe import Markup
from torch import Tensor

from genre_lightning.checkpoint.model import TrainedModel
from genre_lightning.explain.parts import branch_labels
from genre_lightning.models.fusion import ACTIVATIONS
from genre_lightning.report import charts
from genre_lightning.report.charts import Mark
from genre_lightning.report.evaluation import SplitScores
from genre_lightning.report.statistics import Bootstrap, Interval, bootstrap, interval
from genre_lightning.scoring.metrics import genre_metrics, per_genre_metrics
from genre_lightning.scoring.thresholds import fit_thresholds
from genre_lightning.wording import listed

#: Columns of the table.
METRICS = ("map_macro", "f1_macro", "f1_micro")


@dataclass(frozen=True)
class SubsetScores:
    """Scores of the prior and a subset of a model's branches.

    Attributes:
        scores: (N, G) float32 in [0, 1].
        thresholds: (G,) float32, fitted to the subset's scores on the validation split.
    """

    scores: Tensor
    thresholds: Tensor


@dataclass(frozen=True)
class Group:
    """Movies grouped by the columns that they have.

    Attributes:
        name: shown above the group's rows.
        rows: (N,) bool, the group's movies.
    """

    name: str
    rows: Tensor


def branch_section(
    model: TrainedModel,
    scores: SplitScores,
    validation: SplitScores | None,
    model_bootstrap: Bootstrap,
    order: Sequence[int],
) -> dict[str, Any] | None:
    """Return the template's values; None for a model with one branch, or without validation.

    Args:
        model: the model that was scored.
        scores: of the split.
        validation: scores of the validation split, to fit thresholds; None if there are none.
        model_bootstrap: resamples of the whole model on the whole split.
        order: genre indices in the order of the chart.
    """
    if len(model.inputs) == 1 or validation is None:
        return None
    subsets = score_subsets(model, scores, validation)
    labels = branch_labels(model.inputs)
    groups = [
        {
            "name": group.name,
            "num_movies": int(group.rows.sum()),
            "rows": _table_rows(subsets, labels, scores, group.rows, model_bootstrap),
        }
        for group in movie_groups(model, scores)
    ]
    complete = torch.stack(list(scores.has_column.values())).all(dim=0)
    return {
        "groups": groups,
        "kinds": [(charts.branch_kind(k), label) for k, label in enumerate(labels.values())],
        "chart": _precision_chart(subsets, labels, scores.targets, complete, model, order),
        "chart_movies": int(complete.sum()),
    }


def score_subsets(
    model: TrainedModel, scores: SplitScores, validation: SplitScores
) -> dict[tuple[str, ...], SubsetScores]:
    """Score the split with each branch alone, all but one, and all; keys are the branches used.

    A subset's score is the prior plus its branches' part of the sum, not that of a model trained
    without the other branches. Its thresholds are fitted on the validation movies that have a
    column of at least one of its branches.
    """
    branches = tuple(model.inputs)
    selections = [
        *((branch,) for branch in branches),
        *(tuple(other for other in branches if other != branch) for branch in branches),
    ]
    subset_scores = {}
    for subset in dict.fromkeys(selections):
        has_input = torch.stack([validation.has_column[branch] for branch in subset]).any(dim=0)
        thresholds = model.thresholds
        if bool(has_input.any()):
            val_scores = _score_subset(model, validation, subset)[has_input]
            thresholds = fit_thresholds(
                val_scores, validation.targets[has_input], **model.threshold_fit
            )
        subset_scores[subset] = SubsetScores(_score_subset(model, scores, subset), thresholds)
    return {**subset_scores, branches: SubsetScores(scores.scores, model.thresholds)}


def _score_subset(model: TrainedModel, scores: SplitScores, branches: Sequence[str]) -> Tensor:
    branch_logits = {name: scores.branch_logits[name].to(model.device) for name in branches}
    folds = None if scores.folds is None else scores.folds.to(model.device)
    with torch.inference_mode():
        return ACTIVATIONS[model.activation](model.network.final_logits(branch_logits, folds)).cpu()


def movie_groups(model: TrainedModel, scores: SplitScores) -> list[Group]:
    """All movies and, if some lack a column, those with all columns and those without each."""
    has_column: dict[str, Tensor] = {}
    for branch, branch_input in model.inputs.items():
        rows = scores.has_column[branch]
        same_movies = all(
            torch.equal(rows, scores.has_column[other])
            for other, other_input in model.inputs.items()
            if other_input.column == branch_input.column
        )
        # A branch that looks up ids, or that can use only some values of a column, is listed by its
        # own name instead of the column's.
        has_column[branch_input.column if same_movies and branch_input.of != "id" else branch] = (
            rows
        )
    groups = [Group("All movies", torch.ones(len(scores.rows), dtype=torch.bool))]
    incomplete = [column for column, rows in has_column.items() if not bool(rows.all())]
    is_complete = torch.stack(list(has_column.values())).all(dim=0)
    if incomplete:
        groups.append(Group(f"With {listed(incomplete)}", is_complete))
        groups += [Group(f"Without {column}", ~has_column[column]) for column in incomplete]
    return [
        group
        for index, group in enumerate(groups)
        if index == 0 or (bool(group.rows.any()) and not bool(group.rows.all()))
    ]


@dataclass(frozen=True)
class ShownSubsets:
    """The subsets of branches that the table shows for a group of movies.

    Attributes:
        labelled: label to branches of each subset, in the order of the rows.
        without: branch to the subset without it; only subsets that are in ``labelled``.
    """

    labelled: dict[str, tuple[str, ...]]
    without: dict[str, tuple[str, ...]]


def shown_subsets(labels: Mapping[str, str], scores: SplitScores, movies: Tensor) -> ShownSubsets:
    """Choose each branch alone that all these movies have, all but one, and all together.

    Args:
        labels: of all branches.
        scores: of the split.
        movies: (N,) bool, the group's movies.
    """
    all_branches = tuple(labels)
    present = [name for name in labels if bool(scores.has_column[name][movies].any())]
    labelled: dict[str, tuple[str, ...]] = {}
    without: dict[str, tuple[str, ...]] = {}
    if len(present) > 1:
        for name in present:
            if bool(scores.has_column[name][movies].all()):
                labelled[_capitalized(f"{labels[name]} alone")] = (name,)
        for name in present:
            others = tuple(other for other in all_branches if other != name)
            if len(present) == 2:
                # With two branches, all but one is the other alone, which can already have a row.
                others = tuple(other for other in present if other != name)
            else:
                labelled[f"All but {labels[name]}"] = others
            if others in labelled.values():
                without[name] = others
    labelled[_all_branches_label([labels[name] for name in present])] = all_branches
    return ShownSubsets(labelled, without)


def _table_rows(
    subsets: Mapping[tuple[str, ...], SubsetScores],
    labels: Mapping[str, str],
    scores: SplitScores,
    movies: Tensor,
    model_bootstrap: Bootstrap,
) -> list[dict[str, Any]]:
    """The table's rows for a group of movies: subsets of branches, then the gain from each branch.

    Args:
        subsets: from :func:`score_subsets`.
        labels: of all branches.
        scores: of the split.
        movies: (N,) bool, the group's movies.
        model_bootstrap: see :func:`branch_section`.
    """
    all_branches = tuple(labels)
    shown = shown_subsets(labels, scores, movies)
    targets = scores.targets[movies]
    metrics, resampled = {}, {}
    for subset in shown.labelled.values():
        subset_scores = subsets[subset]
        scores_of_group = subset_scores.scores[movies]
        metrics[subset] = genre_metrics(scores_of_group, targets, subset_scores.thresholds)
        if subset == all_branches and bool(movies.all()):
            resampled[subset] = model_bootstrap.metrics
            continue
        resampled[subset] = bootstrap(
            scores_of_group.numpy(),
            targets.numpy(),
            subset_scores.thresholds.numpy(),
            resamples=model_bootstrap.resamples,
            seed=model_bootstrap.seed,
            micro="map_micro" in METRICS,
        ).metrics

    def gain(metric: str, others: tuple[str, ...]) -> Interval:
        # Both use the same draws of movies, so the differences are paired.
        return interval(
            metrics[all_branches][metric] - metrics[others][metric],
            resampled[all_branches][metric] - resampled[others][metric],
            minimum=-1.0,
        )

    rows: list[dict[str, Any]] = [
        {
            "label": label,
            "gain": False,
            "values": [
                interval(metrics[subset][metric], resampled[subset][metric]) for metric in METRICS
            ],
        }
        for label, subset in shown.labelled.items()
    ]
    rows += [
        {
            "label": f"Gain from {labels[name]}",
            "gain": True,
            "values": [gain(metric, others) for metric in METRICS],
        }
        for name, others in shown.without.items()
    ]
    return rows


def _precision_chart(
    subsets: Mapping[tuple[str, ...], SubsetScores],
    labels: Mapping[str, str],
    targets: Tensor,
    movies: Tensor,
    model: TrainedModel,
    order: Sequence[int],
) -> Markup | None:
    """Chart average precision per genre, by each branch alone and by all; None without movies."""
    if not bool(movies.any()):
        return None
    kinds: dict[tuple[str, ...], str] = {
        (name,): charts.branch_kind(index) for index, name in enumerate(labels)
    }
    kinds[tuple(labels)] = "model"
    precisions = {
        kind: per_genre_metrics(subsets[subset].scores[movies], targets[movies], model.thresholds)[
            "ap"
        ]
        for subset, kind in kinds.items()
    }
    rows = [
        (model.genres[g], [Mark(kind, ap[g].item()) for kind, ap in precisions.items()])
        for g in np.asarray(order).tolist()
        if bool(targets[movies][:, g].any())
    ]
    return charts.dot_rows(
        f"Average precision of each genre by {listed(list(labels.values()))} alone, and by all",
        rows,
    )


def _all_branches_label(present: Sequence[str]) -> str:
    """Label of the whole model for movies that have the columns of these branches only."""
    if len(present) > 2:
        return "All branches"
    return _capitalized(
        " + ".join(present) if len(present) > 1 else f"{(*present, 'prior')[0]} alone"
    )


def _capitalized(text: str) -> str:
    """Capitalise the first letter, except of a name such as title_minilm."""
    return text if "_" in text.split(maxsplit=1)[0] else text[:1].upper() + text[1:]
