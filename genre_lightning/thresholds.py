"""Decision thresholds fitted on a validation split.

Legend: N movies, G genres. A genre is predicted iff its score >= its threshold, both as float32.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

DEFAULT_METHOD = "shrunk"
_LOGIT_EPS = 1e-6


def fit_thresholds(
    scores: Tensor, targets: Tensor, method: str = DEFAULT_METHOD, *, strength: float = 20.0
) -> Tensor:
    """Fit thresholds (G,) float32, on the device of ``scores``, to a validation split.

    Args:
        scores: (N, G) floats in [0, 1].
        targets: (N, G) zeros and ones of any dtype.
        method: "shared" is one threshold for all genres, the exact optimum of micro F1; "per_genre"
            is the exact optimum of each genre's own F1; "shrunk" is, in logits, the per-genre
            optimum drawn towards the shared one: w t_g + (1 - w) t, w = n_g / (n_g + strength), n_g
            the genre's positives.
        strength: positives at which "shrunk" trusts a genre's own optimum half.

    An optimum lies midway between the two scores it separates. Genres without positives take the
    shared threshold; without a positive anywhere nothing can be fitted and all are 0.5.

    Raises:
        ValueError: for an unknown method, shapes that disagree, N = 0, or values out of range.
    """
    if method not in METHODS:
        raise ValueError(f"threshold method {method!r} is unknown; choose one of {sorted(METHODS)}")
    if strength < 0:
        raise ValueError(f"strength is {strength}; it must be at least 0")
    if scores.ndim != 2 or scores.shape != targets.shape or 0 in scores.shape:
        raise ValueError(
            f"scores {tuple(scores.shape)} and targets {tuple(targets.shape)} "
            "must both be (N, G), neither empty"
        )
    values = scores.detach().cpu().float()
    if not bool(((values >= 0) & (values <= 1)).all()):
        raise ValueError("scores must lie in [0, 1] and not be nan; pass sigmoid(logits)")
    if not bool(((targets == 0) | (targets == 1)).all()):
        raise ValueError("targets must be zeros and ones")
    positives = targets.detach().cpu().bool()
    return METHODS[method](values, positives, strength).to(scores.device)


def _shared(scores: Tensor, positives: Tensor, strength: float) -> Tensor:
    return (
        best_f1_cuts(scores.reshape(-1, 1), positives.reshape(-1, 1))
        .expand(scores.shape[1])
        .contiguous()
    )


def _per_genre(scores: Tensor, positives: Tensor, strength: float) -> Tensor:
    shared = _shared(scores, positives, strength)
    return torch.where(positives.any(dim=0), best_f1_cuts(scores, positives), shared)


def _shrunk(scores: Tensor, positives: Tensor, strength: float) -> Tensor:
    count = positives.sum(dim=0).double()
    trust = count / (count + strength).clamp(min=1e-12)
    own = torch.logit(_per_genre(scores, positives, strength).double(), eps=_LOGIT_EPS)
    shared = torch.logit(_shared(scores, positives, strength).double(), eps=_LOGIT_EPS)
    return torch.sigmoid(trust * own + (1 - trust) * shared).float()


METHODS: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "shared": _shared,
    "per_genre": _per_genre,
    "shrunk": _shrunk,
}


def best_f1_cuts(scores: Tensor, positives: Tensor) -> Tensor:
    """For each column the threshold of the highest F1 over all possible cuts; O(N log N).

    Args:
        scores: (N, C) float32 in [0, 1].
        positives: (N, C) bool.

    Returns:
        (C,) float32: midway between the lowest score taken and the highest left (half the lowest
        score where all are taken). Of cuts with equal F1 the highest. 0.5 for a column without
        positives.
    """
    num_rows = scores.shape[0]
    ordered, order = scores.sort(dim=0, descending=True)
    hits = positives.gather(0, order).double().cumsum(dim=0)
    taken = torch.arange(1, num_rows + 1, dtype=torch.float64).unsqueeze(1)
    f1 = 2 * hits / (taken + hits[-1])
    following = torch.cat([ordered[1:], torch.zeros_like(ordered[:1])])
    # equal scores cannot be told apart by a cut; the last row always can
    tied = ordered == following
    tied[-1] = False
    best = f1.masked_fill(tied, -1.0).argmax(dim=0, keepdim=True)
    low, high = following.gather(0, best).double(), ordered.gather(0, best).double()
    cuts = ((low + high) / 2).float()
    # neighbours in float32 have no midpoint: then the cut is the lowest score taken
    cuts = torch.where(cuts.double() > low, cuts, high.float()).squeeze(0)
    return torch.where(hits[-1] > 0, cuts, torch.full_like(cuts, 0.5))
