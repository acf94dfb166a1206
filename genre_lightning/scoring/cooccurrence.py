"""What each genre's score says about the other genres.

Legend: N movies, G genres. Branches look at a movie genre by genre, so their sum does not know that
a western is seldom a musical, or that what is animated is mostly for children. That is learnt here
from logits of movies that the network has not learnt from, and added to the sum:

    logit_g = sum_g + offset_g + weights_gh sigmoid(sum_h), summed over h

For each genre this is a logistic regression on the scores of all genres, with a coefficient of 1
for its own sum: a linear form of stacking label predictions (Godbole and Sarawagi 2004,
"Discriminative methods for multi-labeled classification"). It calibrates the scores as well.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import expit

#: Precision of the Gaussian prior around 0 of all weights and offsets. On parts of train, of 0.1 to
#: 300, those from 0.3 to 3 were about equally good.
STRENGTH = 1.0
_STEPS = 100
#: More take too long: what is solved grows with the third power of their number.
MOST_GENRES = 100
# Numbers that are held at once: 256 MiB of float64.
_BLOCK = 2**25
# Newton's method ends where a step would lower no cost, a sum over movies, by half of this.
_DECREASE = 1e-10


def fit_cooccurrence(
    logits: np.ndarray, targets: np.ndarray, strength: float = STRENGTH
) -> tuple[np.ndarray, np.ndarray]:
    """Weights (G, G) and offsets (G,), float64, of the greatest posterior probability.

    Args:
        logits: (N, G) sums, finite.
        targets: (N, G) zeros and ones.
        strength: above 0.
    """
    found = _Regressions(logits, targets, strength).solve()
    return found[:, :-1], found[:, -1]


def fit_cooccurrence_by_folds(
    logits: np.ndarray, targets: np.ndarray, folds: np.ndarray, strength: float = STRENGTH
) -> tuple[np.ndarray, np.ndarray]:
    """Weights (M, G, G) and offsets (M, G), float64: of each fold, fitted on all other movies.

    Args:
        logits: see :func:`fit_cooccurrence`; so are ``targets`` and ``strength``.
        targets: (N, G).
        folds: (N,) integers in 0..M-1.
        strength: above 0.
    """
    regressions = _Regressions(logits, targets, strength)
    # The optima lie near that of all movies, so that few steps from there are enough.
    start = regressions.solve()
    found = np.stack(
        [
            regressions.solve((folds != fold).astype(np.float64), start)
            for fold in range(folds.max() + 1)
        ]
    )
    return found[..., :-1], found[..., -1]


class _Regressions:
    """G convex problems, solved side by side by Newton's method."""

    def __init__(self, logits: np.ndarray, targets: np.ndarray, strength: float) -> None:
        self.logits, self.targets = logits.astype(np.float64), targets.astype(np.float64)
        self.strength = strength
        self.inputs = np.column_stack([expit(self.logits), np.ones(len(logits))])
        self.upper = np.triu_indices(self.inputs.shape[1])
        rows = max(1, _BLOCK // len(self.upper[0]))
        self.blocks = [slice(start, start + rows) for start in range(0, len(logits), rows)]
        self.kept = self._products(self.blocks[0]) if len(self.blocks) == 1 else None

    def solve(self, counted: np.ndarray | None = None, start: np.ndarray | None = None) -> Any:
        """(G, G + 1) weights and offset of each genre.

        Args:
            counted: (N,) how much each movie counts; None for 1.
            start: (G, G + 1) where to begin; None for zeros.
        """
        num_genres, width = self.logits.shape[1], self.inputs.shape[1]
        counts = np.ones(len(self.logits)) if counted is None else counted
        found = np.zeros((num_genres, width)) if start is None else start.copy()
        hessian = np.empty((num_genres, width, width))
        now = np.full(num_genres, np.inf)
        step = np.zeros_like(found)
        for _ in range(_STEPS):
            sums = self.logits + self.inputs @ found.T
            cost = counts @ _log_losses(sums, self.targets)
            cost += self.strength / 2 * (found**2).sum(axis=1)
            # A full step can overshoot; half as much for the genres where it did.
            worse = cost > now * (1 + 1e-12)
            if worse.any():
                step[worse] /= 2
                found[worse] += step[worse]
                continue
            now = cost
            scores = expit(sums)
            left = (scores - self.targets) * counts[:, None]
            gradient = left.T @ self.inputs + self.strength * found
            curvature = scores * (1 - scores) * counts[:, None]
            hessian[:, self.upper[0], self.upper[1]] = self._summed(curvature)
            hessian[:, self.upper[1], self.upper[0]] = hessian[:, self.upper[0], self.upper[1]]
            hessian += self.strength * np.eye(width)
            step = np.linalg.solve(hessian, gradient[:, :, None])[:, :, 0]
            if (gradient * step).sum(axis=1).max() < _DECREASE:
                break
            found -= step
        return found

    def _summed(self, curvature: np.ndarray) -> np.ndarray:
        """The upper triangles of all Hessians, (G, (G + 1) (G + 2) / 2), without the prior's part.

        Every genre's is a weighted sum of the same products, so that all are one matrix product.
        """
        if self.kept is not None:
            return np.asarray(curvature.T @ self.kept)
        return sum(curvature[rows].T @ self._products(rows) for rows in self.blocks)

    def _products(self, rows: slice) -> np.ndarray:
        """(rows, pairs) each input by each other one, for some of the movies."""
        first, second = (self.inputs[rows, places] for places in self.upper)
        return np.ascontiguousarray(first * second)


def _log_losses(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """(N, G) binary cross-entropies."""
    # log(1 + exp(z)), in a third of the time of np.logaddexp.
    return np.maximum(logits, 0) + np.log1p(np.exp(-np.abs(logits))) - targets * logits
