"""The report's numbers against scikit-learn and plain loops."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from sklearn.metrics import (
    average_precision_score,
    f1_score,
    precision_recall_curve,
    precision_score,
    recall_score,
)

from genre_lightning.report import statistics
from genre_lightning.report.statistics import (
    ap_interval,
    best_constant,
    bootstrap,
    cooccurrence,
    interval,
    num_resamples,
    percentile_interval,
    precision_recall_steps,
    reliability,
    resample_counts,
    row_shares,
)
from genre_lightning.scoring.metrics import genre_metrics


def draw(num_movies: int, prevalence: list[float], seed: int, digits: int = 8):
    generator = np.random.default_rng(seed)
    targets = (generator.random((num_movies, len(prevalence))) < prevalence).astype(np.float32)
    logits = generator.normal(size=targets.shape) + 1.2 * targets - 1.0
    return np.round(1 / (1 + np.exp(-logits)), digits).astype(np.float32), targets


@pytest.mark.parametrize("digits", [8, 1], ids=["distinct scores", "many ties"])
def test_bootstrap_computes_the_metrics_of_each_resample(digits: int):
    # The last genre has one positive, so some resamples have none; the first is never predicted.
    scores, targets = draw(40, [0.5, 0.3, 0.1, 0.0], seed=3, digits=digits)
    targets[7, 3] = 1
    thresholds = np.array([1.0, 0.4, 0.3, 0.5], dtype=np.float32)
    scores[:, 0] *= 0.9
    result = bootstrap(scores, targets, thresholds, resamples=12, seed=5)
    num_without = 0
    for r, (counts,) in enumerate(resample_counts(40, 12, seed=5, max_block=1)):
        rows = np.repeat(np.arange(40), counts.astype(int))
        s, t = scores[rows], targets[rows]
        predicted = (s >= thresholds).astype(int)
        present = t.any(axis=0)
        num_without += not present[3]
        ap = [average_precision_score(t[:, g], s[:, g]) for g in np.flatnonzero(present)]
        expected = {
            **{
                f"f1_{average}": f1_score(t, predicted, average=average, zero_division=0)
                for average in ("micro", "macro", "weighted", "samples")
            },
            **{
                f"{name}_{average}": metric(t, predicted, average=average, zero_division=0)
                for name, metric in (("precision", precision_score), ("recall", recall_score))
                for average in ("micro", "macro")
            },
            "map_micro": average_precision_score(t.ravel(), s.ravel()),
            "map_macro": np.mean(ap),
        }
        assert set(expected) == set(result.metrics)
        for name, value in expected.items():
            assert result.metrics[name][r] == pytest.approx(value, abs=1e-6), name
        assert result.per_genre["ap"][r, present] == pytest.approx(ap, abs=1e-6)
        assert np.isnan(result.per_genre["ap"][r, ~present]).all()
        genre_f1 = f1_score(t, predicted, average=None, zero_division=0)
        assert result.per_genre["f1"][r] == pytest.approx(genre_f1, abs=1e-6)
    assert num_without > 0


def test_bootstrap_has_all_metrics():
    scores, targets = draw(30, [0.5, 0.2], seed=0)
    names = genre_metrics(torch.tensor(scores), torch.tensor(targets), torch.tensor([0.5, 0.5]))
    resampled = bootstrap(scores, targets, np.full(2, 0.5), resamples=2).metrics
    assert set(resampled) == {name for name in names if not name.endswith("_at_0.5")}


def test_bootstrap_does_not_depend_on_the_block_size(monkeypatch: pytest.MonkeyPatch):
    scores, targets = draw(50, [0.4, 0.1], seed=1)
    whole = bootstrap(scores, targets, np.full(2, 0.4), resamples=9, seed=2)
    monkeypatch.setattr(statistics, "_BLOCK_CELLS", 200)  # two resamples at once
    in_blocks = bootstrap(scores, targets, np.full(2, 0.4), resamples=9, seed=2)
    for name, values in whole.metrics.items():
        np.testing.assert_allclose(in_blocks.metrics[name], values, rtol=1e-6, err_msg=name)


def test_a_single_movie_has_no_intervals():
    result = bootstrap(np.full((1, 2), 0.6), np.array([[1, 0]]), np.full(2, 0.5), resamples=3)
    actual = interval(1.0, result.metrics["map_macro"])
    assert actual.value == 1.0 and np.isnan([actual.low, actual.high]).all()


def test_there_is_no_interval_if_all_resamples_agree():
    """For a genre whose three movies are all missed, "0 to 0" would say that F1 is surely 0."""
    scores, targets = draw(60, [0.4, 0.4], seed=0)
    scores[:, 1], targets[:, 1] = 0.1, np.arange(60) < 3
    result = bootstrap(scores, targets, np.full(2, 0.5), resamples=50)
    actual = interval(0.0, result.per_genre["f1"][:, 1])
    assert actual.value == 0 and np.isnan([actual.low, actual.high]).all()
    assert interval(0.5, result.per_genre["f1"][:, 0]).low < 0.5


def test_bootstrap_of_a_split_without_positives():
    scores, _ = draw(20, [0.5, 0.5], seed=0)
    result = bootstrap(scores, np.zeros((20, 2)), np.full(2, 0.5), resamples=3)
    assert np.isnan(result.per_genre["ap"]).all()
    assert all((values == 0).all() for values in result.metrics.values())


def test_resamples_are_draws_with_replacement_and_repeatable():
    (drawn,) = resample_counts(30, 5, seed=4, max_block=9)
    assert all(counts.sum() == 30 and counts.min() >= 0 for counts in drawn)
    assert any((a != b).any() for a, b in itertools.pairwise(drawn))
    in_blocks = list(resample_counts(30, 5, seed=4, max_block=2))
    assert list(map(len, in_blocks)) == [2, 2, 1]
    np.testing.assert_array_equal(drawn, np.concatenate(in_blocks))


def test_interval_mirrors_the_quantiles_and_contains_the_estimate():
    resampled = np.linspace(0.4, 0.6, 1001)
    actual = interval(0.45, resampled)
    assert (actual.low, actual.high) == pytest.approx((0.9 - 0.595, 0.9 - 0.405))
    assert interval(0.02, np.array([0.01, 0.5])).low == 0.0
    beyond = interval(0.1, np.array([0.2, 0.3, np.nan]))
    assert beyond.low <= 0.1 == beyond.high
    assert np.isnan(interval(float("nan"), resampled).low)
    assert np.isnan(interval(0.5, np.array([np.nan])).high)
    assert interval(-0.5, np.array([-0.9, -0.1]), minimum=-1.0).low == pytest.approx(-0.88)


def test_intervals_of_map_cover_the_truth_if_genres_are_rare():
    prevalence = [0.3, 0.1, 0.06, 0.04, 0.03, 0.02]
    scores, targets = draw(100_000, prevalence, seed=0)
    truth = np.mean([average_precision_score(targets[:, g], scores[:, g]) for g in range(6)])
    mirrored = plain = 0
    for trial in range(40):
        scores, targets = draw(250, prevalence, seed=1 + trial)
        metrics = genre_metrics(torch.tensor(scores), torch.tensor(targets), torch.full((6,), 0.5))
        resampled = bootstrap(scores, targets, np.full(6, 0.5), resamples=100, seed=trial).metrics
        actual = interval(metrics["map_macro"], resampled["map_macro"])
        mirrored += actual.low <= truth <= actual.high
        low, high = np.quantile(resampled["map_macro"], [0.025, 0.975])
        plain += low <= truth <= high
    assert mirrored >= 34
    assert plain < mirrored - 8  # why they are mirrored


def draw_rare_genre(num_movies: int, shift: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(N, 1) scores and labels of one genre, of 7 in 300 movies; its logits are higher by shift."""
    generator = np.random.default_rng(seed)
    truth = (generator.random((num_movies, 1)) < 7 / 300).astype(np.float32)
    scores = generator.normal(size=truth.shape) + shift * truth
    return (1 / (1 + np.exp(-scores))).astype(np.float32), truth


def test_intervals_of_ap_cover_the_truth_for_a_genre_of_seven_movies():
    scores, targets = draw_rare_genre(200_000, 2.7, seed=0)
    truth = average_precision_score(targets[:, 0], scores[:, 0])
    by_logits = mirrored = 0
    for trial in range(60):
        scores, targets = draw_rare_genre(300, 2.7, seed=1 + trial)
        value = average_precision_score(targets[:, 0], scores[:, 0])
        result = bootstrap(scores, targets, np.full(1, 0.5), resamples=100, seed=trial)
        resampled = result.per_genre["ap"][:, 0]
        actual = ap_interval(value, resampled, 300)
        by_logits += actual.low <= truth <= actual.high
        actual = interval(value, resampled)
        mirrored += actual.low <= truth <= actual.high
    assert by_logits >= 53
    assert mirrored < by_logits - 6  # why AP has intervals of its own


def test_intervals_of_f1_cover_the_truth_for_a_genre_of_seven_movies():
    threshold = np.full(1, 0.9, np.float32)
    scores, targets = draw_rare_genre(200_000, 4.0, seed=0)
    truth = f1_score(targets[:, 0], scores[:, 0] >= threshold[0])
    plain = mirrored = 0
    for trial in range(60):
        scores, targets = draw_rare_genre(300, 4.0, seed=1 + trial)
        value = f1_score(targets[:, 0], scores[:, 0] >= threshold[0])
        result = bootstrap(scores, targets, threshold, resamples=100, seed=trial)
        resampled = result.per_genre["f1"][:, 0]
        actual = percentile_interval(value, resampled)
        plain += actual.low <= truth <= actual.high
        actual = interval(value, resampled)
        mirrored += actual.low <= truth <= actual.high
    assert plain >= 53
    assert mirrored < plain - 4  # why F1 of a genre has intervals of its own


def test_an_interval_of_ap_is_symmetric_in_its_logit():
    resampled = np.array([0.2, 0.3, 0.5, np.nan])
    actual = ap_interval(0.3, resampled, 50)
    logits = np.log(resampled[:3] / (1 - resampled[:3]))
    ends = np.log(0.3 / 0.7) + 1.96 * np.std(logits) * np.array([-1, 1])
    assert (actual.low, actual.high) == pytest.approx(1 / (1 + np.exp(-ends)), abs=1e-4)
    # 1 has no finite logit, yet can be the upper end.
    best = ap_interval(1.0, np.array([0.8, 1.0]), 50)
    assert 0.5 < best.low < 0.99 and best.high == 1.0
    for value, aps in ((float("nan"), resampled), (1.0, np.ones(3)), (0.5, np.array([np.nan]))):
        assert np.isnan([ap_interval(value, aps, 50).low, ap_interval(value, aps, 50).high]).all()


def test_more_movies_have_fewer_resamples():
    assert num_resamples(777, 18) == 1000
    assert num_resamples(10_000_000, 28) == 100
    assert 100 < num_resamples(10_000, 18) < 1000


def test_best_constant_has_the_highest_micro_f1_of_all_sets():
    _, targets = draw(200, [0.1, 0.45, 0.3, 0.02], seed=6)
    f1 = {
        chosen: f1_score(
            targets, np.tile(np.isin(range(4), chosen), (200, 1)), average="micro", zero_division=0
        )
        for size in range(1, 5)
        for chosen in itertools.combinations(range(4), size)
    }
    best = best_constant(targets.sum(axis=0).astype(int), 200)
    assert tuple(sorted(best.tolist())) == max(f1, key=lambda chosen: f1[chosen])
    assert best[0] == 1


def test_reliability_is_a_plain_count():
    scores, targets = draw(300, [0.3, 0.1], seed=2)
    scores[0, 0], scores[1, 0], scores[2, 0] = 0.0, 1.0, 0.5
    bins = reliability(scores, targets, num_bins=5)
    ece = 0.0
    for k in range(5):
        low, high = k / 5, (k + 1) / 5
        inside = (scores >= low) & ((scores < high) | ((k == 4) & (scores == 1)))
        assert bins.count[k] == inside.sum()
        assert bins.mean_score[k] == pytest.approx(scores[inside].mean(), abs=1e-6)
        assert bins.frequency[k] == pytest.approx(targets[inside].mean(), abs=1e-6)
        ece += inside.mean() * abs(scores[inside].mean() - targets[inside].mean())
    assert bins.ece == pytest.approx(ece, abs=1e-6)
    assert bins.brier == pytest.approx(((scores - targets) ** 2).mean(), abs=1e-6)


def test_reliability_intervals_are_wilsons_and_empty_bins_undefined():
    # 8 of 10: Newcombe 1998, method 3, gives 0.4902 to 0.9433
    bins = reliability(np.full(10, 0.75), np.array([1] * 8 + [0] * 2))
    assert (bins.low[7], bins.high[7]) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert bins.ece == pytest.approx(0.05)
    assert np.isnan(bins.frequency[0]) and bins.count.sum() == 10


@pytest.mark.parametrize("digits", [8, 1], ids=["distinct scores", "many ties"])
def test_precision_recall_steps_are_scikit_learns(digits: int):
    scores, targets = draw(300, [0.2], seed=8, digits=digits)
    recall, precision = precision_recall_steps(scores[:, 0], targets[:, 0])
    their_precision, their_recall, _ = precision_recall_curve(targets[:, 0], scores[:, 0])
    theirs = {round(r, 9): p for r, p in zip(their_recall, their_precision, strict=True)}
    for r, p in zip(recall.tolist(), precision.tolist(), strict=True):
        # where several precisions share a recall, the first reached is the highest
        assert p >= theirs[round(r, 9)] - 1e-9
    area = (np.diff(recall, prepend=0) * precision).sum()
    assert area == pytest.approx(average_precision_score(targets[:, 0], scores[:, 0]))
    assert recall[-1] == 1.0


def test_a_thinned_curve_keeps_its_area():
    scores, targets = draw(5000, [0.3], seed=9)
    recall, precision = precision_recall_steps(scores[:, 0], targets[:, 0], max_points=50)
    assert len(recall) == 50 and (precision <= 1 + 1e-12).all()
    area = (np.diff(recall, prepend=0) * precision).sum()
    assert area == pytest.approx(average_precision_score(targets[:, 0], scores[:, 0]))


def test_cooccurrence_is_a_plain_count():
    _, first = draw(60, [0.5, 0.3, 0.0], seed=1)
    _, second = draw(60, [0.4, 0.2, 0.3], seed=2)
    counts = cooccurrence(first > 0, second > 0)
    for i, j in itertools.product(range(3), range(3)):
        assert counts[i, j] == sum(1 for a, b in zip(first, second, strict=True) if a[i] and b[j])
    shares = row_shares(cooccurrence(first > 0, first > 0))
    assert shares[0, 0] == 1.0 and np.isnan(shares[2]).all()
