"""The title branch: a sparse TF-IDF vector through a small multi-layer perceptron."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class TitleMLP(nn.Module):
    """Two fully connected layers with BatchNorm, ReLU and Dropout over sparse TF-IDF titles.

    The first layer is the product of a (B, V) TF-IDF matrix with a (V, hidden) weight. A title has
    some tens of non-zero columns out of V, so the product is taken as a weighted embedding bag over
    those alone: the same numbers as ``nn.Linear(V, hidden, bias=False)``, without a (B, V) array.

    Args:
        num_genres: G, the number of logits.
        vocabulary_size: V, the width of the TF-IDF vector.
        hidden: width of the hidden layer.
        dropout: probability of zeroing a hidden unit, in [0, 1).
    """

    def __init__(
        self,
        num_genres: int,
        vocabulary_size: int = 8192,
        hidden: int = 512,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.embed = nn.EmbeddingBag(vocabulary_size, hidden, mode="sum", include_last_offset=False)
        self.norm = nn.BatchNorm1d(hidden)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(hidden, num_genres)
        # The default N(0, 1) is meant for look-ups; this one is nn.Linear's for V inputs of which
        # few are non-zero: unit variance of a row of L2 norm 1 would be swamped by nothing.
        nn.init.normal_(self.embed.weight, std=1.0 / math.sqrt(hidden))

    def forward(self, indices: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
        """Score titles.

        Args:
            indices: (L,) int64, the non-zero columns of all B titles, one title after another.
            offsets: (B,) int64, where each title starts in ``indices``.
            weights: (L,) float32, the TF-IDF weight of each column.

        Returns:
            (B, G) logits.
        """
        # An embedding bag takes weights of its own dtype only, which autocast does not arrange.
        hidden = self.embed(
            indices, offsets, per_sample_weights=weights.to(self.embed.weight.dtype)
        )
        hidden = self.drop(torch.relu(self.norm(hidden)))
        logits: Tensor = self.head(hidden)
        return logits
