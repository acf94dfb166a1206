"""What every kind of input is in an exported graph."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from genre_lightning.errors import UserError
from genre_lightning.inputs.input import Input
from genre_lightning.inputs.part import Numbers


class ExportError(UserError):
    """A model that can't be exported; the message says what to do."""


class InputGraph(nn.Module, ABC):
    """How one kind of input looks in the graph.

    Attributes:
        sizes: for each of its numbers, by name, its first dimensions, those that vary: "rows" for P
            or a word of its own, the same for those that are always as long.
        inputs: what each of them holds, for whoever uses the graph.
        about: plain data that whoever uses the graph needs to make them.
        files: contents of further files by name, to be written beside the graph.
    """

    sizes: Mapping[str, tuple[str, ...]]
    inputs: Mapping[str, str]
    about: Mapping[str, Any]
    files: Mapping[str, bytes]

    @abstractmethod
    def forward(self, *numbers: Tensor) -> Mapping[str, Tensor]:
        """In the graph: P rows of numbers as given to what the network takes, of P + 1 rows.

        The last one belongs to no movie, so that no operation is ever given none.
        """

    @abstractmethod
    def numbers(self, values: Sequence[Any]) -> dict[str, Tensor]:
        """Outside of it: what the graph takes for P values of the column."""

    @abstractmethod
    def reference(self, values: Sequence[Any]) -> Numbers:
        """By the input itself: what the network is given for P values of the column."""

    @abstractmethod
    def examples(self, count: int) -> list[Any]:
        """Values of the column, to trace and to check with."""


def as_predicted(branch_input: Input, values: Sequence[Any]) -> Numbers:
    """What every prediction gives a network for P values of a column."""
    return branch_input.prepare(
        branch_input.encode([branch_input.read(value) for value in values]), None
    )


def membership(items: Tensor, starts: Tensor) -> Tensor:
    """(P, L) float32: 1 where an item is of a row, the last one that starts at or before it.

    Args:
        items: (L,) numbers, of all P rows, one row's after another's.
        starts: (P,) int64, where each row starts among them.
    """
    place = torch.ones_like(items).cumsum(0) - 1
    row = (place[None, :] >= starts[:, None]).long().sum(0) - 1
    rows = torch.ones_like(starts).cumsum(0) - 1
    return (row[None, :] == rows[:, None]).float()
