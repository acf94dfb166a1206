"""Sparse TF-IDF terms through a linear layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genre_lightning.models.dropout import Dropout
from genre_lightning.models.members import combine_members


class _Bias(nn.Module):
    """The bias of the logits, a module so that it is called ``head.bias``."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(outputs))


class TermsLinear(nn.Module):
    """A logistic regression over sparse TF-IDF rows.

    Args:
        num_genres: G, the number of logits.
        vocabulary_size: V, the width of the TF-IDF vector.
        input_dropout: probability of dropping a term, in [0, 1).
        members: M, see ``models/members.py``.
    """

    def __init__(
        self,
        num_genres: int,
        vocabulary_size: int,
        input_dropout: float = 0.2,
        members: int = 1,
    ) -> None:
        super().__init__()
        self.members = members
        self.num_genres = num_genres
        self.input_drop = Dropout(input_dropout)
        self.embed = nn.EmbeddingBag(vocabulary_size, members * num_genres, mode="sum")
        nn.init.zeros_(self.embed.weight)
        self.head = _Bias(members * num_genres)

    def forward(
        self,
        indices: Tensor,
        offsets: Tensor,
        weights: Tensor,
        per_member: bool = False,
        folds: Tensor | None = None,
    ) -> Tensor:
        """Score texts.

        Args:
            indices: (L,) int64, the non-zero columns of all P texts, one text after another.
            offsets: (P,) int64, where each text starts in ``indices``.
            weights: (L,) float32, the TF-IDF weight of each column.
            per_member: see :func:`genre_lightning.models.members.combine_members`.
            folds: see :func:`genre_lightning.models.members.combine_members`.

        Returns:
            (P, G) logits; (M, P, G) with ``per_member``.
        """
        weights = weights.to(self.embed.weight.dtype)
        if self.members > 1 and self.input_drop.training and self.input_drop.p > 0:
            sums = self._drop_terms_per_member(indices, offsets, weights)
        else:
            weights = self.input_drop(weights)
            sums = self.embed(indices, offsets, per_sample_weights=weights)
        logits = (sums + self.head.bias).view(-1, self.members, self.num_genres).transpose(0, 1)
        return combine_members(logits, per_member, folds)

    def _drop_terms_per_member(self, indices: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
        """Return (P, M * G) sums where each member drops other terms.

        All members start from zero weights, so nothing else would make them differ.
        """
        kept_weights = self.input_drop(weights[:, None, None].expand(-1, self.members, 1))
        terms = nn.functional.embedding(indices, self.embed.weight)
        terms = (terms.view(-1, self.members, self.num_genres) * kept_weights).flatten(1)
        text_index = torch.bucketize(
            torch.arange(len(indices), device=offsets.device), offsets, right=True
        )
        return terms.new_zeros(len(offsets), terms.shape[1]).index_add(0, text_index - 1, terms)
