"""Which genres go together: a movie has one of the sets of genres that movies of train have.

The sum takes each genre by itself, so it knows neither that a movie has at least one nor that few
of the 2^G sets of genres ever occur. Here the probability of a set is proportional to exp(sum of
the logits of its genres), as it is where each genre is taken by itself, but only sets that occur in
train are possible: "supported inference" (Ghamrawi and McCallum 2005, "Collective multi-label
classification"). The score of a genre is the probability of all sets that have it. Nothing is
learnt.

A new movie may have a set that no movie of train has. How likely that is tells the share of movies
whose set occurs once (Good 1953, "The population frequencies of species"). For that share of a
score all sets of at least one genre are possible.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

import numpy as np
import torch
from torch import Tensor

#: The most frequent that are kept: a batch is compared with each of them.
MAX_SETS = 20_000
#: Scores stay this far from 0 and 1, so that their log-odds are finite.
_LEAST = 1e-6
#: Log-odds below which a probability is exp() of them.
_NEVER = -20.0
#: Movies by sets that are looked at together: 64 MiB of float32.
_BLOCK = 2**24


@dataclass(frozen=True)
class LabelSets:
    """The S sets of train's movies.

    No module: nothing of it is learnt by an optimizer.

    Attributes:
        sets: (S, G) float32, 1 for the genres of a set; the most frequent first.
        only: (S,) int64, the fold that has all movies of a set, which is unknown to whoever has not
            seen that fold; -1 for a set that is in several.
        unseen: (M + 1,) float32, how likely a movie has none of the sets: of each fold, for one who
            has not seen it, and at the end for one who has seen all.
    """

    sets: Tensor
    only: Tensor
    unseen: Tensor
    #: Whether every set has a genre. Not looked up in the tensor: a graph is made of what is.
    never_empty: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "never_empty", bool(self.sets.any(dim=1).all()))

    @classmethod
    def from_targets(cls, targets: np.ndarray, folds: np.ndarray | None = None) -> LabelSets:
        """The sets of genres of the training movies, the most frequent first.

        Args:
            targets: (N, G) zeros and ones, N at least 1.
            folds: (N,) int64 of 0..M-1, for validation by folds.
        """
        found, number, counts = np.unique(
            targets.astype(bool), axis=0, return_inverse=True, return_counts=True
        )
        number = number.reshape(-1)
        order = np.argsort(-counts, kind="stable")[:MAX_SETS]
        kept = np.zeros(len(found), dtype=bool)
        kept[order] = True
        only = np.full(len(found), -1)
        outside = []
        if folds is not None:
            members = int(folds.max()) + 1
            by_fold = np.zeros((len(found), members), dtype=np.int64)
            np.add.at(by_fold, (number, folds), 1)
            single = (by_fold > 0).sum(axis=1) == 1
            only[single] = by_fold[single].argmax(axis=1)
            outside = [_unseen(counts - by_fold[:, fold], kept) for fold in range(members)]
        return cls(
            torch.from_numpy(found[order]).float(),
            torch.from_numpy(only[order]),
            torch.tensor([*outside, _unseen(counts, kept)], dtype=torch.float32),
        )

    @classmethod
    def from_lists(cls, lists: Any, num_genres: int) -> LabelSets | None:
        """Read what :meth:`to_lists` gave, which may be untrusted; None stays None.

        Args:
            lists: of a file.
            num_genres: G.

        Raises:
            ValueError: it is anything else, or of other genres.
        """
        if lists is None:
            return None
        if not isinstance(lists, dict) or set(lists) != {"sets", "only", "unseen"}:
            raise ValueError("they are not made of sets, only and unseen")
        sets, only, unseen = lists["sets"], lists["only"], lists["unseen"]
        if not all(isinstance(each, list) and each for each in (sets, only, unseen)):
            raise ValueError("they are not lists")
        if len(sets) > MAX_SETS or len(only) != len(sets):
            raise ValueError(f"they are {len(sets)} sets, {len(only)} of which are told apart")
        if not all(type(share) is float and 0 < share <= 1 for share in unseen):
            raise ValueError("how likely others are is not told by shares")
        if not all(type(fold) is int and -1 <= fold < len(unseen) - 1 for fold in only):
            raise ValueError("they are of folds that there are not")
        made = torch.zeros(len(sets), num_genres)
        for row, genres in enumerate(sets):
            if not isinstance(genres, list) or not all(
                type(genre) is int and 0 <= genre < num_genres for genre in genres
            ):
                raise ValueError(f"a set is not of the {num_genres} genres: {genres!r:.100}")
            made[row, genres] = 1
        return cls(made, torch.tensor(only), torch.tensor(unseen, dtype=torch.float32))

    def to_lists(self) -> dict[str, list[Any]]:
        """Plain data, for a checkpoint: a set by the places of its genres."""
        return {
            "sets": [genres.nonzero().flatten().tolist() for genres in self.sets],
            "only": self.only.tolist(),
            "unseen": self.unseen.tolist(),
        }

    def logits(self, logits: Tensor, folds: Tensor | None = None) -> Tensor:
        """The log-odds of each genre, given that a movie has one of the sets.

        Args:
            logits: (B, G) of each genre by itself.
            folds: (B,) int64, the fold that has not been seen for each movie, -1 for a movie for
                which all have; None for all movies.

        Returns:
            (B, G) float32.
        """
        rows = max(1, _BLOCK // len(self.sets))
        split_folds = repeat(None) if folds is None else folds.split(rows)
        blocks = zip(logits.split(rows), split_folds, strict=False)
        return torch.cat([self.block_logits(*block) for block in blocks])

    def block_logits(self, logits: Tensor, folds: Tensor | None = None) -> Tensor:
        """As :meth:`logits`, of movies for each of which all sets fit into memory."""
        sets, unseen = self.sets.to(logits.device), self.unseen.to(logits.device)
        powers = logits @ sets.T
        if folds is None:
            share = unseen[-1]
        else:
            # Of -1 the last share, and no set is left out.
            share = unseen[folds][:, None]
            left_out = (self.only.to(logits.device) == folds[:, None]) & (folds >= 0)[:, None]
            powers = powers.masked_fill(left_out, -torch.inf)
        among = torch.softmax(powers, dim=1) @ sets
        others = _at_least_one(logits) if self.never_empty else _sigmoid(logits)
        scores = (1 - share) * among + share * others
        return torch.logit(scores, _LEAST)


def _at_least_one(logits: Tensor) -> Tensor:
    """(B, G) probabilities of each genre by itself, given that there is at least one."""
    # Where none is likely only their proportions matter, and exp() must not make zeros of all.
    likely = logits + (_NEVER - logits.amax(dim=1, keepdim=True)).clamp(min=0)
    nothing = torch.nn.functional.softplus(likely).sum(dim=1, keepdim=True)
    return _sigmoid(likely) / -torch.expm1(-nothing)


def _sigmoid(logits: Tensor) -> Tensor:
    """The same with the relative precision of small ones kept, as ONNX Runtime's is not."""
    return torch.exp(-torch.nn.functional.softplus(-logits))


def _unseen(counts: np.ndarray, kept: np.ndarray) -> float:
    """How likely a further movie has none of the sets that are kept.

    Args:
        counts: (S,) movies that have been seen of each set.
        kept: (S,) bool.
    """
    # Of no movie, or of movies whose sets occur more often, it would be 0 or undefined.
    once = counts[kept & (counts == 1)].sum() + counts[~kept].sum()
    return float((once + 1) / (counts.sum() + 1))
