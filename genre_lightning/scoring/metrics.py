"""Multi-label metrics of genre predictions: pure functions, and a collector of logits.

Legend: N movies, G genres. A genre is predicted iff its score >= its threshold, both as float32.
Metrics are computed over the whole split, without rounding or averaging over batches, and are equal
to scikit-learn's with ``zero_division=0``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import (
    multilabel_average_precision,
    multilabel_f1_score,
    multilabel_precision,
    multilabel_recall,
)
from torchmetrics.utilities.data import dim_zero_cat


def genre_metrics(scores: Tensor, targets: Tensor, thresholds: Tensor) -> dict[str, float]:
    """Return the metrics of a whole split as one flat dictionary of floats.

    Args:
        scores: (N, G) floats in [0, 1].
        targets: (N, G) zeros and ones of any dtype.
        thresholds: (G,) floats; a genre is predicted iff score >= threshold.

    Returns:
        ``f1_micro``, ``f1_macro``, ``f1_weighted`` (by support), ``f1_samples`` (mean over movies),
        ``precision_micro``, ``precision_macro``, ``recall_micro``, ``recall_macro`` at
        ``thresholds``; the same names with ``_at_0.5`` at a fixed 0.5; ``map_micro`` (average
        precision of all cells in one ranking) and ``map_macro``. As in scikit-learn with
        ``zero_division=0``, a genre (or movie) without positives and predictions counts as 0 in the
        F1, precision and recall means. ``map_macro`` is the mean over the genres that have a
        positive, since average precision is undefined for the others. Both mAP are 0 if the split
        has no positives.

    Raises:
        ValueError: if shapes disagree, N is 0, or values are out of range.
    """
    scores, targets, thresholds = _prepare(scores, targets, thresholds)
    num_genres = scores.shape[1]
    metrics = _decision_metrics(scores >= thresholds, targets)
    at_half = _decision_metrics(scores >= 0.5, targets)
    metrics |= {f"{name}_at_0.5": value for name, value in at_half.items()}
    precisions = _average_precisions(scores, targets)
    present = ~precisions.isnan()
    metrics["map_macro"] = float(precisions[present].mean()) if bool(present.any()) else 0.0
    metrics["map_micro"] = (
        float(
            multilabel_average_precision(
                scores, targets, num_genres, average="micro", validate_args=False
            )
        )
        if bool(present.any())
        else 0.0
    )
    return metrics


def per_genre_metrics(scores: Tensor, targets: Tensor, thresholds: Tensor) -> dict[str, Tensor]:
    """Return the metrics of each genre.

    Args:
        scores: (N, G) floats in [0, 1].
        targets: (N, G) zeros and ones of any dtype.
        thresholds: (G,) floats; a genre is predicted iff score >= threshold.

    Returns:
        Tensors (G,): ``f1``, ``precision``, ``recall`` (float32, 0 where undefined), ``ap``
        (float32, nan for a genre without positives), ``support`` (int64, positives), ``threshold``
        (float32).

    Raises:
        ValueError: as in ``genre_metrics``.
    """
    scores, targets, thresholds = _prepare(scores, targets, thresholds)
    num_genres = scores.shape[1]
    predicted = (scores >= thresholds).long()
    metric_functions = {
        "f1": multilabel_f1_score,
        "precision": multilabel_precision,
        "recall": multilabel_recall,
    }
    # reshaped, since torchmetrics returns a scalar for a single genre
    table = {
        name: metric(predicted, targets, num_genres, average="none", validate_args=False).reshape(
            num_genres
        )
        for name, metric in metric_functions.items()
    }
    table["ap"] = _average_precisions(scores, targets)
    table["support"] = targets.sum(dim=0)
    table["threshold"] = thresholds
    return table


class LogitCollector(Metric):
    """Collects the logits, targets and folds of a split, over batches and processes.

    ``update(logits (B, K, G), targets (B, G), folds (B,))`` takes the logits of K branches and only
    stores the tensors, so no step waits for the device. ``compute()`` returns (logits (N, K, G)
    float32, targets (N, G) uint8, folds (N,) int64), in rank order under DDP. Ranks can hold
    different numbers of rows, or none. N is 0 if nothing was collected.

    Args:
        num_branches: K, which a rank without batches cannot infer.
        num_genres: G, likewise.
    """

    full_state_update = False
    higher_is_better = None
    is_differentiable = False
    logits: list[Tensor] | Tensor
    targets: list[Tensor] | Tensor
    folds: list[Tensor] | Tensor

    def __init__(self, num_branches: int, num_genres: int) -> None:
        super().__init__()
        self.shape = (num_branches, num_genres)
        for name in ("logits", "targets", "folds"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, logits: Tensor, targets: Tensor, folds: Tensor) -> None:
        """Store a batch: logits (B, K, G) floats, targets (B, G) zeros and ones, folds (B,)."""
        rows = len(folds)
        if logits.shape != (rows, *self.shape) or targets.shape != (rows, self.shape[1]):
            raise ValueError(
                f"logits {tuple(logits.shape)} must be {(rows, *self.shape)} and targets "
                f"{tuple(targets.shape)} {(rows, self.shape[1])}, as there are {rows} folds"
            )
        self._append(logits.detach().float(), targets.detach().to(torch.uint8), folds)

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather the states of all processes; torchmetrics calls this before ``compute``."""
        # by default, torchmetrics sends a 1-d float tensor for a rank without rows, which cannot be
        # concatenated with the others
        if isinstance(self.logits, list) and not self.logits:
            self._append(*self._no_rows())
        super().sync(*args, **kwargs)

    def compute(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return (logits (N, K, G) float32, targets (N, G) uint8, folds (N,) int64)."""
        if isinstance(self.logits, list) and not self.logits:
            return self._no_rows()
        return dim_zero_cat(self.logits), dim_zero_cat(self.targets), dim_zero_cat(self.folds)

    def collected(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``compute()`` with full shapes: torchmetrics squeezes single-element tensors."""
        logits, targets, folds = self.compute()
        return (
            logits.reshape(-1, *self.shape),
            targets.reshape(-1, self.shape[1]),
            folds.reshape(-1),
        )

    def _append(self, logits: Tensor, targets: Tensor, folds: Tensor) -> None:
        for state, rows in ((self.logits, logits), (self.targets, targets), (self.folds, folds)):
            assert isinstance(state, list)
            state.append(rows)

    def _no_rows(self) -> tuple[Tensor, Tensor, Tensor]:
        return (
            torch.zeros((0, *self.shape), dtype=torch.float32, device=self.device),
            torch.zeros((0, self.shape[1]), dtype=torch.uint8, device=self.device),
            torch.zeros(0, dtype=torch.int64, device=self.device),
        )


def _decision_metrics(predicted: Tensor, targets: Tensor) -> dict[str, float]:
    """Return the metrics in ``names.DECISIONS`` of (N, G) predictions and targets."""
    # Equal to torchmetrics to the last bit, but its functions would count eight times instead of
    # once.
    hits = predicted & targets.bool()
    genres = [cells.sum(dim=0) for cells in (hits, predicted, targets)]
    rows = [cells.sum(dim=1) for cells in (hits, predicted, targets)]
    support = genres[2].float()
    f1 = _f1(*genres)
    metrics = {"f1_samples": _mean(_f1(*rows))}
    metrics["f1_micro"] = float(_f1(*(counts.sum() for counts in genres)))
    metrics["f1_macro"] = _mean(f1)
    metrics["f1_weighted"] = float(_safe_divide(support * f1, support.sum()).sum())
    hits_by_genre, *totals_by_genre = (counts.float() for counts in genres)
    all_hits, *all_totals = (counts.sum().float() for counts in genres)
    for name, total in zip(("precision", "recall"), all_totals, strict=True):
        metrics[f"{name}_micro"] = float(_safe_divide(all_hits, total))
    for name, total in zip(("precision", "recall"), totals_by_genre, strict=True):
        metrics[f"{name}_macro"] = _mean(_safe_divide(hits_by_genre, total))
    return metrics


def _f1(hits: Tensor, predicted: Tensor, positives: Tensor) -> Tensor:
    return _safe_divide((2.0 * hits).float(), (predicted + positives).float())


def _mean(values: Tensor) -> float:
    return float((values / len(values)).sum())


def _safe_divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Quotient as float32, 0 where the divisor is 0."""
    return torch.where(denominator > 0, numerator / denominator, 0.0)


def _average_precisions(scores: Tensor, targets: Tensor) -> Tensor:
    """Return (G,) float32; nan for a genre without positives.

    For such a genre torchmetrics returns -0.0, 0.0 or nan, depending on its version.
    """
    num_genres = scores.shape[1]
    values = torch.full((num_genres,), float("nan"), device=scores.device)
    present = (targets.sum(dim=0) > 0).nonzero().squeeze(1)
    if present.numel():
        values[present] = multilabel_average_precision(
            scores[:, present],
            targets[:, present],
            int(present.numel()),
            average="none",
            validate_args=False,
        ).float()
    return values


def _prepare(scores: Tensor, targets: Tensor, thresholds: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Check; return float32 scores, int64 targets, float32 thresholds on the scores' device."""
    if scores.ndim != 2 or scores.shape != targets.shape or 0 in scores.shape:
        raise ValueError(
            f"scores {tuple(scores.shape)} and targets {tuple(targets.shape)} "
            "must both be (N, G), neither empty"
        )
    if thresholds.shape != scores.shape[1:]:
        raise ValueError(
            f"thresholds {tuple(thresholds.shape)} must be (G,) = ({scores.shape[1]},)"
        )
    scores = scores.detach().float()
    # torchmetrics would take scores out of range for logits and apply a sigmoid; nan would silently
    # count as below every threshold
    if not bool(((scores >= 0) & (scores <= 1)).all()):
        raise ValueError("scores must lie in [0, 1] and not be nan; pass sigmoid(logits)")
    if not bool(((targets == 0) | (targets == 1)).all()):
        raise ValueError("targets must be zeros and ones")
    return scores, targets.detach().long(), thresholds.detach().float().to(scores.device)
