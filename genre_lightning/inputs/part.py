"""What one branch takes of a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

#: Tensors by the name of the network's argument they are for.
Numbers = Mapping[str, Tensor]


@dataclass(frozen=True)
class Part:
    """The numbers of the P of a batch's B movies that have the branch's column.

    A movie that lacks the column is in no tensor, so it costs nothing and gets nothing.

    Attributes:
        rows: (P,) int64, the row of the batch that each belongs to, ascending.
        numbers: arguments of the network. As gathered, then as its input's ``prepare`` makes them.
    """

    rows: Tensor
    numbers: Numbers

    def __len__(self) -> int:
        return self.rows.shape[0]

    def map_tensors(self, change: Callable[[Tensor], Tensor]) -> Part:
        """The same part with every tensor changed, such as moved to a device."""
        numbers = {name: change(value) for name, value in self.numbers.items()}
        return Part(change(self.rows), numbers)


@dataclass(frozen=True)
class JoinedPart:
    """The parts of K batches end to end, so that one gather and one preparation serve all.

    Attributes:
        part: all their numbers; ``rows``, and offsets among the numbers, count from where each
            batch begins.
        counts: K numbers of movies that have the column.
        lengths: for each of the numbers, K lengths along the first dimension.
    """

    part: Part
    counts: Sequence[int]
    lengths: Mapping[str, Sequence[int]]

    def map_tensors(self, change: Callable[[Tensor], Tensor]) -> JoinedPart:
        """The same with every tensor changed."""
        return replace(self, part=self.part.map_tensors(change))

    def parts(self) -> list[Part]:
        """The K parts, each a view of its share."""
        rows = self.part.rows.split(list(self.counts))
        numbers = {
            name: value.split(list(self.lengths[name])) for name, value in self.part.numbers.items()
        }
        return [
            Part(own, {name: shares[k] for name, shares in numbers.items()})
            for k, own in enumerate(rows)
        ]
