"""The logits of an ``EmbeddingHead`` for the average training vector."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from genre_lightning.checkpoint.model import TrainedModel
from genre_lightning.explain.explainer import float64, member_arguments
from genre_lightning.models.embedding_head import EmbeddingHead


def average_vector(network: EmbeddingHead) -> Tensor | None:
    """(D,) float32, the running mean of the BatchNorm; None for a network without BatchNorm."""
    return None if network.norm is None else network.norm.running_mean


@torch.inference_mode()
def average_logits(model: TrainedModel, branch: str) -> np.ndarray | None:
    """(G,) float64 logits of a branch for the average vector; None if that is not known.

    They don't depend on the movie, so they belong to the bias: the part of the branch is then the
    difference between a movie and the average.

    Raises:
        TypeError: the branch is not an EmbeddingHead.
    """
    network = model.network.branches[branch]
    if not isinstance(network, EmbeddingHead):
        raise TypeError(f"branch {branch} is no EmbeddingHead")
    average = average_vector(network)
    if average is None:
        return None
    return float64(network(average[None], **member_arguments(model, branch, 1)).float()[0])
