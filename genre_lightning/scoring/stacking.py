"""Stacking: logistic regressions on top of the summed branches, fitted on held-out movies.

Legend: N movies, G genres, K branches. The sum of branches can't learn which branch to trust for
which genre, nor that a western is seldom a musical. So each genre gets a logistic regression on the
branches' logits of that genre and the scores of all genres, which starts from the sum:

    logit_g = sum_g + sum over k of (weight_kg - 1) branch_kg
              + offset_g + sum over h of genres_gh sigmoid(sum_h)

This is stacking (Wolpert 1992, "Stacked generalization"), of branches and of labels (Godbole and
Sarawagi 2004, "Discriminative methods for multi-labeled classification"). It also calibrates the
scores.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import expit

from genre_lightning.scoring.thresholds import log_losses

#: Precision of the Gaussian priors around 0 of offsets and genre weights. On held-out parts of
#: train, 0.3 and 1 were about equally good, out of 0.3, 1, 3 and 10.
STRENGTH = 1.0
#: Precision of the priors around 1 of branch weights. Out of 0.3 to 300, the values up to 3 were
#: about equally good.
BRANCH_STRENGTH = 3.0
#: More genres take too long: the size of all Hessians grows with the third power of their number.
MAX_STACKED_GENRES = 100

_MAX_STEPS = 100
# Newton's method stops when a step would lower each genre's cost by less than half of this.
_MIN_DECREASE = 1e-10
# Numbers held in memory at once: 256 MiB of float64.
_BLOCK_NUMBERS = 2**25


class Stacked(NamedTuple):
    """Fitted weights; for M folds, each array has a leading axis of M.

    Attributes:
        branches: (K, G) float64, the weight of each branch's logit of each genre; 1 is neutral.
        genres: (G, G) float64; row g has the weights of all genres' scores in the logit of genre g.
        offsets: (G,) float64.
    """

    branches: np.ndarray
    genres: np.ndarray
    offsets: np.ndarray


def fit_stacking(logits: np.ndarray, branch_logits: np.ndarray, targets: np.ndarray) -> Stacked:
    """Fit the maximum a posteriori weights.

    Args:
        logits: (N, G) sums, finite.
        branch_logits: (N, K, G) parts of the sums; zero for a movie that lacks the column.
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
    """Fit the weights for each fold on the movies of all other folds.

    Args:
        logits: (N, G), see :func:`fit_stacking`.
        branch_logits: (N, K, G), likewise.
        targets: (N, G), likewise.
        folds: (N,) integers in 0..M-1.
        num_folds: M; a fold can be empty if validation is limited to some movies.
    """
    regressions = _Regressions(logits, branch_logits, targets)
    # Each fold's optimum is near that of all movies, so a few steps from there are enough.
    start = regressions.solve()
    parameters = [
        regressions.solve((folds != fold).astype(np.float64), start) for fold in range(num_folds)
    ]
    return regressions.unpack(np.stack(parameters))


class _Regressions:
    """G convex problems, solved together by Newton's method.

    The parameters of a genre are its G genre weights, its offset, and its K branch weights minus 1.
    """

    def __init__(self, logits: np.ndarray, branch_logits: np.ndarray, targets: np.ndarray) -> None:
        # Genres are the first axis: (G, N), and (G, N, K) for the branches.
        self.logits, self.targets = logits.T.astype(np.float64), targets.T.astype(np.float64)
        self.branch_logits = np.ascontiguousarray(
            branch_logits.transpose(2, 0, 1), dtype=np.float64
        )
        self.inputs = np.column_stack([expit(self.logits).T, np.ones(len(logits))])
        self.num_shared = self.inputs.shape[1]
        counts = [self.num_shared, self.branch_logits.shape[2]]
        self.precision = np.repeat([STRENGTH, BRANCH_STRENGTH], counts)
        self.upper = np.triu_indices(self.num_shared)
        rows = max(1, _BLOCK_NUMBERS // len(self.upper[0]))
        self.blocks = [slice(start, start + rows) for start in range(0, len(logits), rows)]
        self.products = self._pair_products(self.blocks[0]) if len(self.blocks) == 1 else None

    def unpack(self, parameters: np.ndarray) -> Stacked:
        """Split parameters (..., G, G + 1 + K) into weights."""
        genres, offsets = (
            parameters[..., : self.num_shared - 1],
            parameters[..., self.num_shared - 1],
        )
        return Stacked(1 + np.moveaxis(parameters[..., self.num_shared :], -1, -2), genres, offsets)

    def solve(
        self, movie_weights: np.ndarray | None = None, start: np.ndarray | None = None
    ) -> np.ndarray:
        """Return the optimal parameters (G, G + 1 + K).

        Args:
            movie_weights: (N,) weight of each movie; None for 1.
            start: (G, G + 1 + K) initial parameters; None for zeros.
        """
        num_genres, num_movies = self.logits.shape
        weights = np.ones(num_movies) if movie_weights is None else movie_weights
        parameters = np.zeros((num_genres, len(self.precision))) if start is None else start.copy()
        previous_cost = np.full(num_genres, np.inf)
        step = np.zeros_like(parameters)
        for _ in range(_MAX_STEPS):
            sums = self.logits + parameters[:, : self.num_shared] @ self.inputs.T
            sums += (self.branch_logits @ parameters[:, self.num_shared :, None])[..., 0]
            cost = log_losses(sums, self.targets) @ weights + parameters**2 @ self.precision / 2
            # A full step can overshoot: halve it for the genres whose cost has risen.
            has_risen = cost > previous_cost * (1 + 1e-12)
            if has_risen.any():
                step[has_risen] /= 2
                parameters[has_risen] += step[has_risen]
                continue
            previous_cost = cost
            scores = expit(sums)
            residuals = (scores - self.targets) * weights
            gradient = parameters * self.precision
            gradient[:, : self.num_shared] += residuals @ self.inputs
            gradient[:, self.num_shared :] += (residuals[:, None] @ self.branch_logits)[:, 0]
            hessian = self._hessian(scores * (1 - scores) * weights)
            step = np.linalg.solve(hessian, gradient[..., None])[..., 0]
            if (gradient * step).sum(axis=1).max() < _MIN_DECREASE:
                break
            parameters -= step
        return parameters

    def _hessian(self, curvature: np.ndarray) -> np.ndarray:
        """Hessians (G, W, W) of all genres, W = G + 1 + K, for curvatures (G, N) of the cells."""
        shared = slice(self.num_shared)
        branches = slice(self.num_shared, None)
        hessian = np.empty((len(curvature), len(self.precision), len(self.precision)))
        rows, columns = self.upper
        hessian[:, rows, columns] = hessian[:, columns, rows] = self._shared_hessians(curvature)
        weighted_branches = (self.branch_logits * curvature[..., None]).transpose(0, 2, 1)
        hessian[:, branches, branches] = weighted_branches @ self.branch_logits
        hessian[:, branches, shared] = weighted_branches @ self.inputs
        hessian[:, shared, branches] = hessian[:, branches, shared].transpose(0, 2, 1)
        return hessian + np.diag(self.precision)

    def _shared_hessians(self, curvature: np.ndarray) -> np.ndarray:
        """Upper triangles (G, pairs) of the shared inputs' block in all Hessians.

        Each is a weighted sum of the same products, so one matrix product computes all of them.
        """
        if self.products is not None:
            return np.asarray(curvature @ self.products)
        return sum(curvature[:, rows] @ self._pair_products(rows) for rows in self.blocks)

    def _pair_products(self, rows: slice) -> np.ndarray:
        """Products (rows, pairs) of every pair of shared inputs, for some of the movies."""
        first, second = (self.inputs[rows, indices] for indices in self.upper)
        return np.ascontiguousarray(first * second)
