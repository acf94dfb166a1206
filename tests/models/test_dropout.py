"""Statistics of dropout and of input dropout."""

from __future__ import annotations

import pytest
import torch

from genre_lightning.models.dropout import Dropout, InputDropout


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("p", [0.001, 0.3, 0.5, 0.9])
def test_dropped_values_are_independent_and_have_the_right_share(
    p: float, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    values = torch.rand(301, 203, dtype=dtype) + 1
    dropped = Dropout(p)(values)
    assert dropped.dtype == dtype and dropped.shape == values.shape
    kept = dropped != 0
    scale = torch.full_like(values, 1 / (1 - p))
    torch.testing.assert_close((dropped / values)[kept], scale[kept], rtol=1e-3, atol=0)
    flat = kept.flatten().double()
    deviation = (p * (1 - p) / len(flat)) ** 0.5
    assert abs(flat.mean() - (1 - p)) < 5 * deviation + 2**-16
    # No correlation within a row or column, or among the values that share 64 random bits.
    for lag in (1, 2, 3, 4, 203):
        pairs = torch.stack([flat[lag:], flat[:-lag]])
        assert abs(torch.corrcoef(pairs)[0, 1]) < 5 * len(flat) ** -0.5


@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (5,), (3, 40, 1)], ids=str)
@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
def test_gradients_flow_only_through_kept_values(p: float, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    values = torch.ones(shape, requires_grad=True)
    dropped = Dropout(p)(values)
    dropped.sum().backward()
    assert values.grad is not None and torch.equal(dropped, values.grad)
    assert set(dropped.flatten().tolist()) <= {0.0: {1.0}, 0.5: {0.0, 2.0}, 1.0: {0.0}}[p]


def test_rows_expanded_to_members_get_different_masks() -> None:
    torch.manual_seed(0)
    dropped = Dropout(0.5)(torch.ones(1, 200).expand(3, -1))
    assert not torch.equal(dropped[0], dropped[1])
    assert not torch.equal(dropped[1], dropped[2])


def test_dropout_does_nothing_in_evaluation() -> None:
    before = torch.get_rng_state()
    values = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Dropout(0.5).eval()(values), values)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("p", [0.0, 0.2, 0.5, 0.99])
def test_all_inputs_are_dropped_equally_often(p: float) -> None:
    torch.manual_seed(0)
    dropout = InputDropout(p)
    actual = [dropout(3, 50, torch.device("cpu")) for _ in range(400)]
    if p == 0.0:
        assert actual == [None] * 400
        return
    counts = torch.zeros(3, 50)
    for kept in actual:
        assert kept is not None and kept.shape == (3, max(1, round(50 * (1 - p))))
        for member, row in enumerate(kept.tolist()):
            assert len(set(row)) == len(row)
            counts[member, row] += 1
    expected = 400 * actual[0].shape[1] / 50
    assert (counts - expected).abs().max() < 5 * expected**0.5
    assert any(
        set(kept[0].tolist()) != set(kept[1].tolist()) for kept in actual if kept is not None
    )


def test_input_dropout_does_nothing_in_evaluation() -> None:
    before = torch.get_rng_state()
    assert InputDropout(0.5).eval()(2, 8, torch.device("cpu")) is None
    assert torch.equal(torch.get_rng_state(), before)
