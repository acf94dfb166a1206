"""The network: branches whose logits are summed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from genre_lightning.inputs.part import Part
from genre_lightning.models.label_sets import LabelSets
from genre_lightning.models.members import networks_of
from genre_lightning.models.stacking import Stacking

#: Functions from (B, G) logits to scores in [0, 1], by the name that a checkpoint stores.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "softmax": lambda logits: torch.softmax(logits, dim=-1),
}


class Fusion(nn.Module):
    """The sum of a prior and of the logits of each branch.

    A movie that lacks a branch's column gets nothing from that branch: it is not in the branch's
    part of the batch, and its logits come from the other branches.

    Args:
        num_genres: G.
        branches: networks by branch, in the order in which they are summed. Each maps the numbers
            of its part to (P, G) logits, and its last layer is linear and called ``head``.

    Raises:
        ValueError: there is no branch.
    """

    def __init__(self, num_genres: int, branches: Mapping[str, nn.Module]) -> None:
        super().__init__()
        if not branches:
            raise ValueError("a network needs at least one branch")
        self.num_genres = num_genres
        self.branches = nn.ModuleDict(dict(branches))
        #: Plain data that rebuilds this network; set by :func:`build_network`.
        self.description: dict[str, Any] = {}
        #: (G,) logits that every movie starts from. Constant; zero unless training has set it.
        self.prior: Tensor
        self.register_buffer("prior", torch.zeros(num_genres))
        #: Correction of the sum in prediction; None unless training has fitted it.
        self.stacking: Stacking | None = None
        #: The sets of genres that a movie can have; None for all.
        self.label_sets: LabelSets | None = None

    @property
    def relates_genres(self) -> bool:
        """Whether a genre's score depends on those of the others."""
        return self.stacking is not None or self.label_sets is not None

    @torch.no_grad()
    def start_from_priors(self, genre_counts: Sequence[int], num_movies: int) -> None:
        """Set the prior to the log-odds of each genre among the training movies.

        Otherwise the first steps are spent on learning that most movies lack most genres, and rare
        genres are swamped by negatives (Lin et al. 2017, section 3.3). A movie without any of the
        branches' columns, such as one without a poster in a poster-only network, then gets each
        genre's frequency as its score. The output biases of the branches are set to zero.

        Args:
            genre_counts: (G,) training movies that have each genre.
            num_movies: training movies in all.
        """
        counts = torch.tensor(genre_counts, dtype=torch.float32)
        self.prior.copy_(((counts + 0.5) / (num_movies - counts + 0.5)).log())
        for branch in self.branches.values():
            for network in networks_of(branch):
                try:
                    nn.init.zeros_(network.get_parameter("head.bias"))
                except AttributeError as error:
                    raise ValueError(
                        f"a network of class {type(network).__name__} needs a last layer called "
                        f"head, with a bias: {error}"
                    ) from error

    def forward(
        self, parts: Mapping[str, Part], num_movies: int, folds: Tensor | None = None
    ) -> Tensor:
        """Score a batch in prediction; training uses the sum alone.

        Args:
            parts: prepared, by branch.
            num_movies: B.
            folds: see :meth:`branch_logits`.

        Returns:
            (B, G) logits.
        """
        return self.final_logits(self.branch_logits(parts, num_movies, folds), folds)

    def total(self, branch_logits: Mapping[str, Tensor]) -> Tensor:
        """Return (B, G) logits: the sum of the prior and the branches. The only place that sums."""
        total = self.prior
        for logits in branch_logits.values():
            total = total + logits
        return total

    def final_logits(
        self, branch_logits: Mapping[str, Tensor], folds: Tensor | None = None
    ) -> Tensor:
        """Return (B, G) logits for scoring: the sum, with stacking and label sets applied.

        Args:
            branch_logits: (B, G) of each branch, of all branches or some.
            folds: see :meth:`branch_logits`.
        """
        logits = self.total(branch_logits)
        if self.stacking is not None:
            logits = logits + self.stacking.correction(logits, branch_logits, folds)
        return logits if self.label_sets is None else self.label_sets.logits(logits, folds)

    def branch_logits(
        self, parts: Mapping[str, Part], num_movies: int, folds: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the logits of each branch.

        Args:
            parts: prepared, by branch.
            num_movies: B.
            folds: (B,) int64, for validation by folds: only the member trained without a movie's
                fold scores the movie; -1 for a movie that all members score. None if all members
                score all movies.

        Returns:
            By branch, (B, G) float32 logits, zero for a movie that lacks the column. In training
            a branch of M members gives (M, B, G), see ``models/members.py``.
        """
        return {
            name: self._logits(branch, parts[name], num_movies, folds)
            for name, branch in self.branches.items()
        }

    def _member_arguments(
        self, branch: nn.Module, part: Part, folds: Tensor | None
    ) -> dict[str, Any]:
        """Return the arguments for combining a branch's members, see ``combine_members``."""
        if num_members(branch) == 1:
            return {}
        if self.training:
            return {"per_member": True}
        return {} if folds is None else {"folds": folds[part.rows]}

    def _logits(
        self, branch: nn.Module, part: Part, num_movies: int, folds: Tensor | None
    ) -> Tensor:
        """Return one branch's logits for all movies of a batch, see :meth:`branch_logits`."""
        if len(part) == 0:
            zeros = torch.zeros(num_movies, self.num_genres, device=self.prior.device)
            if not torch.is_grad_enabled():
                return zeros
            # Distributed training waits for a gradient of every parameter on every rank, even on a
            # rank whose movies all lack the column.
            sums = [parameter.sum() for parameter in branch.parameters() if parameter.requires_grad]
            return zeros + 0.0 * torch.stack(sums).sum() if sums else zeros
        arguments = self._member_arguments(branch, part, folds)
        output = branch(**part.numbers, **arguments)
        # Broadcasting would add a single row to every movie, or a single column to every genre.
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        names = "(P, G)"
        expected: tuple[int, ...] = (len(part), self.num_genres)
        if "per_member" in arguments:
            names, expected = "(M, P, G)", (num_members(branch), *expected)
        if shape != expected:
            raise ValueError(
                f"a network of class {type(branch).__name__} gives {shape}; it must give {names} "
                f"logits, here {expected}"
            )
        logits = output.float()
        if len(part) == num_movies:
            return logits
        all_logits = logits.new_zeros(*logits.shape[:-2], num_movies, self.num_genres)
        return all_logits.index_add(-2, part.rows, logits)


def num_members(branch: nn.Module) -> int:
    """Return M of a branch; 1 for a network without members."""
    return int(getattr(branch, "members", 1))
