"""Stacking: against SciPy's optimizer, and on simulated movies."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit

from genre_lightning.scoring import stacking
from genre_lightning.scoring.stacking import Stacked, fit_stacking, fit_stacking_by_folds


def simulate(num_movies: int, seed: int, dependence: float = 3.0) -> tuple[np.ndarray, ...]:
    """Simulate sums (N, 4), the logits of two branches (N, 2, 4), and labels (N, 4).

    The genres' sums are independent, but the second genre's logit is higher by ``dependence`` for
    movies of the first genre, and the second branch is noise for the third genre.
    """
    rng = np.random.default_rng(seed)
    branch_logits = rng.normal(-0.5, 1.1, (num_movies, 2, 4))
    logits = branch_logits.sum(axis=1)
    first = rng.random(num_movies) < expit(logits[:, 0])
    chances = expit(logits)
    chances[:, 1] = expit(logits[:, 1] + dependence * (first - 0.3))
    chances[:, 2] = expit(branch_logits[:, 0, 2])
    labels = rng.random((num_movies, 4)) < chances
    labels[:, 0] = first
    return logits.astype(np.float32), branch_logits.astype(np.float32), labels.astype(np.uint8)


def apply_stacking(fitted: Stacked, logits: np.ndarray, branch_logits: np.ndarray) -> np.ndarray:
    """The formula in the docstring of ``scoring.stacking``, genre by genre."""
    scores = expit(logits.astype(np.float64))
    branches = range(branch_logits.shape[1])
    return np.column_stack(
        [
            logits[:, g]
            + sum((fitted.branches[k, g] - 1) * branch_logits[:, k, g] for k in branches)
            + fitted.offsets[g]
            + sum(fitted.genres[g, h] * scores[:, h] for h in range(logits.shape[1]))
            for g in range(logits.shape[1])
        ]
    )


def log_loss(logits: np.ndarray, labels: np.ndarray) -> float:
    return float((np.logaddexp(0, logits) - labels * logits).mean())


@pytest.mark.parametrize("strength", [0.1, 1.0, 50.0])
def test_the_fit_is_the_optimum_that_scipy_finds(
    strength: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stacking, "STRENGTH", strength)
    logits, branch_logits, labels = simulate(300, seed=1)
    labels[:, 3] = 0  # a genre that no movie has
    branch_logits[::3, 1] = 0  # a column that some movies lack
    fitted = fit_stacking(logits, branch_logits, labels)
    scores = expit(logits.astype(np.float64))
    for genre in range(4):

        def cost(values: np.ndarray, genre: int = genre) -> float:
            genres, offset, branches = values[:4], values[4], values[5:]
            sums = logits[:, genre] + scores @ genres + offset
            sums = sums + branch_logits[:, :, genre] @ branches
            losses = np.logaddexp(0, sums) - labels[:, genre] * sums
            prior = strength * (values[:5] ** 2).sum() + 3 * (branches**2).sum()
            return float(losses.sum() + prior / 2)

        expected = minimize(cost, np.zeros(7), method="BFGS", options={"gtol": 1e-6}).x
        np.testing.assert_allclose(
            [*fitted.genres[genre], fitted.offsets[genre], *(fitted.branches[:, genre] - 1)],
            expected,
            atol=2e-4,
        )


@pytest.mark.parametrize("scale", [1.0, 60.0])
def test_the_fit_is_an_optimum_far_from_the_start(scale: float) -> None:
    # Confidently wrong sums: with full steps alone, Newton's method diverges.
    logits, branch_logits, labels = simulate(200, seed=2)
    logits = scale * (0.5 - labels.astype(np.float32)) + 0.1 * logits
    fitted = fit_stacking(logits, branch_logits, labels)
    scores = expit(logits.astype(np.float64))
    residuals = expit(apply_stacking(fitted, logits, branch_logits)) - labels
    assert np.abs(residuals.T @ scores + fitted.genres).max() < 1e-3
    assert np.abs(residuals.sum(axis=0) + fitted.offsets).max() < 1e-3
    gradient = np.einsum("nkg,ng->kg", branch_logits, residuals) + 3 * (fitted.branches - 1)
    assert np.abs(gradient).max() < 1e-3


def test_the_stacking_of_a_fold_is_fitted_on_all_other_folds() -> None:
    logits, branch_logits, labels = simulate(600, seed=6)
    folds = np.random.default_rng(7).integers(0, 3, 600)
    # The last fold has no movies, as can happen if validation is limited to a few movies.
    fitted = fit_stacking_by_folds(logits, branch_logits, labels, folds, num_folds=4)
    assert [part.shape for part in fitted] == [(4, 2, 4), (4, 4, 4), (4, 4)]
    for fold in range(4):
        others = folds != fold
        expected = fit_stacking(logits[others], branch_logits[others], labels[others])
        for part, expected_part in zip(fitted, expected, strict=True):
            np.testing.assert_allclose(part[fold], expected_part, atol=1e-5)


def test_blocks_of_movies_give_the_same_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = fit_stacking(*simulate(500, seed=8))
    monkeypatch.setattr(stacking, "_BLOCK_NUMBERS", 15 * 70)  # 70 movies of 15 products each
    for part, expected_part in zip(fit_stacking(*simulate(500, seed=8)), expected, strict=True):
        np.testing.assert_allclose(part, expected_part, atol=1e-9)


def test_stacking_lowers_the_loss_on_held_out_movies() -> None:
    fitted = fit_stacking(*simulate(4000, seed=3))
    assert fitted.genres[1, 0] > 1.5
    others = [fitted.genres[g, h] for g in range(4) for h in range(4) if g != h and g != 1]
    assert np.abs(others).max() < 0.8
    assert fitted.branches[1, 2] < 0.3 and 0.7 < fitted.branches[0, 2] < 1.3
    logits, branch_logits, labels = simulate(4000, seed=4)
    stacked = apply_stacking(fitted, logits, branch_logits)
    for genre in (1, 2):
        before = log_loss(logits[:, genre], labels[:, genre])
        assert log_loss(stacked[:, genre], labels[:, genre]) < before - 0.02


def test_stacking_changes_little_if_genres_are_independent() -> None:
    logits, branch_logits, labels = simulate(4000, seed=5, dependence=0.0)
    fitted = fit_stacking(logits, branch_logits, labels)
    changed = apply_stacking(fitted, logits, branch_logits) - logits
    assert np.sqrt((changed[:, [0, 1, 3]] ** 2).mean()) < 0.25
