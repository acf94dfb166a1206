from __future__ import annotations

import math
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from genre_lightning.scoring.losses import (
    LOSSES,
    AsymmetricLoss,
    BCELoss,
    FocalLoss,
    asymmetric,
    bce_with_logits,
    build_loss,
    class_weights,
    cross_entropy,
    focal,
)

ALL_LOSSES = [
    pytest.param(bce_with_logits, {}, id="bce"),
    pytest.param(bce_with_logits, {"label_smoothing": 0.1}, id="bce-smoothed"),
    pytest.param(cross_entropy, {}, id="cross_entropy"),
    pytest.param(focal, {}, id="focal"),
    pytest.param(focal, {"gamma": 0.5}, id="focal-gamma-below-1"),
    pytest.param(focal, {"gamma": 0.0}, id="focal-gamma-0"),
    pytest.param(asymmetric, {}, id="asymmetric"),
    pytest.param(asymmetric, {"clip": 0.0}, id="asymmetric-no-clip"),
    pytest.param(asymmetric, {"gamma_neg": 0.5, "gamma_pos": 0.5}, id="asymmetric-gamma-below-1"),
    pytest.param(asymmetric, {"gamma_neg": 0.0, "gamma_pos": 0.0}, id="asymmetric-gamma-0"),
]
COUNTS, NUM_MOVIES = [50, 10, 1, 0, 100], 100


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(7, 5, generator=generator)
    targets = (torch.rand(7, 5, generator=generator) < 0.3).float()
    targets[2] = 0  # a row without genres
    return logits, targets


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def mean_over_cells(logits: Tensor, targets: Tensor, cell) -> float:
    rows, genres = logits.shape
    cells = [
        cell(float(logits[b, g]), float(targets[b, g]), g)
        for b in range(rows)
        for g in range(genres)
    ]
    return sum(cells) / len(cells)


@pytest.mark.parametrize("smoothing", [0.0, 0.1], ids=["hard", "smoothed"])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_bce_is_the_mean_of_its_cells(batch, smoothing, weighted):
    logits, targets = batch
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]) if weighted else None

    def cell(z: float, y: float, g: int) -> float:
        y = y * (1 - smoothing) + 0.5 * smoothing
        w = 1.0 if weights is None else float(weights[g])
        return -(w * y * math.log(sigmoid(z)) + (1 - y) * math.log(1 - sigmoid(z)))

    loss = bce_with_logits(logits, targets, pos_weight=weights, label_smoothing=smoothing)
    assert float(loss) == pytest.approx(mean_over_cells(logits, targets, cell), rel=1e-5)


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_cross_entropy_compares_the_softmax_with_multi_hot_targets(batch, weighted):
    logits, targets = batch
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]) if weighted else torch.ones(5)
    total = 0.0
    for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
        log_sum = math.log(sum(math.exp(z) for z in row))
        total -= sum(
            float(w) * y * (z - log_sum) for z, y, w in zip(row, target, weights, strict=True)
        )
    loss = cross_entropy(logits, targets, pos_weight=weights if weighted else None)
    assert float(loss) == pytest.approx(total / len(logits), rel=1e-5)
    if not weighted:  # the loss of the original recipe
        assert float(loss) == float(torch.nn.CrossEntropyLoss()(logits, targets))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
@pytest.mark.parametrize("alpha", [None, 0.25], ids=["no-alpha", "alpha"])
def test_focal_is_the_mean_of_its_cells(batch, gamma, alpha):
    logits, targets = batch

    def cell(z: float, y: float, g: int) -> float:
        p_t = sigmoid(z) if y == 1 else 1 - sigmoid(z)
        a_t = 1.0 if alpha is None else (alpha if y == 1 else 1 - alpha)
        return -a_t * (1 - p_t) ** gamma * math.log(p_t)

    loss = focal(logits, targets, gamma=gamma, alpha=alpha)
    assert float(loss) == pytest.approx(mean_over_cells(logits, targets, cell), rel=1e-5)


def test_focal_agrees_with_torchvision(batch):
    ops = pytest.importorskip("torchvision.ops")
    logits, targets = batch
    expected = ops.sigmoid_focal_loss(logits, targets, alpha=0.25, gamma=2.0, reduction="mean")
    assert float(focal(logits, targets, alpha=0.25)) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("gamma_neg, gamma_pos", [(4.0, 1.0), (2.0, 0.0), (0.0, 0.0), (0.5, 0.5)])
@pytest.mark.parametrize("clip", [0.0, 0.05, 0.4])
def test_asymmetric_is_the_mean_of_its_cells(batch, gamma_neg, gamma_pos, clip):
    logits, targets = batch

    def cell(z: float, y: float, g: int) -> float:
        p = sigmoid(z)
        if y == 1:
            return -((1 - p) ** gamma_pos) * math.log(p)
        q = max(p - clip, 0.0)
        return -(q**gamma_neg) * math.log(1 - q)

    loss = asymmetric(logits, targets, gamma_neg=gamma_neg, gamma_pos=gamma_pos, clip=clip)
    assert float(loss) == pytest.approx(mean_over_cells(logits, targets, cell), rel=1e-5)


def test_focal_and_asymmetric_reduce_to_bce(batch):
    logits, targets = batch
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    bce = bce_with_logits(logits, targets, pos_weight=weights)
    torch.testing.assert_close(focal(logits, targets, gamma=0.0, pos_weight=weights), bce)
    plain = asymmetric(logits, targets, gamma_neg=0.0, gamma_pos=0.0, clip=0.0, pos_weight=weights)
    torch.testing.assert_close(plain, bce)


@pytest.mark.parametrize("loss, options", ALL_LOSSES)
def test_loss_and_gradient_are_finite_at_extreme_logits(loss, options):
    values = [-1e4, -100.0, -20.0, 0.0, 20.0, 100.0, 1e4]
    logits = torch.tensor([values, values], requires_grad=True)
    targets = torch.tensor([[0.0] * 7, [1.0] * 7])
    result = loss(logits, targets, **options)
    result.backward()
    assert torch.isfinite(result)
    assert logits.grad is not None and torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("loss, options", ALL_LOSSES)
def test_gradient_agrees_with_finite_differences(batch, loss, options):
    logits, targets = (part.double() for part in batch)
    assert torch.autograd.gradcheck(
        lambda z: loss(z, targets, **options), logits.requires_grad_(True)
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("loss, options", ALL_LOSSES)
def test_half_precision_is_computed_in_float32(batch, loss, options, dtype):
    logits, targets = batch
    logits = logits.to(dtype).requires_grad_(True)
    result = loss(logits, targets.to(dtype), **options)
    assert result.dtype == torch.float32
    assert result == loss(logits.detach().float(), targets, **options)
    result.backward()
    assert logits.grad is not None and logits.grad.dtype == dtype


@pytest.mark.parametrize("loss, options", ALL_LOSSES)
def test_integer_targets_are_accepted(batch, loss, options):
    logits, targets = batch
    assert loss(logits, targets.to(torch.uint8), **options) == loss(logits, targets, **options)


@pytest.mark.parametrize("loss, options", ALL_LOSSES)
def test_mismatched_shapes_are_refused(loss, options):
    with pytest.raises(ValueError, match=r"\(3, 5\).*\(3, 1\)"):
        loss(torch.zeros(3, 5), torch.zeros(3, 1), **options)
    with pytest.raises(ValueError, match=r"\(5,\)"):
        loss(torch.zeros(5), torch.zeros(5), **options)


def test_balanced_weights_are_negatives_over_positives_within_bounds():
    weights = class_weights(COUNTS, NUM_MOVIES, "balanced")
    # 50 of 100: 1; 10: 9; 1: 99, lowered to 20; none: 1; all: 0, raised to 1/20
    torch.testing.assert_close(weights, torch.tensor([1.0, 9.0, 20.0, 1.0, 0.05]))
    roots = class_weights(torch.tensor(COUNTS), NUM_MOVIES, "sqrt")
    torch.testing.assert_close(roots, weights.sqrt())


@pytest.mark.parametrize(
    "counts, num_movies, kind, message",
    [
        pytest.param([1], 2, "inverse", "balanced", id="unknown-kind"),
        pytest.param([3], 2, "sqrt", "num_movies=2", id="more-than-all"),
        pytest.param([-1], 2, "sqrt", "num_movies=2", id="negative"),
        pytest.param([[1]], 2, "sqrt", r"\(G,\)", id="two-dimensional"),
    ],
)
def test_invalid_class_weights_are_refused(counts, num_movies, kind, message):
    with pytest.raises(ValueError, match=message):
        class_weights(counts, num_movies, kind)


@pytest.mark.parametrize("kind", ["balanced", "sqrt"])
@pytest.mark.parametrize(
    "name, function",
    [
        pytest.param("bce", bce_with_logits, id="bce"),
        pytest.param("cross_entropy", cross_entropy, id="cross_entropy"),
        pytest.param("focal", focal, id="focal"),
        pytest.param("asymmetric", asymmetric, id="asymmetric"),
    ],
)
def test_modules_agree_with_their_functions(batch, name, function, kind):
    logits, targets = batch
    assert build_loss(name)(logits, targets) == function(logits, targets)
    weighted = build_loss(name, COUNTS, NUM_MOVIES, class_weight=kind)
    weights = class_weights(COUNTS, NUM_MOVIES, kind)
    assert weighted(logits, targets) == function(logits, targets, pos_weight=weights)
    assert weighted(logits, targets) != function(logits, targets)
    # weights follow the module between devices, but stay out of checkpoints
    assert "pos_weight" in dict(weighted.named_buffers())
    assert not weighted.state_dict()
    description: dict[str, Any] = cast("Any", weighted).description
    assert build_loss(**description)(logits, targets) == weighted(logits, targets)
    # counts may always be passed; without class_weight they change nothing
    assert build_loss(name, COUNTS, NUM_MOVIES)(logits, targets) == function(logits, targets)
    with pytest.raises(ValueError, match="genre_counts"):
        build_loss(name, class_weight=kind)


@pytest.mark.parametrize("key", ["alpha", "pos_weight"])
def test_an_unknown_argument_of_a_loss_is_refused(key):
    with pytest.raises(
        ValueError, match=rf"loss\.{key}: bce has no such .*'class_weight', 'label_"
    ):
        build_loss("bce", **{key: 0.5})  # type: ignore[arg-type]


def test_class_weights_are_refused_by_a_loss_without_any(monkeypatch):
    class Unweighted(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()

    monkeypatch.setitem(LOSSES, "unweighted", Unweighted)
    with pytest.raises(ValueError, match="unweighted has no class weights"):
        build_loss("unweighted", COUNTS, NUM_MOVIES, class_weight="sqrt")


def test_modules_pass_on_their_arguments(batch):
    logits, targets = batch
    assert BCELoss(label_smoothing=0.2)(logits, targets) == bce_with_logits(
        logits, targets, label_smoothing=0.2
    )
    assert FocalLoss(gamma=3.0, alpha=0.3)(logits, targets) == focal(
        logits, targets, gamma=3.0, alpha=0.3
    )
    assert AsymmetricLoss(gamma_neg=3.0, gamma_pos=2.0, clip=0.1)(logits, targets) == asymmetric(
        logits, targets, gamma_neg=3.0, gamma_pos=2.0, clip=0.1
    )


@pytest.mark.parametrize(
    "module, options",
    [
        pytest.param(BCELoss, {"label_smoothing": 1.0}, id="label_smoothing"),
        pytest.param(FocalLoss, {"gamma": -1.0}, id="gamma"),
        pytest.param(FocalLoss, {"alpha": 1.5}, id="alpha"),
        pytest.param(AsymmetricLoss, {"gamma_neg": -1.0}, id="gamma_neg"),
        pytest.param(AsymmetricLoss, {"gamma_pos": float("nan")}, id="gamma_pos"),
        pytest.param(AsymmetricLoss, {"clip": 1.0}, id="clip"),
    ],
)
def test_arguments_out_of_range_are_refused_by_name(module, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        module(**options)
