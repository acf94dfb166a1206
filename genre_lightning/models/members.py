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
from collections.abc import Sequence

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


def averaged(logits: Tensor, apart: bool) -> Tensor:
    """(M, P, G) logits as they are where they are wanted ``apart``, else their mean (P, G)."""
    return logits if apart else logits.mean(dim=0)


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

    def forward(self, apart: bool = False, **numbers: Tensor) -> Tensor:
        """(P, G) logits of an input's numbers; the members' own, (M, P, G), where ``apart``."""
        return averaged(torch.stack([network(**numbers) for network in self.networks]), apart)
