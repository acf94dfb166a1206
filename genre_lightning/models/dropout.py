"""Dropout that draws the numbers of PyTorch's in less time, and two that save arithmetic."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

#: PyTorch makes a number in [0, 1) of the last so many of 64 random bits.
_BITS = 53
_MASK = np.int64(2**_BITS - 1)
#: Bounds of whole numbers of 64 random bits, as ``Tensor.random_`` takes them.
_ALL_BITS = (torch.iinfo(torch.int64).min, None)
#: Numbers drawn at once: in 8 bytes each they stay in a core's cache.
_CHUNK = 65_536


class Dropout(nn.Dropout):
    """:class:`torch.nn.Dropout`, number for number.

    On a CPU where PyTorch draws each of its numbers by itself (any but Intel's), that takes most of
    a training step over vectors of encoders, 12 ns a number. Here the random bits are drawn many at
    a time and compared as whole numbers, which gives the same answers from the same bits.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or not 0 < self.p < 1 or not _draws_alike(input):
            return super().forward(input)
        return input * _noise(input, 1 - self.p)


class MemberDropout(nn.Dropout):
    """Zeroes hidden units of members that are computed side by side, the same places in all.

    Their units have nothing in common, so what is drawn once serves them all. On a CPU four numbers
    are made of 64 random bits, which takes a fifth of :class:`Dropout`'s time.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(..., P, H) hidden units, some of them zeroed and the others enlarged."""
        if not self.training or not 0 < self.p < 1:
            return super().forward(input)
        if input.device.type != "cpu":
            return input * super().forward(input.new_ones(input.shape[-2:]))
        return input * _coarse_noise(input, 1 - self.p)


class InputDropout(nn.Module):
    """Leaves out inputs of a layer, the same ones for all rows of a batch.

    So the layer need not be computed for them: with 0.5 it has half of its arithmetic (Graham,
    Reizenstein & Robinson 2015, "Efficient batchwise dropout training using submatrices").

    Args:
        p: share of the inputs that are left out, in [0, 1).
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, members: int, width: int, device: torch.device) -> Tensor | None:
        """(M, K) int64, the inputs of 0 to ``width`` that each member keeps; None for all."""
        kept = max(1, round(width * (1 - self.p)))
        if not self.training or kept == width:
            return None
        orders = [torch.randperm(width, device=device) for _ in range(members)]
        return torch.stack(orders)[:, :kept]


#: Modules that draw at random in training.
DROPOUTS = (nn.Dropout, InputDropout)


def _coarse_noise(members: Tensor, kept: float) -> Tensor:
    """As :func:`_noise`, for one of the members, of 16 bits a number."""
    shape = members.shape[-2:]
    drawn = torch.empty(-(-shape.numel() // 4), dtype=torch.int64).random_(*_ALL_BITS)
    below = max(1, round(kept * 2**16))
    bits = drawn.numpy().view(np.uint16)[: shape.numel()]
    noise = torch.from_numpy(bits < below).view(shape).to(members.dtype)
    return noise.mul_(2**16 / below)


def _draws_alike(values: Tensor) -> bool:
    return (
        values.device.type == "cpu" and values.dtype == torch.float32 and _torch_draws_one_by_one()
    )


@cache
def _torch_draws_one_by_one() -> bool:
    """Whether PyTorch draws as :func:`_noise` does: with MKL on Intel's it has a faster way."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = torch.empty(1000).bernoulli_(0.7).div_(0.7)
        after = torch.get_rng_state()
        torch.manual_seed(0)
        ours = _noise(theirs, 0.7)
        return torch.equal(ours, theirs) and torch.equal(torch.get_rng_state(), after)


def _noise(like: Tensor, kept: float) -> Tensor:
    """1 / kept with the probability ``kept``, else 0; float32 of the shape of ``like``."""
    noise = torch.empty(like.shape)
    flat = noise.view(-1).numpy()
    drawn = torch.empty(min(len(flat), _CHUNK), dtype=torch.int64)
    below = np.int64(math.ceil(kept * 2**_BITS))
    for start in range(0, len(flat), _CHUNK):
        part = drawn[: len(flat) - start].random_()
        # By NumPy, which compares in a third of the time.
        bits = part.numpy()
        np.bitwise_and(bits, _MASK, out=bits)
        np.copyto(flat[start : start + _CHUNK], bits < below)
    return noise.div_(kept)
