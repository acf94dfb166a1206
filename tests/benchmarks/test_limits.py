from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from benchmarks.limits import OTHER, OUTSIDE, ByteCounter, main, min_seconds_by_part, part_of

X, Y = torch.ones(100), torch.ones(100)


@pytest.mark.parametrize(
    ("run", "count"),
    [
        pytest.param(lambda: X + Y, 1200, id="two reads and one write"),
        pytest.param(lambda: X.clone().mul_(2), 800 + 800, id="in place"),
        pytest.param(lambda: torch.empty(100).zero_(), 400 + 400, id="zeros read nothing"),
        pytest.param(lambda: X.view(10, 10).t()[:3], 0, id="a view moves nothing"),
        pytest.param(lambda: X.double(), 400 + 800, id="another dtype"),
        pytest.param(lambda: torch.stack([X, Y]), 800 + 800, id="list of tensors"),
        pytest.param(lambda: torch.addcmul(X, X, Y), 4 * 400, id="repeated argument counts twice"),
    ],
)
def test_bytes_of_operations(run: Callable[[], Tensor], count: int) -> None:
    with ByteCounter() as counter:
        run()
    assert sum(counter.bytes.values()) == count


def test_optimizer_reads_four_numbers_per_weight_and_writes_three() -> None:
    weight = nn.Parameter(torch.ones(1000))
    optimizer = torch.optim.AdamW([weight], fused=True)
    weight.grad = torch.ones(1000)
    optimizer.step()
    with ByteCounter() as counter:
        optimizer.step()
    rest = counter.bytes["_fused_adamw_"] - 7 * 4 * 1000
    assert 0 <= rest < 64  # the step count


def test_min_time_is_that_of_the_slower_limit() -> None:
    a, b = torch.ones(64, 32), torch.ones(32, 16)
    flop, size = 2 * 64 * 32 * 16, 4 * (64 * 32 + 32 * 16 + 64 * 16)
    for rate, bandwidth, seconds in ((1.0, 1e9, flop / 1), (1e9, 1.0, size / 1)):
        parts = min_seconds_by_part(lambda: torch.mm(a, b), rate, bandwidth)
        assert parts == {"linear layers": (flop, size, seconds)}


def test_operations_of_a_backward_pass_are_counted() -> None:
    conv, x = nn.Conv2d(3, 8, 3, padding=1, bias=False), torch.ones(2, 3, 16, 16)
    x.requires_grad_()
    flop, _, _ = min_seconds_by_part(lambda: conv(x).sum().backward(), 1.0, 1.0)["convolutions"]
    assert flop == 3 * 2 * (2 * 8 * 16 * 16) * (3 * 3 * 3)


def test_operation_belongs_to_its_caller() -> None:
    assert part_of(["aten::fill_", "aten::_embedding_bag_dense_backward"]) == "sparse layers"
    assert part_of(["aten::native_batch_norm_backward"]) == "BatchNorm"
    assert part_of(["aten::fill_", "aten::zeros"]) == OTHER


@pytest.mark.slow
def test_the_report(
    tiny_overrides: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    main(["-n", "1", "--steps", "1", "--", *tiny_overrides()[1:]])
    lines = capsys.readouterr().out.splitlines()
    line = json.loads(lines[-1])
    assert line["n"] == 1 and line["aim"] is None and 0 < line["ratio"] < 1
    parts = line["profiled_ms"]
    assert {"convolutions", "BatchNorm", "sparse layers", "optimizer", OUTSIDE} <= set(parts)
    assert all(value > 0 for value in parts.values())
    table = [row for row in lines if row.startswith("| ") and not row.startswith("| ---")]
    assert len({row.count("|") for row in table[5:]}) == 1
