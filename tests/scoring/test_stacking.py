"""What the scores of all genres say of each: against SciPy's optimizer, and on drawn movies."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit

from genre_lightning.scoring import cooccurrence
from genre_lightning.scoring.cooccurrence import fit_cooccurrence, fit_cooccurrence_by_folds


def drawn(num_movies: int, seed: int, together: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits of four genres that know nothing of each other, and labels of which two go together.

    The second genre is likelier by ``together`` where the first one is there.
    """
    rng = np.random.default_rng(seed)
    logits = rng.normal(-1.0, 1.5, (num_movies, 4))
    first = rng.random(num_movies) < expit(logits[:, 0])
    chances = expit(logits)
    chances[:, 1] = expit(logits[:, 1] + together * (first - 0.3))
    labels = rng.random((num_movies, 4)) < chances
    labels[:, 0] = first
    return logits.astype(np.float32), labels.astype(np.uint8)


def log_loss(logits: np.ndarray, labels: np.ndarray) -> float:
    return float((np.logaddexp(0, logits) - labels * logits).mean())


@pytest.mark.parametrize("strength", [0.1, 1.0, 50.0])
def test_it_is_the_optimum_that_scipy_finds(strength: float) -> None:
    logits, labels = drawn(300, seed=1)
    labels[:, 3] = 0  # a genre that no movie has
    weights, offsets = fit_cooccurrence(logits, labels, strength)
    scores = expit(logits.astype(np.float64))
    for genre in range(4):

        def cost(values: np.ndarray, genre: int = genre) -> float:
            found = logits[:, genre] + scores @ values[:-1] + values[-1]
            losses = np.logaddexp(0, found) - labels[:, genre] * found
            return float(losses.sum() + strength / 2 * (values**2).sum())

        expected = minimize(cost, np.zeros(5), method="BFGS", options={"gtol": 1e-6}).x
        np.testing.assert_allclose([*weights[genre], offsets[genre]], expected, atol=2e-4)


@pytest.mark.parametrize("scale", [1.0, 60.0])
def test_far_from_the_start_it_is_still_an_optimum(scale: float) -> None:
    # Sums that are wrong and sure of it: full steps of Newton's method alone go to infinity.
    logits, labels = drawn(200, seed=2)
    logits = scale * (0.5 - labels.astype(np.float32)) + 0.1 * logits
    weights, offsets = fit_cooccurrence(logits, labels)
    scores = expit(logits.astype(np.float64))
    left = expit(logits + scores @ weights.T + offsets) - labels
    assert np.abs(left.T @ scores + weights).max() < 1e-3
    assert np.abs(left.sum(axis=0) + offsets).max() < 1e-3


def test_that_of_a_fold_is_the_fit_on_all_others() -> None:
    logits, labels = drawn(600, seed=6)
    folds = np.random.default_rng(7).integers(0, 3, 600)
    weights, offsets = fit_cooccurrence_by_folds(logits, labels, folds)
    assert weights.shape == (3, 4, 4) and offsets.shape == (3, 4)
    for fold in range(3):
        expected = fit_cooccurrence(logits[folds != fold], labels[folds != fold])
        np.testing.assert_allclose(weights[fold], expected[0], atol=1e-3)
        np.testing.assert_allclose(offsets[fold], expected[1], atol=1e-3)


def test_movies_that_are_taken_in_blocks_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = drawn(500, seed=8)
    expected = fit_cooccurrence(logits, labels)
    monkeypatch.setattr(cooccurrence, "_BLOCK", 15 * 70)  # of 15 products a movie, 70 movies
    found = fit_cooccurrence(logits, labels)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-9)


def test_genres_that_go_together_are_found_and_help_on_other_movies() -> None:
    weights, offsets = fit_cooccurrence(*drawn(4000, seed=3))
    assert weights.shape == (4, 4) and offsets.shape == (4,)
    assert weights[1, 0] > 1.5
    others = [weights[g, h] for g in range(4) for h in range(4) if g != h and (g, h) != (1, 0)]
    assert np.abs(others).max() < 0.7
    logits, labels = drawn(4000, seed=4)
    found = logits + expit(logits) @ weights.T + offsets
    assert log_loss(found[:, 1], labels[:, 1]) < log_loss(logits[:, 1], labels[:, 1]) - 0.02


def test_sums_that_say_all_are_left_nearly_as_they_are() -> None:
    logits, labels = drawn(4000, seed=5, together=0.0)
    weights, offsets = fit_cooccurrence(logits, labels)
    assert np.abs(expit(logits) @ weights.T + offsets).max() < 0.6
