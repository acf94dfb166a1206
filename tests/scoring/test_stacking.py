"""What is learnt on top of the sum: against SciPy's optimizer, and on drawn movies."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit

from genre_lightning.scoring import stacking
from genre_lightning.scoring.stacking import Stacked, fit_stacking, fit_stacking_by_folds


def drawn(num_movies: int, seed: int, together: float = 3.0) -> tuple[np.ndarray, ...]:
    """Sums (N, 4), what two branches have in them (N, 2, 4), and labels.

    The sums know nothing of each other, but the second genre is likelier by ``together`` where the
    first one is there, and of the third what the second branch says is noise.
    """
    rng = np.random.default_rng(seed)
    branch_logits = rng.normal(-0.5, 1.1, (num_movies, 2, 4))
    logits = branch_logits.sum(axis=1)
    first = rng.random(num_movies) < expit(logits[:, 0])
    chances = expit(logits)
    chances[:, 1] = expit(logits[:, 1] + together * (first - 0.3))
    chances[:, 2] = expit(branch_logits[:, 0, 2])
    labels = rng.random((num_movies, 4)) < chances
    labels[:, 0] = first
    return logits.astype(np.float32), branch_logits.astype(np.float32), labels.astype(np.uint8)


def applied(found: Stacked, logits: np.ndarray, branch_logits: np.ndarray) -> np.ndarray:
    """The formula of the module's docstring, genre by genre."""
    scores = expit(logits.astype(np.float64))
    branches = range(branch_logits.shape[1])
    return np.column_stack(
        [
            logits[:, g]
            + sum((found.branches[k, g] - 1) * branch_logits[:, k, g] for k in branches)
            + found.offsets[g]
            + sum(found.genres[g, h] * scores[:, h] for h in range(logits.shape[1]))
            for g in range(logits.shape[1])
        ]
    )


def log_loss(logits: np.ndarray, labels: np.ndarray) -> float:
    return float((np.logaddexp(0, logits) - labels * logits).mean())


@pytest.mark.parametrize("strength", [0.1, 1.0, 50.0])
def test_it_is_the_optimum_that_scipy_finds(
    strength: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stacking, "STRENGTH", strength)
    logits, branch_logits, labels = drawn(300, seed=1)
    labels[:, 3] = 0  # a genre that no movie has
    branch_logits[::3, 1] = 0  # a column that some movies lack
    found = fit_stacking(logits, branch_logits, labels)
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
            [*found.genres[genre], found.offsets[genre], *(found.branches[:, genre] - 1)],
            expected,
            atol=2e-4,
        )


@pytest.mark.parametrize("scale", [1.0, 60.0])
def test_far_from_the_start_it_is_still_an_optimum(scale: float) -> None:
    # Sums that are wrong and sure of it: full steps of Newton's method alone go to infinity.
    logits, branch_logits, labels = drawn(200, seed=2)
    logits = scale * (0.5 - labels.astype(np.float32)) + 0.1 * logits
    found = fit_stacking(logits, branch_logits, labels)
    scores = expit(logits.astype(np.float64))
    left = expit(applied(found, logits, branch_logits)) - labels
    assert np.abs(left.T @ scores + found.genres).max() < 1e-3
    assert np.abs(left.sum(axis=0) + found.offsets).max() < 1e-3
    slopes = np.einsum("nkg,ng->kg", branch_logits, left) + 3 * (found.branches - 1)
    assert np.abs(slopes).max() < 1e-3


def test_the_stacking_of_a_fold_is_fitted_on_all_other_folds() -> None:
    logits, branch_logits, labels = drawn(600, seed=6)
    folds = np.random.default_rng(7).integers(0, 3, 600)
    # The last of them has no movie, as where validation looks at a few movies alone.
    found = fit_stacking_by_folds(logits, branch_logits, labels, folds, num_folds=4)
    assert [part.shape for part in found] == [(4, 2, 4), (4, 4, 4), (4, 4)]
    for fold in range(4):
        others = folds != fold
        expected = fit_stacking(logits[others], branch_logits[others], labels[others])
        for part, wanted in zip(found, expected, strict=True):
            np.testing.assert_allclose(part[fold], wanted, atol=1e-5)


def test_blocks_of_movies_give_the_same_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = fit_stacking(*drawn(500, seed=8))
    monkeypatch.setattr(stacking, "_BLOCK_NUMBERS", 15 * 70)  # of 15 products a movie, 70 movies
    for part, wanted in zip(fit_stacking(*drawn(500, seed=8)), expected, strict=True):
        np.testing.assert_allclose(part, wanted, atol=1e-9)


def test_stacking_lowers_the_loss_on_other_movies() -> None:
    found = fit_stacking(*drawn(4000, seed=3))
    assert found.genres[1, 0] > 1.5
    others = [found.genres[g, h] for g in range(4) for h in range(4) if g != h and g != 1]
    assert np.abs(others).max() < 0.8
    assert found.branches[1, 2] < 0.3 and 0.7 < found.branches[0, 2] < 1.3
    logits, branch_logits, labels = drawn(4000, seed=4)
    stacked = applied(found, logits, branch_logits)
    for genre in (1, 2):
        before = log_loss(logits[:, genre], labels[:, genre])
        assert log_loss(stacked[:, genre], labels[:, genre]) < before - 0.02


def test_stacking_changes_little_where_the_sums_are_enough() -> None:
    logits, branch_logits, labels = drawn(4000, seed=5, together=0.0)
    found = fit_stacking(logits, branch_logits, labels)
    changed = applied(found, logits, branch_logits) - logits
    assert np.sqrt((changed[:, [0, 1, 3]] ** 2).mean()) < 0.25
