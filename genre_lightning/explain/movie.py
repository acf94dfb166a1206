"""Why a model scores one movie as it does: the parts of its score, and each branch taken apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from genre_lightning.checkpoint.model import TrainedModel
from genre_lightning.explain.explainer import BranchExplanation
from genre_lightning.explain.parts import ScoreParts, branch_labels, score_parts
from genre_lightning.explain.table import explain_branch, find_explainer
from genre_lightning.inputs.encode import is_absent
from genre_lightning.inputs.input import Value


@dataclass(frozen=True)
class MovieExplanation:
    """Why a model scores one movie as it does.

    Attributes:
        genres: the G genres, in the order of all numbers.
        labels: by branch, what to call it.
        parts: what the logits are made of.
        branches: by branch that the movie has the column of, what explains it; branches that can't
            be taken apart, or find nothing, are not among them.
        absent: the branches whose column the movie lacks.
    """

    genres: tuple[str, ...]
    labels: Mapping[str, str]
    parts: ScoreParts
    branches: Mapping[str, BranchExplanation]
    absent: frozenset[str]


def explain_movie(model: TrainedModel, columns: Mapping[str, Value | None]) -> MovieExplanation:
    """Explain what a model says of one movie.

    Args:
        model: in evaluation mode, as ``load_model`` gives it.
        columns: the movie's values by column, each as for the ``read`` of an input; columns that
            the model does not look at are ignored.

    Raises:
        InputError: a value can't be read.
        TypeError: a value is of a type that no such column has.
    """
    parts = score_parts(model, columns)
    branches = {}
    absent = set()
    for branch, branch_input in model.inputs.items():
        value = columns.get(branch_input.column)
        if is_absent(value):
            absent.add(branch)
        elif find_explainer(model, branch) is not None:
            found = explain_branch(model, branch, value)
            if found is not None:
                branches[branch] = found
    return MovieExplanation(
        model.genres, branch_labels(model.inputs), parts, branches, frozenset(absent)
    )
