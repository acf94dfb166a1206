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
    fitted: Bootstrap,
    order: Sequence[int],
) -> dict[str, Any] | None:
    """Return the template's values; None for a model with one branch, or without validation.

    Args:
        model: the model that was scored.
        scores: of the split.
        validation: scores of the validation split, to fit thresholds; None if there are none.
        fitted: resamples of the whole model on the whole split.
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
            "rows": _rows(subsets, labels, scores, group.rows, fitted),
        }
        for group in movie_groups(model, scores)
    ]
    complete = torch.stack(list(scores.has.values())).all(dim=0)
    return {
        "groups": groups,
        "kinds": [(charts.branch_kind(k), label) for k, label in enumerate(labels.values())],
        "chart": _chart(subsets, labels, scores.targets, complete, model, order),
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
    chosen = [
        *((branch,) for branch in branches),
        *(tuple(other for other in branches if other != branch) for branch in branches),
    ]
    subsets = {}
    for some in dict.fromkeys(chosen):
        seen = torch.stack([validation.has[branch] for branch in some]).any(dim=0)
        thresholds = model.thresholds
        if bool(seen.any()):
            found = _scores(model, validation, some)[seen]
            thresholds = fit_thresholds(found, validation.targets[seen], **model.threshold_fit)
        subsets[some] = SubsetScores(_scores(model, scores, some), thresholds)
    return {**subsets, branches: SubsetScores(scores.scores, model.thresholds)}


def _scores(model: TrainedModel, scores: SplitScores, branches: Sequence[str]) -> Tensor:
    chosen = {name: scores.branch_logits[name].to(model.device) for name in branches}
    folds = None if scores.folds is None else scores.folds.to(model.device)
    with torch.inference_mode():
        return ACTIVATIONS[model.activation](model.network.final_logits(chosen, folds)).cpu()


def movie_groups(model: TrainedModel, scores: SplitScores) -> list[Group]:
    """All movies and, if some lack a column, those with all columns and those without each."""
    has: dict[str, Tensor] = {}
    for branch, branch_input in model.inputs.items():
        rows = scores.has[branch]
        alike = all(
            torch.equal(rows, scores.has[other])
            for other, other_input in model.inputs.items()
            if other_input.column == branch_input.column
        )
        # A branch that looks up ids, or that can use only some values of a column, is listed by its
        # own name instead of the column's.
        has[branch_input.column if alike and branch_input.of != "id" else branch] = rows
    groups = [Group("All movies", torch.ones(len(scores.rows), dtype=torch.bool))]
    lacking = [column for column, rows in has.items() if not bool(rows.all())]
    complete = torch.stack(list(has.values())).all(dim=0)
    if lacking:
        groups.append(Group(f"With {listed(lacking)}", complete))
        groups += [Group(f"Without {column}", ~has[column]) for column in lacking]
    return [
        group
        for place, group in enumerate(groups)
        if place == 0 or (bool(group.rows.any()) and not bool(group.rows.all()))
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
    everything = tuple(labels)
    present = [name for name in labels if bool(scores.has[name][movies].any())]
    labelled: dict[str, tuple[str, ...]] = {}
    without: dict[str, tuple[str, ...]] = {}
    if len(present) > 1:
        for name in present:
            if bool(scores.has[name][movies].all()):
                labelled[_title(f"{labels[name]} alone")] = (name,)
        for name in present:
            others = tuple(other for other in everything if other != name)
            if len(present) == 2:
                # With two branches, all but one is the other alone, which can already have a row.
                others = tuple(other for other in present if other != name)
            else:
                labelled[f"All but {labels[name]}"] = others
            if others in labelled.values():
                without[name] = others
    labelled[_together([labels[name] for name in present], len(everything))] = everything
    return ShownSubsets(labelled, without)


def _rows(
    subsets: Mapping[tuple[str, ...], SubsetScores],
    labels: Mapping[str, str],
    scores: SplitScores,
    movies: Tensor,
    fitted: Bootstrap,
) -> list[dict[str, Any]]:
    """The table's rows for a group of movies: subsets of branches, then the gain from each branch.

    Args:
        subsets: from :func:`score_subsets`.
        labels: of all branches.
        scores: of the split.
        movies: (N,) bool, the group's movies.
        fitted: see :func:`branch_section`.
    """
    everything = tuple(labels)
    shown = shown_subsets(labels, scores, movies)
    targets = scores.targets[movies]
    values, resampled = {}, {}
    for some in shown.labelled.values():
        subset = subsets[some]
        found = subset.scores[movies]
        values[some] = genre_metrics(found, targets, subset.thresholds)
        if some == everything and bool(movies.all()):
            resampled[some] = fitted.metrics
            continue
        resampled[some] = bootstrap(
            found.numpy(),
            targets.numpy(),
            subset.thresholds.numpy(),
            resamples=fitted.resamples,
            seed=fitted.seed,
            micro="map_micro" in METRICS,
        ).metrics

    def difference(metric: str, others: tuple[str, ...]) -> Interval:
        # Both use the same draws of movies, so the differences are paired.
        return interval(
            values[everything][metric] - values[others][metric],
            resampled[everything][metric] - resampled[others][metric],
            least=-1.0,
        )

    rows: list[dict[str, Any]] = [
        {
            "label": label,
            "gain": False,
            "values": [interval(values[some][m], resampled[some][m]) for m in METRICS],
        }
        for label, some in shown.labelled.items()
    ]
    rows += [
        {
            "label": f"Gain from {labels[name]}",
            "gain": True,
            "values": [difference(m, others) for m in METRICS],
        }
        for name, others in shown.without.items()
    ]
    return rows


def _chart(
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
        (name,): charts.branch_kind(place) for place, name in enumerate(labels)
    }
    kinds[tuple(labels)] = "model"
    precisions = {
        kind: per_genre_metrics(subsets[some].scores[movies], targets[movies], model.thresholds)[
            "ap"
        ]
        for some, kind in kinds.items()
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


def _together(present: Sequence[str], branches: int) -> str:
    """Label of the whole model for movies that have the columns of these branches only."""
    if len(present) > 2:
        return "All branches" if len(present) == branches else "All other branches"
    return _title(" + ".join(present) if len(present) > 1 else f"{(*present, 'prior')[0]} alone")


def _title(text: str) -> str:
    """Capitalise the first letter, except of a name such as title_minilm."""
    return text if "_" in text.split(maxsplit=1)[0] else text[:1].upper() + text[1:]
