"""Losses over genre logits: pure functions, and small modules that hold their hyperparameters.

Legend: B batch, G genres. Every function takes logits (B, G), any float dtype and any real value,
and targets (B, G) in [0, 1] (multi-hot, or soft), and returns a scalar. Half-precision logits
(float16, bfloat16) are converted to float32, since half-precision log-sigmoids lose the digits that
matter for rare genres. float32 and float64 stay as they are.

``bce_with_logits``, ``focal`` and ``asymmetric`` are means over all B x G cells, so their values
are comparable and a learning rate carries over; ``cross_entropy`` is a mean over the B movies, as
in PyTorch.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASS_WEIGHTS = ("balanced", "sqrt")
#: Largest weight of a positive; the smallest is its inverse (both before the root of "sqrt").
#: Without a limit, a genre of three movies would dominate the loss.
MAX_WEIGHT = 20.0


def class_weights(genre_counts: Tensor | Sequence[int], num_movies: int, kind: str) -> Tensor:
    """Return the weight of each genre's positives relative to its negatives.

    Args:
        genre_counts: (G,) number of training movies that have the genre.
        num_movies: total number of training movies.
        kind: "balanced" is negatives / positives (the positives and negatives of a genre then have
            equal total weight); "sqrt" is the square root of that, a milder form.

    Returns:
        (G,) float32, all finite and positive. A genre without a training movie has weight 1: its
        positives never occur.

    Raises:
        ValueError: for an unknown kind, or counts that are not (G,) or outside [0, num_movies].
    """
    if kind not in CLASS_WEIGHTS:
        raise ValueError(f"class_weight is {kind!r}; choose one of {CLASS_WEIGHTS} or null")
    counts = torch.as_tensor(genre_counts, dtype=torch.float64).cpu()
    if counts.ndim != 1:
        raise ValueError(f"genre_counts has shape {tuple(counts.shape)}; it must be (G,)")
    if bool((counts < 0).any()) or bool((counts > num_movies).any()):
        raise ValueError(
            f"genre_counts must lie between 0 and num_movies={num_movies}: {counts.tolist()}"
        )
    weights = ((num_movies - counts) / counts.clamp(min=1)).clamp(1 / MAX_WEIGHT, MAX_WEIGHT)
    weights = torch.where(counts > 0, weights, torch.ones_like(weights))
    return (weights.sqrt() if kind == "sqrt" else weights).float()


def bce_with_logits(
    logits: Tensor,
    targets: Tensor,
    *,
    pos_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Binary cross-entropy, mean over all cells.

    -[w y log s(z) + (1 - y) log(1 - s(z))], s the sigmoid.

    Args:
        logits: (B, G).
        targets: (B, G) in [0, 1].
        pos_weight: (G,) the w of each genre; 1 when None.
        label_smoothing: e in [0, 1): targets become y (1 - e) + e / 2.
    """
    logits, targets = _prepare(logits, targets)
    if label_smoothing:
        targets = targets * (1 - label_smoothing) + label_smoothing / 2
    return F.binary_cross_entropy_with_logits(
        logits, targets, pos_weight=None if pos_weight is None else pos_weight.to(logits.dtype)
    )


def cross_entropy(logits: Tensor, targets: Tensor, *, pos_weight: Tensor | None = None) -> Tensor:
    """Softmax cross-entropy with unnormalised multi-hot targets: the loss of the original recipe.

    Equal to ``torch.nn.CrossEntropyLoss`` with float targets, i.e. class "probabilities":
    (1 / B) sum_b sum_g -w_g y_bg log softmax(z_b)_g. The rows are not divided by their number of
    genres: a movie with three genres counts three times, and a movie without genres adds nothing
    (but still counts in B). The genres compete for one unit of probability, and a constant added to
    all logits of a row does not change the loss, so sigmoid(z) is not a calibrated probability.

    Args:
        logits: (B, G).
        targets: (B, G), one or more ones per row.
        pos_weight: (G,) the w of each genre; 1 when None.
    """
    logits, targets = _prepare(logits, targets)
    return F.cross_entropy(
        logits, targets, weight=None if pos_weight is None else pos_weight.to(logits.dtype)
    )


def focal(
    logits: Tensor,
    targets: Tensor,
    *,
    gamma: float = 2.0,
    alpha: float | None = None,
    pos_weight: Tensor | None = None,
) -> Tensor:
    """Sigmoid focal loss, mean over all cells.

    Lin et al. 2017, "Focal Loss for Dense Object Detection":
    -[a w y (1 - p)^gamma log p + (1 - a) (1 - y) p^gamma log(1 - p)], p = sigmoid(z); with alpha
    None both a and 1 - a are 1.

    Args:
        logits: (B, G).
        targets: (B, G) in [0, 1].
        gamma: focusing exponent >= 0; 0 is binary cross-entropy.
        alpha: weight of positives in [0, 1]; negatives have 1 - alpha.
        pos_weight: (G,) additional weight of each genre's positives.
    """
    logits, targets = _prepare(logits, targets)
    log_p, log_not_p = F.logsigmoid(logits), F.logsigmoid(-logits)
    # exp(gamma * log) instead of pow: pow(0, gamma) has an infinite gradient for gamma < 1, and
    # infinity times zero is nan
    positive = targets * torch.exp(gamma * log_not_p) * log_p
    negative = (1 - targets) * torch.exp(gamma * log_p) * log_not_p
    if pos_weight is not None:
        positive = positive * pos_weight.to(logits.dtype)
    if alpha is not None:
        positive, negative = alpha * positive, (1 - alpha) * negative
    return -(positive + negative).mean()


def asymmetric(
    logits: Tensor,
    targets: Tensor,
    *,
    gamma_neg: float = 4.0,
    gamma_pos: float = 1.0,
    clip: float = 0.05,
    pos_weight: Tensor | None = None,
) -> Tensor:
    """Asymmetric loss, mean over all cells.

    Ridnik et al. 2021, "Asymmetric Loss For Multi-Label Classification":
    -[w y (1 - p)^gamma_pos log p + (1 - y) q^gamma_neg log(1 - q)], p = sigmoid(z), q = max(p -
    clip, 0): easy negatives are down-weighted more than easy positives, and negatives with p below
    ``clip`` contribute nothing. The authors sum over the cells; this is the mean.

    Args:
        logits: (B, G).
        targets: (B, G) in [0, 1].
        gamma_neg: focusing exponent >= 0 of the negatives.
        gamma_pos: focusing exponent >= 0 of the positives.
        clip: probability margin in [0, 1); 0 turns it off.
        pos_weight: (G,) additional weight of each genre's positives.
    """
    logits, targets = _prepare(logits, targets)
    log_p, log_not_p = F.logsigmoid(logits), F.logsigmoid(-logits)
    positive = targets * torch.exp(gamma_pos * log_not_p) * log_p
    if clip > 0:
        # floor above zero because of pow(0, gamma), see focal(); log(1 - floor) is exactly 0
        floor = torch.finfo(logits.dtype).tiny
        shifted = (torch.sigmoid(logits) - clip).clamp(min=floor)
        negative = shifted.pow(gamma_neg) * torch.log1p(-shifted)
    else:
        negative = torch.exp(gamma_neg * log_p) * log_not_p
    if pos_weight is not None:
        positive = positive * pos_weight.to(logits.dtype)
    return -(positive + (1 - targets) * negative).mean()


class WeightedLoss(nn.Module):
    """Base class of losses with optional class weights.

    Args:
        pos_weight: (G,) weight of each genre's positives; 1 when None.

    Attributes:
        activation: turns logits trained with this loss into scores; a key of
            ``models.fusion.ACTIVATIONS``.
    """

    activation = "sigmoid"
    pos_weight: Tensor | None

    def __init__(self, pos_weight: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("pos_weight", pos_weight, persistent=False)


class BCELoss(WeightedLoss):
    """:func:`bce_with_logits` as a module."""

    def __init__(self, pos_weight: Tensor | None = None, label_smoothing: float = 0.0) -> None:
        super().__init__(pos_weight)
        _check_range("label_smoothing", label_smoothing, 1, open_end=True)
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the scalar loss of logits (B, G) and targets (B, G)."""
        return bce_with_logits(
            logits, targets, pos_weight=self.pos_weight, label_smoothing=self.label_smoothing
        )


class CrossEntropyLoss(WeightedLoss):
    """:func:`cross_entropy` as a module."""

    activation = "softmax"

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the scalar loss of logits (B, G) and targets (B, G)."""
        return cross_entropy(logits, targets, pos_weight=self.pos_weight)


class FocalLoss(WeightedLoss):
    """:func:`focal` as a module."""

    def __init__(
        self, pos_weight: Tensor | None = None, gamma: float = 2.0, alpha: float | None = None
    ) -> None:
        super().__init__(pos_weight)
        _check_range("gamma", gamma, float("inf"))
        if alpha is not None:
            _check_range("alpha", alpha, 1)
        self.gamma = gamma
        self.alpha = alpha

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the scalar loss of logits (B, G) and targets (B, G)."""
        return focal(
            logits, targets, gamma=self.gamma, alpha=self.alpha, pos_weight=self.pos_weight
        )


class AsymmetricLoss(WeightedLoss):
    """:func:`asymmetric` as a module."""

    def __init__(
        self,
        pos_weight: Tensor | None = None,
        gamma_neg: float = 4.0,
        gamma_pos: float = 1.0,
        clip: float = 0.05,
    ) -> None:
        super().__init__(pos_weight)
        _check_range("gamma_neg", gamma_neg, float("inf"))
        _check_range("gamma_pos", gamma_pos, float("inf"))
        _check_range("clip", clip, 1, open_end=True)
        self.gamma_neg = gamma_neg
        self.gamma_pos = gamma_pos
        self.clip = clip

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the scalar loss of logits (B, G) and targets (B, G)."""
        return asymmetric(
            logits,
            targets,
            gamma_neg=self.gamma_neg,
            gamma_pos=self.gamma_pos,
            clip=self.clip,
            pos_weight=self.pos_weight,
        )


#: Losses by the short names in configs and checkpoints. A new loss is one more line here.
LOSSES: dict[str, type[nn.Module]] = {
    "bce": BCELoss,
    "cross_entropy": CrossEntropyLoss,
    "focal": FocalLoss,
    "asymmetric": AsymmetricLoss,
}


def build_loss(
    name: str,
    genre_counts: Sequence[int] | None = None,
    num_movies: int | None = None,
    class_weight: str | None = None,
    **numbers: Any,
) -> nn.Module:
    """Build a loss from plain data, as in ``conf/loss`` and in checkpoints.

    Args:
        name: a key of ``LOSSES``.
        genre_counts: (G,) number of training movies that have each genre; for class weights.
        num_movies: total number of training movies; for class weights.
        class_weight: the ``kind`` of :func:`class_weights`; None for no weights.
        numbers: further arguments of the loss.

    Returns:
        The module; its ``description`` holds the arguments that build it again.

    Raises:
        ValueError: for an unknown name or argument, a value of the wrong type or out of range, or
            class weights without counts.
    """
    if name not in LOSSES:
        raise ValueError(f"loss {name!r} is unknown; choose one of {', '.join(LOSSES)}")
    parameters = inspect.signature(LOSSES[name]).parameters
    known = ["class_weight" if key == "pos_weight" else key for key in parameters]
    _check_numbers(name, numbers, known)
    if genre_counts is not None and not all(type(count) is int for count in genre_counts):
        raise ValueError("genre_counts must be whole numbers")
    arguments = dict(numbers)
    if class_weight is not None:
        if "class_weight" not in known:
            raise ValueError(f"loss.class_weight={class_weight}: {name} has no class weights")
        if genre_counts is None or num_movies is None:
            raise ValueError(
                f"class_weight={class_weight!r} needs genre_counts and num_movies of train"
            )
        arguments["pos_weight"] = class_weights(genre_counts, num_movies, class_weight)
    loss = LOSSES[name](**arguments)
    loss.description = {  # type: ignore[assignment]
        "name": name,
        "genre_counts": None if genre_counts is None else list(genre_counts),
        "num_movies": num_movies,
        "class_weight": class_weight,
        **numbers,
    }
    return loss


def _prepare(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Check the shapes and bring both to one dtype; half precision becomes float32."""
    if logits.shape != targets.shape or logits.ndim != 2:
        raise ValueError(
            f"logits {tuple(logits.shape)} and targets {tuple(targets.shape)} must both be (B, G)"
        )
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    return logits, targets.to(logits.dtype)


def _check_numbers(name: str, numbers: Mapping[str, Any], known: Sequence[str]) -> None:
    for key, value in numbers.items():
        if key not in known:
            raise ValueError(f"loss.{key}: {name} has no such argument; it has {known}")
        if not (value is None or type(value) in (int, float)):
            raise ValueError(f"loss.{key} must be a number, not {value!r}")


def _check_range(name: str, value: float, high: float, *, open_end: bool = False) -> None:
    if not (0 <= value < high if open_end else 0 <= value <= high):
        raise ValueError(f"{name} is {value}; it must lie in [0, {high}{')' if open_end else ']'}")
