"""Label sets: scores over the sets of genres that occur in train.

The sum scores each genre independently, so it knows neither that a movie has at least one genre nor
that few of the 2^G sets of genres ever occur. Here the probability of a set is proportional to
exp(sum of the logits of its genres), as for independent genres, but only sets that occur in train
are possible: "supported inference" (Ghamrawi and McCallum 2005, "Collective multi-label
classification"). The score of a genre is the total probability of the sets that contain it. Nothing
is learnt.

A new movie can have a set that no training movie has. The probability of this is estimated by the
share of training movies whose set occurs once (Good 1953, "The population frequencies of species").
For that share of a score all sets of at least one genre are possible, or all sets if a training
movie has no genre.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

import numpy as np
import torch
from torch import Tensor

#: Number of sets kept, the most frequent ones: a batch is compared with each of them.
MAX_SETS = 20_000
#: Scores stay this far from 0 and 1, so that their log-odds are finite.
_MIN_SCORE = 1e-6
#: Log-odds below which sigmoid() equals exp() in float32.
_MAX_EXP_LOGIT = -20.0
#: Size of the (movies, sets) matrix that is computed at once: 64 MiB of float32.
_BLOCK = 2**24


@dataclass(frozen=True)
class LabelSets:
    """The S sets of genres of the training movies.

    Not an ``nn.Module``: the optimizer learns none of it.

    Attributes:
        sets: (S, G) float32, 1 for the genres of a set; the most frequent first.
        only: (S,) int64, the fold that has all movies of a set, so that a member trained without
            this fold doesn't know the set; -1 for a set that is in several folds.
        unseen: (M + 1,) float32, probability that a movie has none of the sets: entry m for the
            member trained without fold m, the last entry for training on all folds.
    """

    sets: Tensor
    only: Tensor
    unseen: Tensor
    #: Whether every set has a genre. A plain bool, so that a traced graph holds it as a constant.
    never_empty: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "never_empty", bool(self.sets.any(dim=1).all()))

    @classmethod
    def from_targets(cls, targets: np.ndarray, folds: np.ndarray | None = None) -> LabelSets:
        """Collect the sets of genres of the training movies, the most frequent first.

        Args:
            targets: (N, G) zeros and ones, N at least 1.
            folds: (N,) int64 in 0..M-1, for validation by folds.
        """
        unique, set_index, counts = np.unique(
            targets.astype(bool), axis=0, return_inverse=True, return_counts=True
        )
        set_index = set_index.reshape(-1)
        order = np.argsort(-counts, kind="stable")[:MAX_SETS]
        kept = np.zeros(len(unique), dtype=bool)
        kept[order] = True
        only = np.full(len(unique), -1)
        unseen = []
        if folds is not None:
            members = int(folds.max()) + 1
            by_fold = np.zeros((len(unique), members), dtype=np.int64)
            np.add.at(by_fold, (set_index, folds), 1)
            in_one_fold = (by_fold > 0).sum(axis=1) == 1
            only[in_one_fold] = by_fold[in_one_fold].argmax(axis=1)
            unseen = [
                _unseen_probability(counts - by_fold[:, fold], kept) for fold in range(members)
            ]
        return cls(
            torch.from_numpy(unique[order]).float(),
            torch.from_numpy(only[order]),
            torch.tensor([*unseen, _unseen_probability(counts, kept)], dtype=torch.float32),
        )

    @classmethod
    def from_lists(cls, lists: Any, num_genres: int) -> LabelSets | None:
        """Read the output of :meth:`to_lists`, which can be untrusted; None stays None.

        Args:
            lists: from a checkpoint.
            num_genres: G.

        Raises:
            ValueError: ``lists`` is not such an output, or has other genres.
        """
        if lists is None:
            return None
        if not isinstance(lists, dict) or set(lists) != {"sets", "only", "unseen"}:
            raise ValueError("they are not made of sets, only and unseen")
        sets, only, unseen = lists["sets"], lists["only"], lists["unseen"]
        if not all(isinstance(each, list) and each for each in (sets, only, unseen)):
            raise ValueError("they are not lists")
        if len(sets) > MAX_SETS or len(only) != len(sets):
            raise ValueError(f"there are {len(sets)} sets, and folds of {len(only)} sets")
        if not all(type(share) is float and 0 < share <= 1 for share in unseen):
            raise ValueError("unseen holds numbers that are not shares")
        if not all(type(fold) is int and -1 <= fold < len(unseen) - 1 for fold in only):
            raise ValueError("they name folds that do not exist")
        membership = torch.zeros(len(sets), num_genres)
        for row, genres in enumerate(sets):
            if not isinstance(genres, list) or not all(
                type(genre) is int and 0 <= genre < num_genres for genre in genres
            ):
                raise ValueError(f"a set is not of the {num_genres} genres: {genres!r:.100}")
            membership[row, genres] = 1
        return cls(membership, torch.tensor(only), torch.tensor(unseen, dtype=torch.float32))

    def to_lists(self) -> dict[str, list[Any]]:
        """Return plain data for a checkpoint, each set as the indices of its genres."""
        return {
            "sets": [genres.nonzero().flatten().tolist() for genres in self.sets],
            "only": self.only.tolist(),
            "unseen": self.unseen.tolist(),
        }

    def logits(self, logits: Tensor, folds: Tensor | None = None) -> Tensor:
        """Return the log-odds of each genre, given which sets are possible.

        Args:
            logits: (B, G), of independent genres.
            folds: (B,) int64, the fold whose member scores each movie, trained without that fold;
                -1 for a movie that all members score. None if all members score all movies.

        Returns:
            (B, G) float32.
        """
        rows = max(1, _BLOCK // len(self.sets))
        split_folds = repeat(None) if folds is None else folds.split(rows)
        blocks = zip(logits.split(rows), split_folds, strict=False)
        return torch.cat([self.block_logits(*block) for block in blocks])

    def block_logits(self, logits: Tensor, folds: Tensor | None = None) -> Tensor:
        """Compute :meth:`logits` of a batch small enough to compare with all sets at once."""
        sets, unseen = self.sets.to(logits.device), self.unseen.to(logits.device)
        set_logits = logits @ sets.T
        if folds is None:
            share = unseen[-1]
        else:
            # A fold of -1 takes the last share and leaves out no set.
            share = unseen[folds][:, None]
            left_out = (self.only.to(logits.device) == folds[:, None]) & (folds >= 0)[:, None]
            set_logits = set_logits.masked_fill(left_out, -torch.inf)
        seen_scores = torch.softmax(set_logits, dim=1) @ sets
        unseen_scores = _scores_given_any_genre(logits) if self.never_empty else _sigmoid(logits)
        scores = (1 - share) * seen_scores + share * unseen_scores
        return torch.logit(scores, _MIN_SCORE)


def _scores_given_any_genre(logits: Tensor) -> Tensor:
    """Return (B, G) probabilities of independent genres, given that a movie has at least one."""
    # Where all genres are unlikely only their ratios matter. Raising all logits alike keeps these,
    # and keeps exp() from underflowing.
    shifted = logits + (_MAX_EXP_LOGIT - logits.amax(dim=1, keepdim=True)).clamp(min=0)
    no_genre = torch.nn.functional.softplus(shifted).sum(dim=1, keepdim=True)
    return _sigmoid(shifted) / -torch.expm1(-no_genre)


def _sigmoid(logits: Tensor) -> Tensor:
    """Compute sigmoid with the relative precision of small values, which ONNX Runtime's loses."""
    return torch.exp(-torch.nn.functional.softplus(-logits))


def _unseen_probability(counts: np.ndarray, kept: np.ndarray) -> float:
    """Estimate the probability that a new movie has none of the kept sets.

    Args:
        counts: (S,) training movies that have each set.
        kept: (S,) bool.
    """
    # The ones keep it above 0 when no set occurs once, and defined when there are no movies.
    once = counts[kept & (counts == 1)].sum() + counts[~kept].sum()
    return float((once + 1) / (counts.sum() + 1))
