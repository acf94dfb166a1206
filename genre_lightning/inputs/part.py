"""The part of a batch that one branch takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

#: Tensors by the name of the network's argument that takes them.
Numbers = Mapping[str, Tensor]


@dataclass(frozen=True)
class Part:
    """The numbers of the P movies, out of a batch's B, that have the branch's column.

    A movie that lacks the column is in no tensor, so the branch does no work for it and adds
    nothing to its logits.

    Attributes:
        rows: (P,) int64, ascending, the batch row of each of the P movies.
        numbers: first as gathered, then as the input's ``prepare`` returns them for the network.
    """

    rows: Tensor
    numbers: Numbers

    def __len__(self) -> int:
        return self.rows.shape[0]

    def map_tensors(self, function: Callable[[Tensor], Tensor]) -> Part:
        """Return the part with a function applied to every tensor, such as a move to a device."""
        numbers = {name: function(value) for name, value in self.numbers.items()}
        return Part(function(self.rows), numbers)


@dataclass(frozen=True)
class JoinedPart:
    """The concatenated parts of K batches, so that one gather and one preparation serve all.

    Attributes:
        part: the numbers of all batches; ``rows`` and offsets count from the start of each batch.
        counts: for each of the K batches, the number of movies that have the column.
        lengths: for each of the numbers, the K batches' lengths along the first dimension.
    """

    part: Part
    counts: Sequence[int]
    lengths: Mapping[str, Sequence[int]]

    def map_tensors(self, function: Callable[[Tensor], Tensor]) -> JoinedPart:
        """Return the joined part with a function applied to every tensor."""
        return replace(self, part=self.part.map_tensors(function))

    def parts(self) -> list[Part]:
        """Return the K parts, as views."""
        row_chunks = self.part.rows.split(list(self.counts))
        numbers = {
            name: value.split(list(self.lengths[name])) for name, value in self.part.numbers.items()
        }
        return [
            Part(rows, {name: chunks[k] for name, chunks in numbers.items()})
            for k, rows in enumerate(row_chunks)
        ]
