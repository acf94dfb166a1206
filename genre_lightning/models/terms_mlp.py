"""Sparse TF-IDF terms through a small multi-layer perceptron."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genre_lightning.models.batch_norm import batch_norm


class TermsMLP(nn.Module):
    """Two fully connected layers with BatchNorm, ReLU and Dropout over sparse TF-IDF rows.

    The first layer is the product of a (P, V) TF-IDF matrix with a (V, hidden) weight. A title has
    a few dozen non-zero columns out of V, so the product is computed as a weighted embedding bag
    over those alone: the same numbers as ``nn.Linear(V, hidden, bias=False)``, without a (P, V)
    array.

    Args:
        num_genres: G, the number of logits.
        vocabulary_size: V, the width of the TF-IDF vector.
        hidden: width of the hidden layer.
        dropout: probability of zeroing a hidden unit, in [0, 1).
        skip: add a linear layer from the terms to the logits, initialised to zero; the hidden layer
            then learns what a linear model can't.
    """

    def __init__(
        self,
        num_genres: int,
        vocabulary_size: int,
        hidden: int = 512,
        dropout: float = 0.5,
        skip: bool = False,
    ) -> None:
        super().__init__()
        self.embed = nn.EmbeddingBag(vocabulary_size, hidden, mode="sum", include_last_offset=False)
        self.norm = nn.BatchNorm1d(hidden)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(hidden, num_genres)
        # The default, N(0, 1), is meant for look-ups. Before BatchNorm only the step size relative
        # to the weights matters, and for such large weights the usual steps are too small.
        nn.init.normal_(self.embed.weight, std=0.05)
        self.skip: nn.EmbeddingBag | None = None
        if skip:
            self.skip = nn.EmbeddingBag(vocabulary_size, num_genres, mode="sum")
            nn.init.zeros_(self.skip.weight)

    def forward(self, indices: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
        """Score texts.

        Args:
            indices: (L,) int64, the non-zero columns of all P texts, one text after another.
            offsets: (P,) int64, where each text starts in ``indices``.
            weights: (L,) float32, the TF-IDF weight of each column.

        Returns:
            (P, G) logits.
        """
        # An embedding bag only takes weights of its own dtype, and autocast doesn't convert them.
        weights = weights.to(self.embed.weight.dtype)
        hidden = self.embed(indices, offsets, per_sample_weights=weights)
        hidden = self.drop(torch.relu(batch_norm(self.norm, hidden)))
        logits: Tensor = self.head(hidden)
        if self.skip is not None:
            logits = logits + self.skip(indices, offsets, per_sample_weights=weights)
        return logits
