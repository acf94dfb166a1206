"""Decompose a score into a bias and the parts of the branches.

Logits are summed, so a score splits exactly into a bias, which is the same for all movies with the
same columns; the part of each branch, weighted by stacking; and the contribution of the scores of
all genres through stacking and label sets (co-occurrence). ``explain/table.py`` explains the part
of a single branch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from genre_lightning.checkpoint.model import TrainedModel
from genre_lightning.explain.explainer import branch_logits, float64, read_columns
from genre_lightning.explain.table import branch_weights, find_explainer
from genre_lightning.inputs.encode import encode_items
from genre_lightning.inputs.input import Input, Value
from genre_lightning.inputs.part import Part


@dataclass(frozen=True)
class ScoreParts:
    """The parts of a movie's logits.

    Attributes:
        bias: (G,) float64, the model's prior plus the baseline of each branch whose column the
            movie has, such as the logits of an empty text.
        branches: by branch, the (G,) float64 that it adds; zeros if the column is absent.
        cooccurrence: (G,) float64, added by the scores of all genres through stacking and label
            sets; None for a model with neither.
    """

    bias: np.ndarray
    branches: dict[str, np.ndarray]
    cooccurrence: np.ndarray | None = None

    @property
    def logits(self) -> np.ndarray:
        """(G,) float64, the sum of all parts."""
        total = self.bias
        for part in self.branches.values():
            total = total + part
        return total if self.cooccurrence is None else total + self.cooccurrence

    def cooccurrence_of(self, genre: int) -> dict[str, float]:
        """Co-occurrence of one genre, by index, as a JSON entry; empty for a model without it."""
        if self.cooccurrence is None:
            return {}
        return {"cooccurrence": float(self.cooccurrence[genre])}


def score_parts(model: TrainedModel, columns: Mapping[str, Value | None]) -> ScoreParts:
    """Split the logits of one movie into the bias and the part of each branch.

    Args:
        model: in evaluation mode, as returned by ``load_model``.
        columns: the movie's values by column, each as passed to the ``read`` of an input; columns
            that the model does not look at are ignored.

    Raises:
        InputError: a value can't be read.
        TypeError: a value has the wrong type for its column.
    """
    items = {branch: [item] for branch, item in read_columns(model, columns).items()}
    return split_encoded(model, encode_items(model.inputs, items, model.device))


def split_encoded(model: TrainedModel, parts: Mapping[str, Part]) -> ScoreParts:
    """Split the logits of one movie that has already been encoded.

    Args:
        model: in evaluation mode.
        parts: of one movie, as returned by :func:`genre_lightning.inputs.encode.encode_items`.
    """
    return split_logits(
        model,
        {
            branch: branch_logits(model, branch, part)[0] if len(part) else None
            for branch, part in parts.items()
        },
    )


def split_logits(model: TrainedModel, logits: Mapping[str, np.ndarray | None]) -> ScoreParts:
    """Split the logits of one movie, given the logits of its branches.

    Args:
        model: in evaluation mode; its ``member`` is the one that scored the movie.
        logits: by branch, (G,) of one movie; None if the column is absent.
    """
    bias = float64(model.network.prior)
    parts, summands = {}, {}
    for branch in model.inputs:
        own_logits = logits[branch]
        parts[branch] = np.zeros_like(bias)
        summands[branch] = parts[branch] if own_logits is None else own_logits
        if own_logits is None:
            continue
        weights = branch_weights(model, branch)
        explainer = find_explainer(model, branch)
        baseline = None if explainer is None else explainer.baseline(model, branch)
        parts[branch] = weights * own_logits
        if baseline is not None:
            bias = bias + weights * baseline
            parts[branch] = parts[branch] - weights * baseline
    if not model.network.relates_genres:
        return ScoreParts(bias, parts)
    rows = {
        branch: torch.from_numpy(own_logits)[None].float().to(model.device)
        for branch, own_logits in summands.items()
    }
    folds = None if model.member is None else torch.tensor([model.member], device=model.device)
    final = float64(model.network.final_logits(rows, folds)[0])
    return ScoreParts(bias, parts, final - ScoreParts(bias, parts).logits)


def branch_labels(inputs: Mapping[str, Input]) -> dict[str, str]:
    """Labels of the branches for people: the column's name, or the branch's own if that is clearer.

    The branch's own name is clearer if several branches look at the column, or for vectors by movie
    id.
    """
    columns = [branch_input.column for branch_input in inputs.values()]

    def label(branch: str, branch_input: Input) -> str:
        column = branch_input.column
        # Another branch may be named like this column.
        is_unambiguous = columns.count(column) == 1 and (column not in inputs or branch == column)
        return column if is_unambiguous and branch_input.of != "id" else branch

    return {branch: label(branch, branch_input) for branch, branch_input in inputs.items()}
