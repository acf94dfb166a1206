"""Stacking on top of the sum: weights of the branches, and effects of genres on each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genre_lightning.models.members import combine_members


@dataclass(frozen=True)
class Stacking:
    """The weights of stacking, one set for each of M folds of train; new movies get their mean.

    See :mod:`genre_lightning.scoring.stacking`. Not an ``nn.Module``: it is fitted on validation
    like the thresholds, so neither the optimizer nor weight averaging may change it.

    Attributes:
        branches: by branch, (M, G) float32 weights of its logits.
        genres: (M, G, G) float32; row g weighs the scores of all genres in the logit of genre g.
        offsets: (M, G) float32, added to the logits.
    """

    branches: dict[str, Tensor]
    genres: Tensor
    offsets: Tensor

    @classmethod
    def from_arrays(
        cls, names: list[str], branches: np.ndarray, genres: np.ndarray, offsets: np.ndarray
    ) -> Stacking:
        """Build from the names of K branches and (M, K, G), (M, G, G) and (M, G) float arrays."""
        weights, *rest = (torch.from_numpy(each).float() for each in (branches, genres, offsets))
        return cls(dict(zip(names, weights.unbind(1), strict=True)), *rest)

    @classmethod
    def from_lists(cls, lists: Any, names: list[str], num_genres: int) -> Stacking | None:
        """Read the output of :meth:`to_lists`, which can be untrusted; None stays None.

        Args:
            lists: from a checkpoint.
            names: names of the network's branches.
            num_genres: G.

        Raises:
            ValueError: ``lists`` is not such an output, or has other branches or another G.
        """
        if lists is None:
            return None
        if not isinstance(lists, dict) or set(lists) != {field.name for field in fields(cls)}:
            raise ValueError("it is not made of branches, genres and offsets")
        if not isinstance(lists["branches"], dict) or list(lists["branches"]) != names:
            raise ValueError(f"its branches are not {', '.join(names)}")
        genres, offsets = _read_tensor(lists["genres"]), _read_tensor(lists["offsets"])
        branches = {name: _read_tensor(weights) for name, weights in lists["branches"].items()}
        members = len(offsets) if offsets.ndim else 0
        shapes = [tuple(each.shape) for each in (genres, offsets, *branches.values())]
        shape = (members, num_genres)
        if not members or shapes != [(*shape, num_genres), shape, *[shape] * len(names)]:
            raise ValueError(f"its shapes {shapes} are not those of {num_genres} genres")
        return cls(branches, genres, offsets)

    def to_lists(self) -> dict[str, Any]:
        """Return plain data for a checkpoint."""
        return {
            "branches": {name: weights.tolist() for name, weights in self.branches.items()},
            "genres": self.genres.tolist(),
            "offsets": self.offsets.tolist(),
        }

    def weighted(self, branch: str, logits: Tensor, folds: Tensor | None = None) -> Tensor:
        """Return a branch's logits times its weights.

        Args:
            branch: name of the branch.
            logits: (B, G), of the branch.
            folds: (B,) int64, the fold whose weights each movie gets, -1 for their mean; None for
                the mean for all movies.

        Returns:
            (B, G).
        """
        weights = self.branches[branch].to(logits.device)
        if folds is None:
            return logits * weights.mean(dim=0)
        return logits * combine_members(weights[:, None].expand(-1, len(folds), -1), folds=folds)

    def cooccurrence(self, total: Tensor, folds: Tensor | None = None) -> Tensor:
        """Return (B, G), what the scores of all genres add to each genre's logit.

        Args:
            total: (B, G) unweighted sums of the prior and the branches.
            folds: see :meth:`weighted`.
        """
        genres, offsets = self.genres.to(total.device), self.offsets.to(total.device)
        if folds is None:
            return torch.sigmoid(total) @ genres.mean(dim=0).T + offsets.mean(dim=0)
        by_fold = torch.sigmoid(total) @ genres.transpose(1, 2) + offsets[:, None]
        return combine_members(by_fold, folds=folds)

    def correction(
        self, total: Tensor, branch_logits: Mapping[str, Tensor], folds: Tensor | None = None
    ) -> Tensor:
        """Return (B, G), what stacking adds to ``total``, the prior and the given branches."""
        added = self.cooccurrence(total, folds)
        for name, logits in branch_logits.items():
            added = added + (self.weighted(name, logits, folds) - logits)
        return added


def _read_tensor(lists: Any) -> Tensor:
    try:
        tensor = torch.tensor(lists, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"it is not made of numbers: {error!s:.200}") from error
    if not bool(tensor.isfinite().all()):
        raise ValueError("it holds numbers that are not finite")
    return tensor
