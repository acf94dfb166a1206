"""What an ``EmbeddingHead`` says of the average vector of train."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from genre_lightning.checkpoint.model import TrainedModel
from genre_lightning.explain.explainer import float64
from genre_lightning.models.embedding_head import EmbeddingHead


def average_vector(network: EmbeddingHead) -> Tensor | None:
    """(D,) float32, the mean that BatchNorm has kept; None for a network without."""
    return None if network.norm is None else network.norm.running_mean


@torch.inference_mode()
def average_logits(model: TrainedModel, branch: str) -> np.ndarray | None:
    """(G,) float64, what a branch says of the average vector; None where that isn't known.

    It is of no movie in particular, so it belongs to the bias of all: what a branch adds is how far
    a movie is from the average one.
    """
    network = model.network.branches[branch]
    if not isinstance(network, EmbeddingHead):
        raise TypeError(f"branch {branch} is no EmbeddingHead")
    average = average_vector(network)
    return None if average is None else float64(network(average[None]).float()[0])
