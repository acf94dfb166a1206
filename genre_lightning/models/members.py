"""Several networks of one kind side by side, averaged where they predict.

Members differ in their first weights and in what dropout draws, and each is trained by a loss of
its own, so that their mean is better than one of them (Lakshminarayanan et al. 2017, "Simple and
scalable predictive uncertainty estimation using deep ensembles"). Their logits are averaged, so
the model stays a sum of branches. They see the same batches, which are gathered once.

With ``data.folds`` each member also leaves out one fold of train, on which it alone is validated
("cross-fitting"): all of train is learnt from, and all of it is honest validation.
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
        # Of one dimension, as every bias is: they are not decayed.
        self.bias = nn.Parameter(torch.empty(members * outputs).uniform_(-bound, bound))

    def forward(self, rows: Tensor) -> Tensor:
        """(M, P, D) to (M, P, G)."""
        return torch.baddbmm(self.bias.view(self.members, 1, -1), rows, self.weight)

    def forward_member(self, rows: Tensor, member: int) -> Tensor:
        """(P, D) to (P, G) by one member."""
        return torch.addmm(self.bias.view(self.members, -1)[member], rows, self.weight[member])

    def forward_subset(self, rows: Tensor, kept: Tensor) -> Tensor:
        """(P, D) to (M, P, G) by the inputs ``kept`` alone, (M, K) int64, a member's own each.

        They count D / K times, so that the sums are of the size that they have by all inputs.
        """
        members, width, outputs = self.weight.shape
        number = kept + width * torch.arange(members, device=kept.device)[:, None]
        weight = self.weight.view(-1, outputs).index_select(0, number.flatten())
        # By index_select: indexing by brackets takes several times as long along a row.
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
    """The members' logits as one: their mean, or for each row those of one member.

    Args:
        logits: (M, P, G).
        per_member: leave them as they are, as training needs them.
        folds: (P,) int64, the fold that each row is in, whose member has not learnt from it and
            alone scores it; -1 for the mean of all. None for the mean of all in every row.

    Returns:
        (P, G); (M, P, G) with ``per_member``.
    """
    if per_member:
        return logits
    if folds is None:
        return logits.mean(dim=0)
    one = logits[folds, torch.arange(len(folds), device=folds.device)]
    return one if bool((folds >= 0).all()) else torch.where(folds[:, None] < 0, logits.mean(0), one)


def score_by_fold(
    score: Callable[[Tensor, int], Tensor], rows: Tensor, folds: Tensor, members: int
) -> Tensor:
    """Each row scored by the member of its fold alone, as :func:`combine_members` chooses it.

    Args:
        score: (P, D) rows and the number of a member to (P, G).
        rows: (P, D).
        folds: (P,) int64 in 0..M-1, of each row.
        members: M.

    Returns:
        (P, G).
    """
    order = folds.argsort()
    pieces = rows[order].split(torch.bincount(folds, minlength=members).tolist())
    return torch.cat([score(piece, m) for m, piece in enumerate(pieces)])[order.argsort()]


class Ensemble(nn.Module):
    """M networks side by side, for a class that has no members of its own.

    Args:
        networks: M of one class and size, each with first weights of its own.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = len(networks)
        self.networks = nn.ModuleList(networks)

    def lr_scales(self) -> dict[str, float]:
        """The learning rates that the networks ask for, by the names of parameters here."""
        return {
            f"networks.{number}.{name}": scale
            for number, network in enumerate(self.networks)
            for name, scale in getattr(network, "lr_scales", dict)().items()
        }

    def forward(
        self, per_member: bool = False, folds: Tensor | None = None, **numbers: Tensor
    ) -> Tensor:
        """Logits of an input's numbers, see :func:`combine_members`."""
        logits = torch.stack([network(**numbers) for network in self.networks])
        return combine_members(logits, per_member, folds)


def networks_of(branch: nn.Module) -> list[nn.Module]:
    """The networks whose logits an :class:`Ensemble` averages; any other branch is its only one."""
    return list(branch.networks) if isinstance(branch, Ensemble) else [branch]
