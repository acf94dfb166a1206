"""What can explain a branch, by the kind of its input and the class of its network.

To add one, write a final class of :class:`genre_lightning.explain.explainer.Explainer` and list it
here.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import nn

from genre_lightning.checkpoint.model import TrainedModel
from genre_lightning.explain.embedded_poster import EmbeddedPosterExplainer
from genre_lightning.explain.explainer import (
    BranchExplanation,
    Explainer,
    TextExplanation,
    float64,
)
from genre_lightning.explain.grad_cam import GradCamExplainer, see_encoder, see_stages
from genre_lightning.explain.left_out import LeftOutExplainer
from genre_lightning.explain.terms import TermsExplainer
from genre_lightning.explain.year import YearExplainer
from genre_lightning.inputs.encode import is_absent
from genre_lightning.inputs.input import Value
from genre_lightning.models.embedding_head import EmbeddingHead
from genre_lightning.models.members import networks_of
from genre_lightning.models.poster_encoder import PosterEncoder
from genre_lightning.models.poster_resnet import PosterResNet
from genre_lightning.models.terms_linear import TermsLinear
from genre_lightning.models.terms_mlp import TermsMLP

#: Kind of the input, kind of its column, class of the network.
EXPLAINERS: Mapping[tuple[str, str, type[nn.Module]], Explainer] = {
    ("terms", "text", TermsMLP): TermsExplainer(),
    ("terms", "text", TermsLinear): TermsExplainer(),
    ("year", "text", EmbeddingHead): YearExplainer(),
    ("embedding", "text", EmbeddingHead): LeftOutExplainer(),
    ("embedding", "poster", EmbeddingHead): EmbeddedPosterExplainer(),
    ("poster_text", "poster", TermsMLP): TermsExplainer(),
    ("poster_text", "poster", TermsLinear): TermsExplainer(),
    ("poster_text", "poster", EmbeddingHead): LeftOutExplainer(),
    ("pixels", "poster", PosterResNet): GradCamExplainer(see_stages),
    ("pixels", "poster", PosterEncoder): GradCamExplainer(see_encoder),
}


def find_explainer(model: TrainedModel, branch: str) -> Explainer | None:
    """What can explain this branch; None where nothing can.

    Raises:
        ValueError: the model has no such branch.
    """
    if branch not in model.inputs:
        raise ValueError(
            f"this model has no branch {branch!r:.100}; it has {', '.join(model.inputs)}"
        )
    branch_input = model.inputs[branch]
    network, *_ = networks_of(model.network.branches[branch])
    return EXPLAINERS.get((branch_input.kind, branch_input.of, type(network)))


def explain_branch(
    model: TrainedModel, branch: str, value: Value | None, budget: int | None = None
) -> BranchExplanation | None:
    """Explain what one branch says of a movie.

    Args:
        model: in evaluation mode, as ``load_model`` gives it.
        branch: its name.
        value: of the branch's column; None, or an empty text, for a movie that lacks it.
        budget: see :meth:`Explainer.explain`.

    Returns:
        A :class:`~genre_lightning.explain.explainer.TextExplanation` or an
        :class:`~genre_lightning.explain.explainer.ImageExplanation`; None where the column is
        absent, or the branch's input finds nothing in it: there is nothing to explain.

    Raises:
        ValueError: the model has no such branch.
        TypeError: a branch of this kind can't be explained, or the value is of a wrong type.
        InputError: the value can't be read.
    """
    explainer = find_explainer(model, branch)
    if explainer is None:
        network, *_ = networks_of(model.network.branches[branch])
        kind = f"a {type(network).__name__} on {model.inputs[branch].kind}"
        raise TypeError(f"branch {branch}: {kind} can't be explained")
    if is_absent(value):
        return None
    found = explainer.explain(model, branch, value, budget)
    return (
        found.weighted(branch_weights(model, branch))
        if isinstance(found, TextExplanation)
        else found
    )


def branch_weights(model: TrainedModel, branch: str, fold: int | None = None) -> np.ndarray:
    """(G,) float64, what the logits of a branch are multiplied by.

    Args:
        model: whose branch it is.
        branch: its name.
        fold: of a movie in validation by folds; None in prediction.
    """
    if model.network.stacking is None:
        return np.ones(len(model.genres))
    weights = model.network.stacking.branches[branch]
    return float64(weights.mean(dim=0) if fold is None else weights[fold])
