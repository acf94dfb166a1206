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

    def of_one(self, rows: Tensor, member: int) -> Tensor:
        """(P, D) to (P, G) by one member."""
        return torch.addmm(self.bias.view(self.members, -1)[member], rows, self.weight[member])

    def of_some(self, rows: Tensor, kept: Tensor) -> Tensor:
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


def said(logits: Tensor, apart: bool, own: Tensor | None) -> Tensor:
    """What is wanted of the members' logits.

    Args:
        logits: (M, P, G).
        apart: give them as they are.
        own: (P,) int64, the member whose logits are taken for each row, -1 for the mean of all;
            None for the mean of all in every row.

    Returns:
        (P, G); (M, P, G) where they are wanted ``apart``.
    """
    if apart:
        return logits
    if own is None:
        return logits.mean(dim=0)
    one = logits[own, torch.arange(len(own), device=own.device)]
    return one if bool((own >= 0).all()) else torch.where(own[:, None] < 0, logits.mean(0), one)


def by_own(
    score: Callable[[Tensor, int], Tensor], rows: Tensor, own: Tensor, members: int
) -> Tensor:
    """Each row scored by one member.

    Args:
        score: (P, D) rows and the number of a member to (P, G).
        rows: (P, D).
        own: (P,) int64, the member of each.
        members: M.

    Returns:
        (P, G).
    """
    order = own.argsort()
    pieces = rows[order].split(torch.bincount(own, minlength=members).tolist())
    return torch.cat([score(piece, m) for m, piece in enumerate(pieces)])[order.argsort()]


class Copies(nn.Module):
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

    def forward(self, apart: bool = False, own: Tensor | None = None, **numbers: Tensor) -> Tensor:
        """Logits of an input's numbers, see :func:`said`."""
        return said(torch.stack([network(**numbers) for network in self.networks]), apart, own)
