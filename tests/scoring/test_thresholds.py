from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.metrics import f1_score
from torch import Tensor

from genre_lightning.scoring.thresholds import (
    DEFAULT_METHOD,
    METHODS,
    best_f1_cuts,
    best_mixed_cuts,
    calibrate,
    fit_thresholds,
)


def random_case(
    num_rows: int = 120, num_genres: int = 5, seed: int = 0, ties: bool = False
) -> tuple[Tensor, Tensor]:
    """Informative scores; genres from common to rare, the last without positives."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_rows, num_genres, generator=generator) - torch.linspace(
        0.5, 3.0, num_genres
    )
    scores = torch.sigmoid(logits)
    targets = torch.rand(num_rows, num_genres, generator=generator) < scores
    targets[:, -1] = False
    return ((scores * 10).round() / 10 if ties else scores), targets


def f1_at(scores: np.ndarray, positives: np.ndarray, cut: float) -> float:
    predicted = scores >= np.float32(cut)
    hits = int((predicted & positives).sum())
    return 2 * hits / max(int(predicted.sum() + positives.sum()), 1)


def brute_force_f1(scores: Tensor, positives: Tensor) -> float:
    values, truth = scores.flatten().numpy(), positives.flatten().numpy()
    return max(f1_at(values, truth, cut) for cut in [*np.unique(values), 2.0])


@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize("seed", range(3))
def test_shared_has_the_best_micro_f1_of_all_cuts(seed: int, ties: bool) -> None:
    scores, targets = random_case(seed=seed, ties=ties)
    thresholds = fit_thresholds(scores, targets, "shared")
    assert thresholds.shape == (5,) and thresholds.dtype == torch.float32
    assert len(set(thresholds.tolist())) == 1
    reached = f1_score(targets, scores >= thresholds, average="micro")
    assert reached == pytest.approx(brute_force_f1(scores, targets), abs=1e-12)


@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize("seed", range(3))
def test_per_genre_has_the_best_f1_of_all_cuts_for_each_genre(seed: int, ties: bool) -> None:
    scores, targets = random_case(seed=seed, ties=ties)
    thresholds = fit_thresholds(scores, targets, "per_genre")
    for g in range(4):
        reached = f1_score(targets[:, g], scores[:, g] >= thresholds[g])
        expected = brute_force_f1(scores[:, g], targets[:, g])
        assert reached == pytest.approx(expected, abs=1e-12), g


def test_a_threshold_lies_midway_between_the_scores_it_separates() -> None:
    scores = torch.tensor([[0.9], [0.6], [0.4], [0.1]])
    targets = torch.tensor([[1], [1], [0], [0]])
    assert float(fit_thresholds(scores, targets, "per_genre")) == pytest.approx(0.5)
    # if all are predicted: half the lowest score
    assert float(fit_thresholds(scores, torch.ones(4, 1), "per_genre")) == pytest.approx(0.05)


def exhaustive_rows() -> list[tuple[list[float], list[int]]]:
    values = [0.0, 0.5, 1.0]
    return [
        (list(scores), list(truth))
        for scores in itertools.product(values, repeat=3)
        for truth in itertools.product([0, 1], repeat=3)
        if any(truth)
    ]


def test_cuts_are_optimal_for_every_small_case_with_ties_and_scores_of_0_and_1() -> None:
    cases = exhaustive_rows()
    scores = torch.tensor([case[0] for case in cases]).T
    positives = torch.tensor([case[1] for case in cases]).T.bool()
    cuts = best_f1_cuts(scores.numpy(), positives.double().numpy())
    for c in range(len(cases)):
        reached = f1_at(scores[:, c].numpy(), positives[:, c].numpy(), float(cuts[c]))
        assert reached == pytest.approx(brute_force_f1(scores[:, c], positives[:, c])), cases[c]


@pytest.mark.parametrize("value", [0.3, 1.0, 1e-30, 0.5])
def test_neighbouring_floats_are_still_separated(value: float) -> None:
    high = torch.tensor(value)
    low = torch.nextafter(high, torch.tensor(0.0))
    scores, targets = torch.stack([low, high]).unsqueeze(1), torch.tensor([[0], [1]])
    thresholds = fit_thresholds(scores, targets, "per_genre")
    assert (scores >= thresholds).flatten().tolist() == [False, True]


def test_shrunk_lies_between_shared_and_per_genre() -> None:
    scores, targets = random_case(400)
    per_genre = fit_thresholds(scores, targets, "per_genre")
    shared = fit_thresholds(scores, targets, "shared")
    shrunk = fit_thresholds(scores, targets, "shrunk", strength=30.0)
    count = targets.sum(dim=0)
    for g in range(5):
        weight = float(count[g] / (count[g] + 30.0))
        expected = weight * torch.logit(per_genre[g]) + (1 - weight) * torch.logit(shared[g])
        assert float(torch.logit(shrunk[g])) == pytest.approx(float(expected), abs=1e-4)
    unshrunk = fit_thresholds(scores, targets, "shrunk", strength=0.0)
    torch.testing.assert_close(unshrunk, per_genre)
    fully_shrunk = fit_thresholds(scores, targets, "shrunk", strength=1e12)
    torch.testing.assert_close(fully_shrunk, shared)


def mixed_f1(scores: np.ndarray, truth: np.ndarray, cuts: np.ndarray, micro_weight: float) -> float:
    """Weighted mean of micro and macro F1, by a plain loop; labels can be soft."""
    hits, totals = [], []
    for g in range(scores.shape[1]):
        predicted = scores[:, g] >= cuts[g]
        hits.append(2 * float(truth[predicted, g].sum()))
        totals.append(float(predicted.sum()) + float(truth[:, g].sum()))
    macro = sum(h / t for h, t in zip(hits, totals, strict=True)) / len(hits)
    return micro_weight * sum(hits) / sum(totals) + (1 - micro_weight) * macro


@pytest.mark.parametrize("soft", [False, True], ids=["labels", "probabilities"])
@pytest.mark.parametrize("micro_weight", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
def test_no_genre_can_move_its_cut_for_a_better_mixed_f1(ties, micro_weight, soft) -> None:
    for seed in range(10):
        all_scores, targets = random_case(30, 4, seed=seed, ties=ties)
        scores = all_scores[:, :3].numpy()
        truth = scores.astype(np.float64) ** 2 if soft else targets[:, :3].double().numpy()
        truth[0] = 1
        cuts = best_mixed_cuts(scores, truth, micro_weight)
        reached = mixed_f1(scores, truth, cuts, micro_weight)
        for g in range(3):
            for other in [*np.unique(scores[:, g]), 2.0]:
                moved = cuts.copy()
                moved[g] = other
                assert mixed_f1(scores, truth, moved, micro_weight) <= reached + 1e-12
        own = best_f1_cuts(scores, truth)
        assert reached >= mixed_f1(scores, truth, own, micro_weight) - 1e-12
        if micro_weight == 0:
            assert reached == pytest.approx(mixed_f1(scores, truth, own, 0.0))


@pytest.mark.parametrize("strength", [0.0, 5.0, 1e6])
def test_calibration_is_the_optimum_that_scipy_finds(strength: float) -> None:
    all_scores, targets = random_case(150, 5)
    scores, truth = all_scores[:, :4].numpy() ** 2, targets[:, :4].double().numpy()
    logits = np.log(scores / (1 - scores)).astype(np.float64)
    logits = (logits - logits.mean()) / logits.std()

    def cost(x: np.ndarray) -> float:
        p = 1 / (1 + np.exp(-(x[0] * logits + x[1] + x[2:])))
        likelihood = (truth * np.log(p) + (1 - truth) * np.log(1 - p)).sum()
        return strength / 2 * (x[2:] ** 2).sum() + 0.005 * (x**2).sum() - likelihood

    x = minimize(cost, np.zeros(6), method="BFGS").x
    expected = 1 / (1 + np.exp(-(x[0] * logits + x[1] + x[2:])))
    np.testing.assert_allclose(calibrate(scores, truth, strength), expected, atol=1e-4)


def test_calibrated_probabilities_sum_to_the_positives_of_each_genre() -> None:
    all_scores, targets = random_case(300, 5)
    truth = targets[:, :4].double().numpy()
    for scores in (all_scores[:, :4].numpy() ** 3, all_scores[:, :4].numpy() ** 0.2):
        probabilities = calibrate(scores, truth, 0.0)
        np.testing.assert_allclose(probabilities.sum(axis=0), truth.sum(axis=0), rtol=1e-2)


@pytest.mark.parametrize(
    "scores, truth",
    [
        pytest.param(np.eye(6)[:, :2], np.eye(6)[:, :2], id="perfect-scores"),
        pytest.param(np.full((6, 2), 0.5), np.eye(6)[:, :2], id="uninformative-scores"),
        pytest.param(1 - np.eye(6)[:, :2], np.eye(6)[:, :2], id="inverted-scores"),
        pytest.param(np.full((6, 2), 1.0), np.ones((6, 2)), id="all-positive"),
    ],
)
def test_calibration_converges_for_degenerate_scores(scores, truth) -> None:
    probabilities = calibrate(scores.astype(np.float32), truth, 1.0)
    assert np.isfinite(probabilities).all()
    assert ((probabilities >= 0) & (probabilities <= 1)).all()


def test_expected_never_predicts_a_genre_that_would_lower_f1() -> None:
    # Constant scores: a genre is predicted for all movies or none. Predicting the rare one for
    # all would lower micro F1 from 0.94 to 0.63.
    scores = torch.tensor([[0.7, 1.0]]).expand(100, 2)
    targets = torch.zeros(100, 2)
    targets[:90, 0] = targets[:1, 1] = 1
    thresholds = fit_thresholds(scores, targets, "expected")
    assert (scores[0] >= thresholds).tolist() == [True, False]
    assert 1 < float(thresholds[1]) < 1.000001


def test_expected_hardly_depends_on_the_scale_of_the_logits() -> None:
    scores, targets = random_case(400)
    stretched = torch.sigmoid(3 * torch.logit(scores) + 2)
    predicted = scores >= fit_thresholds(scores, targets, "expected")
    predicted_stretched = stretched >= fit_thresholds(stretched, targets, "expected")
    assert float((predicted != predicted_stretched).float().mean()) < 0.005


def test_expected_has_the_best_sum_of_micro_and_macro_f1_on_held_out_movies() -> None:
    # Genres from common to rare, and scores of a model that knows half of what decides them; 60
    # repeats, so that no single draw decides the comparison.
    mean: dict[str, np.ndarray] = {method: np.zeros(2) for method in METHODS}
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        tendency = torch.linspace(0.0, 4.0, 10)
        known, unknown = torch.randn(2, 1600, 10, generator=generator)
        truth = torch.sigmoid(known + unknown - tendency)
        targets = torch.rand(1600, 10, generator=generator) < truth
        scores = torch.sigmoid(known - tendency)
        fit, rest = slice(400), slice(400, None)
        for method in METHODS:
            predicted = scores[rest] >= fit_thresholds(scores[fit], targets[fit], method)
            mean[method] += [
                f1_score(targets[rest], predicted, average=average, zero_division=0)
                for average in ("micro", "macro")
            ]
    micro, macro = ({method: mean[method][i] / 60 for method in METHODS} for i in (0, 1))
    assert micro["expected"] > micro["per_genre"] and micro["expected"] > micro["shared"] - 0.015
    assert macro["expected"] > macro["per_genre"] and macro["expected"] > macro["shared"] + 0.01
    assert max(METHODS, key=lambda method: micro[method] + macro[method]) == "expected"


@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_genre_without_positives_takes_the_shared_threshold(method: str) -> None:
    scores, targets = random_case()
    shared = fit_thresholds(scores, targets, "shared")
    assert float(fit_thresholds(scores, targets, method)[-1]) == pytest.approx(float(shared[-1]))


@pytest.mark.parametrize("method", sorted(METHODS))
def test_without_positives_all_thresholds_are_one_half(method: str) -> None:
    thresholds = fit_thresholds(torch.rand(9, 3), torch.zeros(9, 3), method)
    torch.testing.assert_close(thresholds, torch.full((3,), 0.5))


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize(
    "scores, targets",
    [
        pytest.param(torch.zeros(4, 2), torch.ones(4, 2), id="all-0"),
        pytest.param(torch.ones(4, 2), torch.eye(4)[:, :2], id="all-1"),
        pytest.param(torch.full((1, 1), 0.3), torch.ones(1, 1), id="one-cell"),
        pytest.param(torch.eye(4)[:, :2], torch.eye(4)[:, :2], id="perfect-and-saturated"),
    ],
)
def test_degenerate_scores_give_finite_thresholds_in_range(
    method: str, scores: Tensor, targets: Tensor
) -> None:
    thresholds = fit_thresholds(scores, targets, method)
    assert bool(((thresholds >= 0) & (thresholds <= 1.000001)).all())
    if method in ("shared", "per_genre"):
        expected = f1_score(targets, torch.ones_like(targets), average="micro")
        assert f1_score(targets, scores >= thresholds, average="micro") >= expected - 1e-9


@pytest.mark.parametrize("method", sorted(METHODS))
def test_the_order_of_the_movies_and_the_dtype_do_not_matter(method: str) -> None:
    scores, targets = random_case(ties=True)
    expected = fit_thresholds(scores, targets, method)
    order = torch.randperm(len(scores), generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(fit_thresholds(scores[order], targets[order], method), expected)
    assert torch.equal(fit_thresholds(scores.double(), targets.float(), method), expected)


def test_the_default_is_one_of_the_methods() -> None:
    scores, targets = random_case()
    assert torch.equal(
        fit_thresholds(scores, targets), fit_thresholds(scores, targets, DEFAULT_METHOD)
    )


@pytest.mark.parametrize(
    "scores, targets, options, message",
    [
        pytest.param([[0.5]], [[1]], {"method": "best"}, "shared", id="method"),
        pytest.param([[0.5]], [[1]], {"strength": -1.0}, "strength", id="strength"),
        pytest.param([[0.5]], [[1]], {"micro_weight": 1.1}, "micro_weight", id="micro_weight"),
        pytest.param([[3.0]], [[1]], {}, "sigmoid", id="logits"),
        pytest.param([[float("nan")]], [[1]], {}, "nan", id="nan"),
        pytest.param([[0.5]], [[2]], {}, "targets", id="targets"),
        pytest.param([[0.5]], [[1, 0]], {}, r"\(N, G\)", id="shape"),
        pytest.param([[]], [[]], {}, "empty", id="empty"),
    ],
)
def test_invalid_inputs_are_refused(scores, targets, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        fit_thresholds(torch.tensor(scores), torch.tensor(targets), **options)
