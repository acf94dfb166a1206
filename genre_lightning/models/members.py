"""Ensembles: several networks of one kind side by side, averaged in prediction.

Members differ in their initial weights and dropout masks, and each is trained with its own loss, so
that their mean is better than a single member (Lakshminarayanan et al. 2017, "Simple and scalable
predictive uncertainty estimation using deep ensembles"). Their logits are averaged, so the model
stays a sum of branches. They see the same batches, which are gathered once.

With ``data.folds`` each member is trained without one fold of train, and is the only one to score
it in validation ("cross-fitting"): all of train is used for training, and all of it for validation
by a member that hasn't seen it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


class MemberLinear(nn.Module):
    """M linear layers side by side.

    Args:
        members: M.
        width: D, inputs of each.
        outputs: G, outputs of each.
    """

    def __init__(self, members: int, width: int, outputs: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(width)
        self.members = members
        self.weight = nn.Parameter(torch.empty(members, width, outputs).uniform_(-bound, bound))
        # One-dimensional like every bias, so that weight decay skips it.
        self.bias = nn.Parameter(torch.empty(members * outputs).uniform_(-bound, bound))

    def forward(self, rows: Tensor) -> Tensor:
        """Map (M, P, D) to (M, P, G)."""
        return torch.baddbmm(self.bias.view(self.members, 1, -1), rows, self.weight)

    def forward_member(self, rows: Tensor, member: int) -> Tensor:
        """Map (P, D) to (P, G) by one member."""
        return torch.addmm(self.bias.view(self.members, -1)[member], rows, self.weight[member])

    def forward_subset(self, rows: Tensor, kept: Tensor) -> Tensor:
        """Map (P, D) to (M, P, G), each member by its own inputs ``kept`` alone, (M, K) int64.

        The sums are scaled by D / K, so that they have the size of those over all inputs.
        """
        members, width, outputs = self.weight.shape
        index = kept + width * torch.arange(members, device=kept.device)[:, None]
        weight = self.weight.view(-1, outputs).index_select(0, index.flatten())
        # Indexing by brackets takes several times as long along a row.
        inputs = rows.index_select(1, kept.flatten()).view(len(rows), members, -1).transpose(0, 1)
        return torch.baddbmm(
            self.bias.view(members, 1, -1),
            inputs,
            weight.view(members, -1, outputs),
            alpha=width / kept.shape[1],
        )


def combine_members(
    logits: Tensor, per_member: bool = False, folds: Tensor | None = None
) -> Tensor:
    """Combine the members' logits: by their mean, or by one member for each row.

    Args:
        logits: (M, P, G).
        per_member: return the logits unchanged, as training needs them.
        folds: (P,) int64, the fold of each row, which only the member trained without that fold
            scores; -1 for the mean of all members. None for the mean in every row.

    Returns:
        (P, G); (M, P, G) with ``per_member``.
    """
    if per_member:
        return logits
    if folds is None:
        return logits.mean(dim=0)
    own = logits[folds, torch.arange(len(folds), device=folds.device)]
    return own if bool((folds >= 0).all()) else torch.where(folds[:, None] < 0, logits.mean(0), own)


def score_by_fold(
    score: Callable[[Tensor, int], Tensor], rows: Tensor, folds: Tensor, members: int
) -> Tensor:
    """Score each row by the member of its fold alone, as :func:`combine_members` chooses it.

    Args:
        score: maps (P, D) rows and a member's number to (P, G).
        rows: (P, D).
        folds: (P,) int64 in 0..M-1, the fold of each row.
        members: M.

    Returns:
        (P, G).
    """
    order = folds.argsort()
    rows_by_fold = rows[order].split(torch.bincount(folds, minlength=members).tolist())
    scores = [score(fold_rows, member) for member, fold_rows in enumerate(rows_by_fold)]
    return torch.cat(scores)[order.argsort()]


class Ensemble(nn.Module):
    """M networks side by side, for a class that has no ``members`` argument.

    Args:
        networks: M of one class and size, each with its own initial weights.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = len(networks)
        self.networks = nn.ModuleList(networks)

    def lr_scales(self) -> dict[str, float]:
        """Return the networks' ``lr_scales`` by the parameter names of this module."""
        return {
            f"networks.{number}.{name}": scale
            for number, network in enumerate(self.networks)
            for name, scale in getattr(network, "lr_scales", dict)().items()
        }

    def forward(
        self, per_member: bool = False, folds: Tensor | None = None, **numbers: Tensor
    ) -> Tensor:
        """Return the logits of an input's numbers, see :func:`combine_members`."""
        logits = torch.stack([network(**numbers) for network in self.networks])
        return combine_members(logits, per_member, folds)


def networks_of(branch: nn.Module) -> list[nn.Module]:
    """Return the networks of an :class:`Ensemble`; of any other branch, the branch alone."""
    return list(branch.networks) if isinstance(branch, Ensemble) else [branch]
