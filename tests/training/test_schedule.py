"""Learning rates by step, against the formula."""

from __future__ import annotations

import math

import pytest
import torch

from genre_lightning.training.schedule import constant, warmup_cosine, warmup_cosine_factor


def rates(scheduler: torch.optim.lr_scheduler.LambdaLR, steps: int) -> list[list[float]]:
    found = []
    for _ in range(steps):
        found.append([group["lr"] for group in scheduler.optimizer.param_groups])
        scheduler.optimizer.step()
        scheduler.step()
    return found


def two_groups() -> torch.optim.Optimizer:
    groups = [
        {"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1.0, 0.1)
    ]  # fmt: skip
    return torch.optim.SGD(groups)


@pytest.mark.parametrize("final", [0.0, 0.2])
@pytest.mark.parametrize("total", [2, 10, 101])
def test_warmup_then_cosine(total: int, final: float) -> None:
    actual = rates(warmup_cosine(two_groups(), total, 0.2, final), total + 3)
    warmup = max(1, round(0.2 * total))
    for step, (first, second) in enumerate(actual):
        if step < warmup:
            expected = (step + 1) / warmup
        elif step >= total:
            expected = final
        else:
            angle = math.pi * (step - warmup) / (total - warmup)
            expected = final + (1 - final) * (1 + math.cos(angle)) / 2
        assert first == pytest.approx(expected, abs=1e-12)
        assert second == pytest.approx(0.1 * expected, abs=1e-12)


def test_the_rate_rises_to_the_peak_and_then_falls() -> None:
    factors = [warmup_cosine_factor(step, 100, 0.1, 0.05) for step in range(101)]
    assert factors[0] > 0 and max(factors) == factors[9] == 1.0
    assert factors[9:] == sorted(factors[9:], reverse=True)
    assert factors[100] == pytest.approx(0.05)


def test_constant() -> None:
    assert rates(constant(two_groups(), 5), 8) == [[1.0, 0.1]] * 8
