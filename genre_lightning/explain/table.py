"""The table of explainers, by the kind of a branch's input and the class of its network.

To add one, write a final subclass of :class:`genre_lightning.explain.explainer.Explainer` and list
it here.
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
from genre_lightning.explain.grad_cam import GradCamExplainer, encoder_features, resnet_features
from genre_lightning.explain.left_out import LeaveOneOutExplainer
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

#: By kind of the input, kind of its column and class of the network.
EXPLAINERS: Mapping[tuple[str, str, type[nn.Module]], Explainer] = {
    ("terms", "text", TermsMLP): TermsExplainer(),
    ("terms", "text", TermsLinear): TermsExplainer(),
    ("year", "text", EmbeddingHead): YearExplainer(),
    ("embedding", "text", EmbeddingHead): LeaveOneOutExplainer(),
    ("embedding", "poster", EmbeddingHead): EmbeddedPosterExplainer(),
    ("poster_text", "poster", TermsMLP): TermsExplainer(),
    ("poster_text", "poster", TermsLinear): TermsExplainer(),
    ("poster_text", "poster", EmbeddingHead): LeaveOneOutExplainer(),
    ("pixels", "poster", PosterResNet): GradCamExplainer(resnet_features),
    ("pixels", "poster", PosterEncoder): GradCamExplainer(encoder_features),
}


def find_explainer(model: TrainedModel, branch: str) -> Explainer | None:
    """Return the explainer of a branch; None if the branch can't be explained.

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
    """Explain the part of one branch in a movie's score.

    Args:
        model: in evaluation mode, as returned by ``load_model``.
        branch: name of the branch.
        value: of the branch's column; None or an empty text for a movie that lacks it.
        budget: see :meth:`Explainer.explain`.

    Returns:
        A :class:`~genre_lightning.explain.explainer.TextExplanation` or an
        :class:`~genre_lightning.explain.explainer.ImageExplanation`; None if the column is absent
        or the branch's input finds nothing in it.

    Raises:
        ValueError: the model has no such branch.
        TypeError: branches of this kind can't be explained, or the value has the wrong type.
        InputError: the value can't be read.
    """
    explainer = find_explainer(model, branch)
    if explainer is None:
        network, *_ = networks_of(model.network.branches[branch])
        kind = f"a {type(network).__name__} on {model.inputs[branch].kind}"
        raise TypeError(f"branch {branch}: {kind} can't be explained")
    if is_absent(value):
        return None
    explanation = explainer.explain(model, branch, value, budget)
    return (
        explanation.weighted(branch_weights(model, branch))
        if isinstance(explanation, TextExplanation)
        else explanation
    )


def branch_weights(model: TrainedModel, branch: str) -> np.ndarray:
    """(G,) float64 stacking weights of a branch's logits; ones for a model without stacking."""
    if model.network.stacking is None:
        return np.ones(len(model.genres))
    weights = model.network.stacking.branches[branch]
    return float64(weights.mean(dim=0) if model.member is None else weights[model.member])
