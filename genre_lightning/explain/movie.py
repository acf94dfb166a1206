"""Explain a movie's scores: the parts of each score, and the explanations of the branches."""

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
    """Explanation of a model's scores for one movie.

    Attributes:
        genres: the G genres, in the order of all arrays.
        labels: by branch, a name for people.
        parts: of the logits.
        branches: by branch, its explanation. Branches that can't be explained, whose column the
            movie lacks, or that find nothing in it, are left out.
        absent: the branches whose column the movie lacks.
    """

    genres: tuple[str, ...]
    labels: Mapping[str, str]
    parts: ScoreParts
    branches: Mapping[str, BranchExplanation]
    absent: frozenset[str]


def explain_movie(model: TrainedModel, columns: Mapping[str, Value | None]) -> MovieExplanation:
    """Explain a model's scores for one movie.

    Args:
        model: in evaluation mode, as returned by ``load_model``.
        columns: the movie's values by column, each as passed to the ``read`` of an input; columns
            that the model does not look at are ignored.

    Raises:
        InputError: a value can't be read.
        TypeError: a value has the wrong type for its column.
    """
    parts = score_parts(model, columns)
    branches = {}
    absent = set()
    for branch, branch_input in model.inputs.items():
        value = columns.get(branch_input.column)
        if is_absent(value):
            absent.add(branch)
        elif find_explainer(model, branch) is not None:
            explanation = explain_branch(model, branch, value)
            if explanation is not None:
                branches[branch] = explanation
    return MovieExplanation(
        model.genres, branch_labels(model.inputs), parts, branches, frozenset(absent)
    )
