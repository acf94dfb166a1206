"""Decision thresholds fitted on a validation split.

Legend: N movies, G genres. A genre is predicted iff its score >= its threshold, both as float32.

Micro F1 favours one common threshold, macro F1 one per genre. But a dozen positives in validation
are too few to fit a genre's threshold: the cut that happens to suit those twelve does not carry
over to other movies. Method "expected" therefore uses the labels only to calibrate the scores, and
then finds the thresholds that are best under the calibrated probabilities.

Fitted on 466 movies of ml1m's training split and scored on the other 2640, mean of 100 draws, with
scores of a cross-validated logistic regression (``python -m benchmarks.thresholds``):

    method      micro F1   macro F1   mean
    expected       .431       .258    .344
    shared         .442       .234    .338
    shrunk         .426       .243    .335
    per_genre      .378       .249    .314
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from genre_lightning.errors import SettingError

METHODS = ("expected", "shrunk", "shared", "per_genre")
DEFAULT_METHOD = "expected"
#: For "shrunk" and "expected": a genre with this many positives is shrunk by about half.
STRENGTH = 20.0
#: For "expected": the weight of micro F1; macro F1 has the rest.
MICRO_WEIGHT = 0.6
# Probabilities are clipped this far from 0 and 1 before their logit is taken.
_EPS = 1e-6


def fit_thresholds(
    scores: Tensor,
    targets: Tensor,
    method: str = DEFAULT_METHOD,
    *,
    strength: float = STRENGTH,
    micro_weight: float = MICRO_WEIGHT,
) -> Tensor:
    """Fit thresholds (G,) float32, on the device of ``scores``, to a validation split.

    Args:
        scores: (N, G) floats in [0, 1]; they need not be calibrated.
        targets: (N, G) zeros and ones of any dtype.
        method: "shared" is one threshold for all genres, the exact optimum of micro F1.
            "per_genre" is the exact optimum of each genre's own F1.
            "shrunk" shrinks the latter towards the former, in logits: w t_g + (1 - w) t with
            w = n_g / (n_g + strength) and n_g the genre's positives.
            "expected" maximises micro_weight x micro F1 + (1 - micro_weight) x macro F1, both
            expected under probabilities calibrated on this split (see ``calibrate``).
        strength: how strongly "shrunk" and "expected" shrink a genre towards the fit of all genres;
            a genre with this many positives is shrunk by about half.
        micro_weight: in [0, 1]; only used by "expected".

    A threshold lies midway between the two scores it separates, in [0, 1]. If even the highest
    score of a genre is not worth predicting, "expected" puts the threshold midway between that
    score and 1, or at the float after 1 for a score of 1. Genres without positives get the shared
    threshold. Without any positives, all thresholds are 0.5.

    Raises:
        ValueError: for an unknown method, shapes that disagree, N = 0, or values out of range.
    """
    check_threshold_fit(method, micro_weight)
    if not strength >= 0:
        raise ValueError(f"strength is {strength}; it must be at least 0")
    values, labels = _checked_arrays(scores, targets)
    thresholds = np.full(
        values.shape[1], best_f1_cuts(values.reshape(-1, 1), labels.reshape(-1, 1))[0]
    )
    present = labels.any(axis=0)
    if method != "shared" and present.any():
        values, labels, shared = values[:, present], labels[:, present], thresholds[present]
        if method == "expected":
            cuts = best_mixed_cuts(values, calibrate(values, labels, strength), micro_weight)
        else:
            cuts = best_f1_cuts(values, labels)
            if method == "shrunk":
                count = labels.sum(axis=0)
                trust = count / (count + strength)
                cuts = _sigmoid(trust * _logit(cuts) + (1 - trust) * _logit(shared))
        thresholds[present] = cuts
    return torch.from_numpy(thresholds.astype(np.float32)).to(scores.device)


def _checked_arrays(scores: Tensor, targets: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return (N, G) scores as float32 and targets as float64; ValueError if out of range."""
    if scores.ndim != 2 or scores.shape != targets.shape or 0 in scores.shape:
        raise ValueError(
            f"scores {tuple(scores.shape)} and targets {tuple(targets.shape)} "
            "must both be (N, G), neither empty"
        )
    values = scores.detach().cpu().float().numpy()
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError("scores must lie in [0, 1] and not be nan; pass sigmoid(logits)")
    labels = targets.detach().cpu().float().numpy().astype(np.float64)
    if not ((labels == 0) | (labels == 1)).all():
        raise ValueError("targets must be zeros and ones")
    return values, labels


def check_threshold_fit(method: str = DEFAULT_METHOD, micro_weight: float = MICRO_WEIGHT) -> None:
    """Check settings of :func:`fit_thresholds`.

    Raises:
        SettingError: for an unknown method, or ``micro_weight`` outside [0, 1].
    """
    if method not in METHODS:
        raise SettingError(f"threshold method {method!r} is unknown; choose one of {METHODS}")
    if not 0 <= micro_weight <= 1:
        raise SettingError(f"micro_weight={micro_weight!r} is not a number in [0, 1]")


def best_f1_cuts(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return the threshold with the highest F1 for each column; exact, O(N log N).

    Args:
        scores: (N, C) float32 in [0, 1].
        targets: (N, C) floats: zeros and ones, or probabilities (F1 then uses expected counts).

    Returns:
        (C,) float32. Among thresholds with equal F1, the highest; 0.5 for a column without
        positives.
    """
    f1, _, ordered = _f1_of_cuts(scores, targets)
    cuts = _place_cuts(ordered, f1.argmax(axis=0))
    return np.where(targets.any(axis=0), cuts, np.float32(0.5))


def best_mixed_cuts(scores: np.ndarray, targets: np.ndarray, micro_weight: float) -> np.ndarray:
    """Find thresholds that maximise micro_weight x micro F1 + (1 - micro_weight) x macro F1.

    Coordinate ascent: each genre in turn gets its best threshold given the others', until none
    changes. There are two starts, each genre's own optimum and the best common cut through
    ``targets``; the better result is returned.

    Args:
        scores: (N, G) float32 in [0, 1].
        targets: (N, G) floats: zeros and ones, or probabilities (F1 then uses expected counts).
            Every column has positives.
        micro_weight: in [0, 1].

    Returns:
        (G,) float32.
    """
    f1, hits, ordered = _f1_of_cuts(scores, targets)
    num_genres = scores.shape[1]
    genres = np.arange(num_genres)
    counts = np.arange(len(hits))
    positives = hits[-1].sum()
    is_separable = f1 >= 0

    def mixed_f1(num_taken: np.ndarray) -> float:
        micro = 2 * hits[num_taken, genres].sum() / (num_taken.sum() + positives)
        return float(micro_weight * micro + (1 - micro_weight) * f1[num_taken, genres].mean())

    def ascend(num_taken: np.ndarray) -> np.ndarray:
        for _ in range(50):  # about 5 are enough
            previous = num_taken.copy()
            for g in range(num_genres):
                hits_of_others = hits[num_taken, genres].sum() - hits[num_taken[g], g]
                taken_of_others = num_taken.sum() - num_taken[g]
                micro = 2 * (hits_of_others + hits[:, g]) / (taken_of_others + counts + positives)
                objective = micro_weight * micro + (1 - micro_weight) * f1[:, g] / num_genres
                num_taken[g] = np.where(is_separable[:, g], objective, -1.0).argmax()
            if (num_taken == previous).all():
                break
        return num_taken

    pooled = np.sort(targets, axis=None)[::-1]
    pooled_f1 = pooled.cumsum() / (np.arange(1, pooled.size + 1) + pooled.sum())
    common_taken = (targets >= pooled[pooled_f1.argmax()]).sum(axis=0)
    optima = [ascend(f1.argmax(axis=0)), ascend(common_taken)]
    return _place_cuts(ordered, max(optima, key=mixed_f1))


def calibrate(scores: np.ndarray, targets: np.ndarray, strength: float) -> np.ndarray:
    """Return calibrated probabilities (N, G) float64; see :func:`fit_calibration`."""
    return _sigmoid(fit_calibration(scores, targets, strength).logits(scores))


@dataclass(frozen=True)
class Calibration:
    """Maps scores to probabilities: sigmoid(slope (logit(score) - mean) / sd + offset + offsets).

    Attributes:
        mean, sd: of the logits of the scores it was fitted to.
        slope: shared by all genres.
        offset: shared by all genres.
        offsets: (G,) float64, the additional offset of each genre.
    """

    mean: float
    sd: float
    slope: float
    offset: float
    offsets: np.ndarray

    def logits(self, scores: np.ndarray) -> np.ndarray:
        """Return calibrated logits (N, G) float64 of scores (N, G) in [0, 1]."""
        standard = (_logit(scores) - self.mean) / self.sd
        return self.slope * standard + self.offset + self.offsets


def fit_calibration(
    scores: np.ndarray, targets: np.ndarray, strength: float = STRENGTH
) -> Calibration:
    """Fit a map from uncalibrated scores to probabilities.

    One logistic regression over all cells, sigmoid(a logit(score) + b + c_g), after Platt 1999,
    "Probabilistic Outputs for Support Vector Machines". Slope a and offset b are shared by all
    genres. Each genre's own offset c_g has a Gaussian prior around 0 of precision ``strength``, so
    rare genres stay close to the rest. Convex; solved by Newton's method.

    Args:
        scores: (N, G) float32 in [0, 1].
        targets: (N, G) zeros and ones.
        strength: at least 0.
    """
    logits = _logit(scores)
    mean, sd = logits.mean(), max(float(logits.std()), _EPS)
    logits = (logits - mean) / sd
    num_genres = logits.shape[1]
    # parameters: a, b, c_1 ... c_G; the small ridge keeps a finite if the scores separate perfectly
    precision = np.concatenate([[1e-2, 1e-2], np.full(num_genres, strength + 1e-2)])
    parameters = np.concatenate([[1.0, 0.0], np.zeros(num_genres)])

    def calibrated_logits(parameters: np.ndarray) -> np.ndarray:
        return parameters[0] * logits + parameters[1] + parameters[2:]

    def cost(parameters: np.ndarray) -> float:
        z = calibrated_logits(parameters)
        return float(log_losses(z, targets).sum() + (precision * parameters**2).sum() / 2)

    current_cost = cost(parameters)
    for _ in range(100):
        probabilities = _sigmoid(calibrated_logits(parameters))
        residual, curvature = probabilities - targets, probabilities * (1 - probabilities)
        gradient = precision * parameters
        gradient += np.concatenate(
            [[(residual * logits).sum(), residual.sum()], residual.sum(axis=0)]
        )
        hessian = np.diag(
            precision
            + np.concatenate(
                [[(curvature * logits**2).sum(), curvature.sum()], curvature.sum(axis=0)]
            )
        )
        slopes, offsets = (curvature * logits).sum(axis=0), curvature.sum(axis=0)
        hessian[0, 1] = hessian[1, 0] = slopes.sum()
        hessian[0, 2:] = hessian[2:, 0] = slopes
        hessian[1, 2:] = hessian[2:, 1] = offsets
        step = np.linalg.solve(hessian, gradient)
        decrease = float(gradient @ step)
        if decrease < 1e-9:
            break
        # far from the optimum a full step can overshoot: halve it until the cost falls
        step_size = 1.0
        new_cost = cost(parameters - step)
        while new_cost > current_cost - 1e-4 * step_size * decrease and step_size > 1e-9:
            step_size /= 2
            new_cost = cost(parameters - step_size * step)
        parameters, current_cost = parameters - step_size * step, new_cost
    return Calibration(mean, sd, parameters[0], parameters[1], parameters[2:])


def log_losses(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Binary cross-entropies, in an array of the same shape."""
    # The first two terms are log(1 + exp(z)), in a third of the time of np.logaddexp.
    return np.maximum(logits, 0) + np.log1p(np.exp(-np.abs(logits))) - targets * logits


def _f1_of_cuts(
    scores: np.ndarray, targets: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return F1 (N + 1, C) of predicting the k highest scores, their hits, and the sorted scores.

    F1 is -1 where the next score is equal, since no threshold separates the two.
    """
    order = np.argsort(-scores, axis=0, kind="stable")
    ordered = np.take_along_axis(scores, order, axis=0)
    zero_hits = np.zeros((1, scores.shape[1]))
    hits = np.concatenate([zero_hits, np.take_along_axis(targets, order, axis=0).cumsum(axis=0)])
    num_taken = np.arange(len(hits))[:, None]
    f1 = 2 * hits / np.maximum(num_taken + hits[-1], _EPS)
    f1[1:-1][ordered[:-1] == ordered[1:]] = -1
    return f1, hits, ordered


def _place_cuts(ordered: np.ndarray, num_taken: np.ndarray) -> np.ndarray:
    """Thresholds (C,) float32 that admit the first ``num_taken`` scores, midway to the next one.

    ``ordered`` (N, C) is extended by the float after 1 above the first score and 0 below the last.
    """
    above_all = np.full_like(ordered[:1], np.nextafter(np.float32(1), np.float32(2)))
    bounds = np.concatenate([above_all, ordered, np.zeros_like(ordered[:1])])
    columns = np.arange(ordered.shape[1])
    high, low = bounds[num_taken, columns], bounds[num_taken + 1, columns]
    cuts = ((low.astype(np.float64) + high) / 2).astype(np.float32)
    # adjacent float32 values have no number between them: the upper one is then the threshold
    return np.where(cuts > low, cuts, high)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    # np.exp overflows above about 709.
    return 1 / (1 + np.exp(-np.maximum(x, -700)))


def _logit(p: np.ndarray) -> np.ndarray:
    p = np.clip(p.astype(np.float64), _EPS, 1 - _EPS)
    return np.log(p) - np.log1p(-p)
