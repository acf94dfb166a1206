from __future__ import annotations

import math
import sys
import warnings

import numpy as np
import pytest
import torch
import torch.distributed as dist
from sklearn.metrics import average_precision_score, f1_score, precision_score, recall_score
from torch import Tensor

from genre_lightning.scoring.metrics import LogitCollector, genre_metrics, per_genre_metrics
from tests.forking import Command


def random_case(num_rows: int = 200, num_genres: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    scores = torch.rand(num_rows, num_genres, generator=generator)
    targets = (torch.rand(num_rows, num_genres, generator=generator) < scores * 0.6).long()
    return scores, targets, torch.rand(num_genres, generator=generator) * 0.5 + 0.2


def case(name: str) -> tuple[Tensor, Tensor, Tensor]:
    scores, targets, thresholds = random_case()
    if name == "absent-genre":
        targets[:, 1] = 0
    elif name == "all-positive-genre":
        targets[:, 2] = 1
    elif name == "never-predicted-genre":
        thresholds[3] = 1.0
        scores[:, 3] *= 0.4
    elif name == "absent-and-never-predicted":
        targets[:, 1], scores[:, 1] = 0, 0.0
    elif name == "empty-rows":
        targets[:50] = 0
        scores[25:75] = 0.0
    elif name == "ties":
        scores = (scores * 5).round() / 5
        thresholds = torch.tensor([0.2, 0.4, 0.6, 0.8, 1.0, 0.0])
    elif name == "one-row":
        scores, targets = scores[:1], targets[:1]
    elif name == "one-genre":
        scores, targets, thresholds = scores[:, :1], targets[:, :1], thresholds[:1]
    elif name == "no-positive-at-all":
        targets[:] = 0
    else:
        assert name == "plain"
    return scores, targets, thresholds


CASES = [
    "plain",
    "absent-genre",
    "all-positive-genre",
    "never-predicted-genre",
    "absent-and-never-predicted",
    "empty-rows",
    "ties",
    "one-row",
    "one-genre",
    "no-positive-at-all",
]


def oracle(scores: Tensor, targets: Tensor, thresholds: Tensor) -> dict[str, float]:
    truth, values = targets.numpy(), scores.numpy()
    metrics: dict[str, float] = {}
    for suffix, cuts in [("", thresholds.numpy()), ("_at_0.5", np.float32(0.5))]:
        predicted = (values >= cuts).astype(int)
        if truth.shape[1] == 1:
            # scikit-learn takes one column for a binary problem, and averages over both classes.
            results = [f(truth[:, 0], predicted[:, 0], zero_division=0) for f in SCORERS]
            f1, precision, recall = (float(result) for result in results)
            rows = f1_score(
                np.c_[truth, truth], np.c_[predicted, predicted], average="samples", zero_division=0
            )
            metrics |= {f"f1_{a}{suffix}": f1 for a in ("micro", "macro", "weighted")}
            metrics[f"f1_samples{suffix}"] = float(rows)
            metrics |= {f"precision_{a}{suffix}": precision for a in ("micro", "macro")}
            metrics |= {f"recall_{a}{suffix}": recall for a in ("micro", "macro")}
            continue
        for average in ("micro", "macro", "weighted", "samples"):
            metrics[f"f1_{average}{suffix}"] = f1_score(
                truth, predicted, average=average, zero_division=0
            )
        for average in ("micro", "macro"):
            metrics[f"precision_{average}{suffix}"] = precision_score(
                truth, predicted, average=average, zero_division=0
            )
            metrics[f"recall_{average}{suffix}"] = recall_score(
                truth, predicted, average=average, zero_division=0
            )
    present = truth.any(axis=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns and gives 0 without positives
        each = [average_precision_score(t, s) for t, s in zip(truth.T, values.T, strict=True)]
        metrics["map_macro"] = float(np.mean(np.array(each)[present])) if present.any() else 0.0
        metrics["map_micro"] = average_precision_score(truth.ravel(), values.ravel())
    return metrics


SCORERS = (f1_score, precision_score, recall_score)


@pytest.mark.parametrize("name", CASES)
def test_metrics_agree_with_scikit_learn(name: str) -> None:
    expected = oracle(*case(name))
    metrics = genre_metrics(*case(name))
    assert set(metrics) == set(expected)
    assert all(type(value) is float for value in metrics.values())
    assert metrics == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_metrics_per_genre_agree_with_scikit_learn(name: str) -> None:
    scores, targets, thresholds = case(name)
    table = per_genre_metrics(scores, targets, thresholds)
    assert list(table) == ["f1", "precision", "recall", "ap", "support", "threshold"]
    for g in range(scores.shape[1]):
        truth, values = targets[:, g].numpy(), scores[:, g].numpy()
        predicted = (values >= thresholds[g].numpy()).astype(int)
        for key, scorer in zip(("f1", "precision", "recall"), SCORERS, strict=True):
            expected = scorer(truth, predicted, zero_division=0)
            assert float(table[key][g]) == pytest.approx(expected, abs=1e-6), (key, g)
        assert int(table["support"][g]) == truth.sum()
        assert float(table["threshold"][g]) == float(thresholds[g])
        if truth.any():
            expected = average_precision_score(truth, values)
            assert float(table["ap"][g]) == pytest.approx(expected, abs=1e-5), g
        else:
            assert math.isnan(table["ap"][g])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("value", [0.1, 0.3, 0.5, 0.7, 1.0, 0.0])
def test_a_score_at_its_threshold_is_predicted(value: float, dtype: torch.dtype) -> None:
    # 0.3 as float64 is below 0.3 as float32, so both are compared as float32
    scores = torch.tensor([[value]], dtype=dtype)
    table = per_genre_metrics(scores, torch.ones(1, 1), torch.tensor([value]))
    assert float(table["recall"][0]) == 1.0
    below = torch.nextafter(torch.tensor([[value]]), torch.tensor(-1.0))
    if value > 0:
        table = per_genre_metrics(below, torch.ones(1, 1), torch.tensor([value]))
        assert float(table["recall"][0]) == 0.0


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32], ids=str)
def test_targets_of_any_dtype(dtype: torch.dtype) -> None:
    scores, targets, thresholds = random_case()
    expected = genre_metrics(scores, targets, thresholds)
    assert genre_metrics(scores, targets.to(dtype), thresholds) == expected


def test_inputs_are_not_modified() -> None:
    inputs = random_case()
    copies = [part.clone() for part in inputs]
    genre_metrics(*inputs)
    per_genre_metrics(*inputs)
    assert all(torch.equal(a, b) for a, b in zip(inputs, copies, strict=True))


@pytest.mark.parametrize("function", [genre_metrics, per_genre_metrics])
@pytest.mark.parametrize(
    "scores, targets, thresholds, message",
    [
        pytest.param(
            torch.tensor([[-2.0]]), torch.ones(1, 1), torch.ones(1), "sigmoid", id="logits"
        ),
        pytest.param(
            torch.tensor([[float("nan")]]), torch.ones(1, 1), torch.ones(1), "nan", id="nan"
        ),
        pytest.param(torch.ones(1, 1), torch.full((1, 1), 2), torch.ones(1), "ones", id="targets"),
        pytest.param(torch.ones(1, 2), torch.ones(1, 2), torch.ones(1), "thresholds", id="G"),
        pytest.param(torch.ones(1, 2), torch.ones(1, 1), torch.ones(2), r"\(N, G\)", id="shape"),
        pytest.param(torch.ones(0, 2), torch.ones(0, 2), torch.ones(2), "empty", id="no-rows"),
    ],
)
def test_invalid_inputs_are_refused(function, scores, targets, thresholds, message) -> None:
    with pytest.raises(ValueError, match=message):
        function(scores, targets, thresholds)


def test_collector_joins_batches_in_order() -> None:
    scores, targets, _ = random_case()
    logits = torch.stack([scores, -scores], dim=1)
    folds = torch.arange(200) % 5
    collector = LogitCollector(num_branches=2, num_genres=6)
    for rows in torch.arange(200).split(64):
        collector.update(logits[rows].requires_grad_(True), targets[rows].float(), folds[rows])
    joined, joined_targets, joined_folds = collector.compute()
    assert torch.equal(joined, logits) and not joined.requires_grad
    assert torch.equal(joined_targets, targets.to(torch.uint8))
    assert torch.equal(joined_folds, folds)
    collector.reset()
    collector.update(logits[:3].half(), targets[:3], folds[:3])
    assert collector.compute()[0].dtype == torch.float32
    assert collector.compute()[0].shape == (3, 2, 6)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_collector_without_a_batch_is_empty() -> None:
    logits, targets, folds = LogitCollector(num_branches=2, num_genres=4).collected()
    assert logits.shape == (0, 2, 4) and targets.shape == (0, 4) and folds.shape == (0,)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 3), (1, 2, 1), (2, 1, 1)], ids=str)
def test_collector_keeps_the_shape_of_a_single_number(shape: tuple[int, int, int]) -> None:
    rows, branches, genres = shape
    collector = LogitCollector(branches, genres)
    collector.update(torch.ones(shape), torch.ones(rows, genres), torch.zeros(rows).long())
    logits, targets, folds = collector.collected()
    assert logits.shape == shape and targets.shape == (rows, genres) and folds.shape == (rows,)


@pytest.mark.parametrize(
    ("branches", "genres", "folds"),
    [pytest.param(3, 4, 2, id="branches"), pytest.param(2, 3, 2, id="genres"),
     pytest.param(2, 4, 3, id="folds")],
)  # fmt: skip
def test_collector_refuses_mismatched_shapes(branches: int, genres: int, folds: int) -> None:
    logits, targets = torch.zeros(2, branches, genres), torch.zeros(2, genres)
    with pytest.raises(ValueError, match=rf"must be \({folds}, 2, 4\)"):
        LogitCollector(2, 4).update(logits, targets, torch.zeros(folds))


# rows of each rank's batches
RANKS = {"uneven": [[64, 64, 7], [40, 25]], "rank-without-rows": [[150, 50], []]}


def collect_on_rank(rank: int, folder: str) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    try:
        torch.save({name: collect_batches(rank, name) for name in RANKS}, f"{folder}/rank{rank}.pt")
    finally:
        dist.destroy_process_group()


def collect_batches(rank: int, name: str) -> dict[str, object]:
    scores, targets, thresholds = random_case()
    start = sum(RANKS[name][0]) if rank else 0
    collector = LogitCollector(num_branches=1, num_genres=6)
    for length in RANKS[name][rank]:
        rows = slice(start, start + length)
        collector.update(scores[rows, None], targets[rows], torch.arange(200)[rows])
        start += length
    logits, joined_targets, folds = collector.compute()
    joined_scores = logits[:, 0]
    return {
        "scores": joined_scores,
        "targets": joined_targets,
        "folds": folds,
        "metrics": genre_metrics(joined_scores, joined_targets, thresholds),
        "own_rows": sum(len(part) for part in collector.logits),
    }


@pytest.fixture(scope="module")
def rank_results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, object]]]:
    """What each of two real processes of a gloo group collected, by the names in ``RANKS``."""
    folder = tmp_path_factory.mktemp("ranks")
    processes = [Command([__file__, rank, folder], folder) for rank in range(2)]
    try:
        assert [process.wait(timeout=300) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("name", RANKS)
def test_two_processes_agree_with_one(name: str, rank_results) -> None:
    scores, targets, thresholds = random_case()
    for rank in range(2):
        result = rank_results[rank][name]
        assert torch.equal(result["scores"], scores)
        assert torch.equal(result["targets"], targets.to(torch.uint8))
        assert torch.equal(result["folds"], torch.arange(200))
        assert result["metrics"] == genre_metrics(scores, targets, thresholds)
        # compute leaves each rank with its own rows only, to which the next batch is added
        assert result["own_rows"] == sum(RANKS[name][rank])


if __name__ == "__main__":  # one of the two processes of the fixture above
    collect_on_rank(int(sys.argv[1]), sys.argv[2])
