"""A head on vectors, such as those of a frozen encoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genre_lightning.models.batch_norm import batch_norm
from genre_lightning.models.dropout import Dropout, InputDropout
from genre_lightning.models.members import MemberLinear, combine_members, score_by_fold

NORMS = ("batch", "layer", "none")


class EmbeddingHead(nn.Module):
    """A linear layer, or one hidden layer and a linear one, over normalised vectors.

    Encoders differ in the scale of their features, so one learning rate and weight decay would not
    suit them all. Each feature is therefore normalised first, by BatchNorm without learnt scale, as
    in linear probes of self-supervised encoders (He et al. 2022, "Masked autoencoders", appendix
    A). Without a hidden layer the normalised vectors are divided by sqrt(D), so that their length
    is about 1, like that of TF-IDF rows: one penalty then suits encoders of any width, and L-BFGS
    converges sooner, since all branches have the same scale.

    Args:
        num_genres: G, the number of logits.
        width: D, the size of the vectors.
        hidden: width of the hidden layer; 0 for none.
        norm: "batch" normalises each feature over the movies, "layer" each vector over its
            features; "none" leaves them as they are.
        input_dropout: share of the features that each member drops in a step, in [0, 1).
        dropout: probability of zeroing a hidden unit, in [0, 1).
        members: M, see ``models/members.py``.
    """

    def __init__(
        self,
        num_genres: int,
        width: int,
        hidden: int = 0,
        norm: str = "batch",
        input_dropout: float = 0.5,
        dropout: float = 0.5,
        members: int = 1,
    ) -> None:
        super().__init__()
        self.members = members
        self.norm: nn.BatchNorm1d | None = None
        if norm == "batch":
            # The inputs never change, so the plain average over all batches is exact sooner than
            # a moving one, which still counts its start after ten steps.
            self.norm = nn.BatchNorm1d(width, affine=False, momentum=None)
        self.layer_norm = norm == "layer"
        self.scale = 1.0 if hidden or norm == "none" else width**-0.5
        self.input_drop = InputDropout(input_dropout)
        self.hidden = MemberLinear(members, width, hidden) if hidden else None
        self.drop = Dropout(dropout)
        self.head = MemberLinear(members, hidden or width, num_genres)
        if not hidden:
            # As in a logistic regression: a weight that is never trained then has no effect.
            nn.init.zeros_(self.head.weight)

    def lr_scales(self) -> dict[str, float]:
        """Return learning-rate factors by parameter, which make up for the scaling of the rows."""
        return {"head.weight": 1 / self.scale} if self.scale != 1.0 else {}

    def forward(
        self, vectors: Tensor, per_member: bool = False, folds: Tensor | None = None
    ) -> Tensor:
        """Score vectors.

        Args:
            vectors: (P, D) float32.
            per_member: see :func:`genre_lightning.models.members.combine_members`.
            folds: see :func:`genre_lightning.models.members.combine_members`.

        Returns:
            (P, G) logits; (M, P, G) with ``per_member``.
        """
        rows = vectors
        if self.norm is not None:
            rows = batch_norm(self.norm, rows)
        elif self.layer_norm:
            rows = nn.functional.layer_norm(rows, rows.shape[1:])
        if self.scale != 1.0:
            rows = rows * self.scale
        if folds is not None and bool((folds >= 0).all()):
            return score_by_fold(self._forward_member, rows, folds, self.members)
        first = self.head if self.hidden is None else self.hidden
        kept = self.input_drop(self.members, rows.shape[1], rows.device)
        if kept is None:
            rows = first(rows.expand(self.members, -1, -1))
        else:
            rows = first.forward_subset(rows, kept)
        if self.hidden is not None:
            rows = torch.relu(rows)
            if self.drop.training:
                # One mask serves all members, since their hidden units have nothing in common.
                rows = rows * self.drop(rows.new_ones(rows.shape[1:]))
            rows = self.head(rows)
        return combine_members(rows, per_member, folds)

    def _forward_member(self, rows: Tensor, member: int) -> Tensor:
        """Map (P, D) normalised rows to the (P, G) logits of one member."""
        if self.hidden is not None:
            rows = self.drop(torch.relu(self.hidden.forward_member(rows, member)))
        return self.head.forward_member(rows, member)
