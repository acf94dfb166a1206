"""What is learnt on top of the sum of branches, from movies that the network has not learnt from.

Legend: N movies, G genres, K branches. The sum of branches does not know which of them is to be
trusted for which genre, nor that a western is seldom a musical. So each genre gets a logistic
regression on its logits by each branch and the scores of all genres, which starts from the sum:

    logit_g = sum_g + sum over k of (weight_kg - 1) branch_kg
              + offset_g + sum over h of genres_gh sigmoid(sum_h)

This is stacking (Wolpert 1992, "Stacked generalization"), and of labels (Godbole and Sarawagi 2004,
"Discriminative methods for multi-labeled classification"). It calibrates the scores as well.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import expit

from genre_lightning.scoring.thresholds import log_losses

#: Precision of the Gaussian prior of each offset and of what each genre's score adds, around 0. On
#: held-out parts of train, of 0.3, 1, 3 and 10 those to 1 were about equally good.
STRENGTH = 1.0
#: The same of each branch's weight, around 1; of 0.3 to 300 those to 3 were about equally good.
BRANCH_STRENGTH = 3.0
#: More take too long: what is solved grows with the third power of their number.
MAX_STACKED_GENRES = 100

_STEPS = 100
# Newton's method ends where a step would lower no cost, a sum over movies, by half of this.
_DECREASE = 1e-10
# Numbers that are held at once: 256 MiB of float64.
_BLOCK = 2**25


class Stacked(NamedTuple):
    """Fitted weights; those of M folds have a first axis of M in each array.

    Attributes:
        branches: (K, G) float64 weights of the branches' logits of each genre; 1 leaves them.
        genres: (G, G) float64; row g is what the score of each genre adds to the logit of genre g.
        offsets: (G,) float64.
    """

    branches: np.ndarray
    genres: np.ndarray
    offsets: np.ndarray


def fit_stacking(logits: np.ndarray, branch_logits: np.ndarray, targets: np.ndarray) -> Stacked:
    """The weights of the greatest posterior probability.

    Args:
        logits: (N, G) sums, finite.
        branch_logits: (N, K, G), which they are sums of; zero for a movie that lacks the column.
        targets: (N, G) zeros and ones.
    """
    regressions = _Regressions(logits, branch_logits, targets)
    return regressions.unpack(regressions.solve())


def fit_stacking_by_folds(
    logits: np.ndarray,
    branch_logits: np.ndarray,
    targets: np.ndarray,
    folds: np.ndarray,
    *,
    num_folds: int,
) -> Stacked:
    """The weights for each fold, fitted on all other movies.

    Args:
        logits: see :func:`fit_stacking`; so are ``branch_logits`` and ``targets``.
        branch_logits: (N, K, G).
        targets: (N, G).
        folds: (N,) integers in 0..M-1.
        num_folds: M; where validation looks at some movies alone, a fold may have none of them.
    """
    regressions = _Regressions(logits, branch_logits, targets)
    # The optima lie near that of all movies, so that few steps from there are enough.
    start = regressions.solve()
    found = [
        regressions.solve((folds != fold).astype(np.float64), start) for fold in range(num_folds)
    ]
    return regressions.unpack(np.stack(found))


class _Regressions:
    """G convex problems, solved side by side by Newton's method.

    The parameters of a genre are G weights of scores, its offset, and K of branches, less 1.
    """

    def __init__(self, logits: np.ndarray, branch_logits: np.ndarray, targets: np.ndarray) -> None:
        # Genres come first: (G, N), and (G, N, K) of the branches.
        self.logits, self.targets = logits.T.astype(np.float64), targets.T.astype(np.float64)
        self.branch_logits = np.ascontiguousarray(
            branch_logits.transpose(2, 0, 1), dtype=np.float64
        )
        self.inputs = np.column_stack([expit(self.logits).T, np.ones(len(logits))])
        self.num_shared = self.inputs.shape[1]
        counts = [self.num_shared, self.branch_logits.shape[2]]
        self.precision = np.repeat([STRENGTH, BRANCH_STRENGTH], counts)
        self.upper = np.triu_indices(self.num_shared)
        rows = max(1, _BLOCK // len(self.upper[0]))
        self.blocks = [slice(start, start + rows) for start in range(0, len(logits), rows)]
        self.products = self._products(self.blocks[0]) if len(self.blocks) == 1 else None

    def unpack(self, found: np.ndarray) -> Stacked:
        """The parts of (..., G, G + 1 + K) parameters."""
        genres, offsets = found[..., : self.num_shared - 1], found[..., self.num_shared - 1]
        return Stacked(1 + np.moveaxis(found[..., self.num_shared :], -1, -2), genres, offsets)

    def solve(
        self, counted: np.ndarray | None = None, start: np.ndarray | None = None
    ) -> np.ndarray:
        """(G, G + 1 + K) parameters of each genre.

        Args:
            counted: (N,) how much each movie counts; None for 1.
            start: (G, G + 1 + K) where to begin; None for zeros.
        """
        num_genres, num_movies = self.logits.shape
        counts = np.ones(num_movies) if counted is None else counted
        found = np.zeros((num_genres, len(self.precision))) if start is None else start.copy()
        now = np.full(num_genres, np.inf)
        step = np.zeros_like(found)
        for _ in range(_STEPS):
            sums = self.logits + found[:, : self.num_shared] @ self.inputs.T
            sums += (self.branch_logits @ found[:, self.num_shared :, None])[..., 0]
            cost = log_losses(sums, self.targets) @ counts + found**2 @ self.precision / 2
            # A full step can overshoot; half as much for the genres where it did.
            worse = cost > now * (1 + 1e-12)
            if worse.any():
                step[worse] /= 2
                found[worse] += step[worse]
                continue
            now = cost
            scores = expit(sums)
            residuals = (scores - self.targets) * counts
            gradient = found * self.precision
            gradient[:, : self.num_shared] += residuals @ self.inputs
            gradient[:, self.num_shared :] += (residuals[:, None] @ self.branch_logits)[:, 0]
            hessian = self._hessian(scores * (1 - scores) * counts)
            step = np.linalg.solve(hessian, gradient[..., None])[..., 0]
            if (gradient * step).sum(axis=1).max() < _DECREASE:
                break
            found -= step
        return found

    def _hessian(self, curvature: np.ndarray) -> np.ndarray:
        """(G, W, W) of all genres, W = G + 1 + K, for (G, N) curvatures of the cells."""
        shared = slice(self.num_shared)
        branches = slice(self.num_shared, None)
        hessian = np.empty((len(curvature), len(self.precision), len(self.precision)))
        rows, columns = self.upper
        hessian[:, rows, columns] = hessian[:, columns, rows] = self._summed(curvature)
        bent = (self.branch_logits * curvature[..., None]).transpose(0, 2, 1)
        hessian[:, branches, branches] = bent @ self.branch_logits
        hessian[:, branches, shared] = bent @ self.inputs
        hessian[:, shared, branches] = hessian[:, branches, shared].transpose(0, 2, 1)
        return hessian + np.diag(self.precision)

    def _summed(self, curvature: np.ndarray) -> np.ndarray:
        """(G, pairs) the upper triangles of what the shared inputs have in all Hessians.

        Every genre's is a weighted sum of the same products, so that all are one matrix product.
        """
        if self.products is not None:
            return np.asarray(curvature @ self.products)
        return sum(curvature[:, rows] @ self._products(rows) for rows in self.blocks)

    def _products(self, rows: slice) -> np.ndarray:
        """(rows, pairs) each shared input by each other one, for some of the movies."""
        first, second = (self.inputs[rows, places] for places in self.upper)
        return np.ascontiguousarray(first * second)
