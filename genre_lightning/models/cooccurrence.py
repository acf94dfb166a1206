"""What the scores of all genres add to the logits of each: a layer on top of the sum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genre_lightning.models.members import said


@dataclass(frozen=True)
class CoOccurrence:
    """M of them side by side, one for each fold of train; new movies get the mean.

    See :mod:`genre_lightning.scoring.cooccurrence`. No module: it is fitted on validation as the
    thresholds are, so an optimizer or an average of weights has nothing to do with it.

    Attributes:
        weights: (M, G, G) float32; row g is what each genre's score adds to the logit of genre g.
        offsets: (M, G) float32.
    """

    weights: Tensor
    offsets: Tensor

    @classmethod
    def of_arrays(cls, weights: np.ndarray, offsets: np.ndarray) -> CoOccurrence:
        """Those of (M, G, G) and (M, G) arrays of floats."""
        return cls(torch.from_numpy(weights).float(), torch.from_numpy(offsets).float())

    @classmethod
    def of_lists(cls, lists: Any, num_genres: int) -> CoOccurrence | None:
        """What :meth:`as_lists` made, read with suspicion; None of None.

        Raises:
            ValueError: it is anything else, or for another number of genres.
        """
        if lists is None:
            return None
        if not isinstance(lists, dict) or set(lists) != {"weights", "offsets"}:
            raise ValueError("it is not made of weights and offsets")
        try:
            found = cls(
                *(torch.tensor(lists[k], dtype=torch.float32) for k in ("weights", "offsets"))
            )
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise ValueError(f"it is not made of numbers: {error!s:.200}") from error
        members = len(found.offsets) if found.offsets.ndim else 0
        shapes = (tuple(found.weights.shape), tuple(found.offsets.shape))
        if not members or shapes != ((members, num_genres, num_genres), (members, num_genres)):
            raise ValueError(f"its shapes {shapes} are not those of {num_genres} genres")
        if not all(bool(each.isfinite().all()) for each in (found.weights, found.offsets)):
            raise ValueError("it holds numbers that are not finite")
        return found

    def as_lists(self) -> dict[str, Any]:
        """Plain data, for a checkpoint."""
        return {"weights": self.weights.tolist(), "offsets": self.offsets.tolist()}

    def added(self, total: Tensor, own: Tensor | None = None) -> Tensor:
        """What is added to sums.

        Args:
            total: (B, G) sums of branches.
            own: (B,) int64, the fold whose part is taken for each movie, -1 for the mean; None for
                the mean for all.

        Returns:
            (B, G).
        """
        weights, offsets = self.weights.to(total.device), self.offsets.to(total.device)
        if own is None:
            return torch.sigmoid(total) @ weights.mean(dim=0).T + offsets.mean(dim=0)
        each = torch.sigmoid(total) @ weights.transpose(1, 2) + offsets[:, None]
        return said(each, apart=False, own=own)
