"""The interface of every kind of input in an exported graph."""

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
    """One kind of input in the graph.

    Attributes:
        sizes: for each of the input's numbers, by name, the names of its leading dimensions of
            variable size: "rows" for P, or another word. Equal names mean equal sizes.
        inputs: a description of each of these numbers for users of the graph.
        about: plain data that users of the graph need to compute these numbers.
        files: contents of further files, by name, to write beside the graph.
    """

    sizes: Mapping[str, tuple[str, ...]]
    inputs: Mapping[str, str]
    about: Mapping[str, Any]
    files: Mapping[str, bytes]

    @abstractmethod
    def forward(self, *numbers: Tensor) -> Mapping[str, Tensor]:
        """In the graph: turn P rows of numbers into P + 1 rows of network arguments.

        The last row belongs to no movie; with it, no operation gets an empty tensor.
        """

    @abstractmethod
    def numbers(self, values: Sequence[Any]) -> dict[str, Tensor]:
        """Outside of the graph: compute its inputs for P values of the column."""

    @abstractmethod
    def reference(self, values: Sequence[Any]) -> Numbers:
        """The network arguments that the input itself computes for P values of the column."""

    @abstractmethod
    def examples(self, count: int) -> list[Any]:
        """Example values of the column for tracing and checking the graph."""


def prediction_arguments(branch_input: Input, values: Sequence[Any]) -> Numbers:
    """The network arguments that prediction computes for P values of a column."""
    return branch_input.prepare(
        branch_input.encode([branch_input.read(value) for value in values]), None
    )


def membership_matrix(items: Tensor, starts: Tensor) -> Tensor:
    """(P, L) float32: 1 where an item belongs to a row, the last one that starts at or before it.

    Args:
        items: (L,) numbers of all P rows, concatenated.
        starts: (P,) int64, where each row starts among the items.
    """
    position = torch.ones_like(items).cumsum(0) - 1
    row = (position[None, :] >= starts[:, None]).long().sum(0) - 1
    rows = torch.ones_like(starts).cumsum(0) - 1
    return (row[None, :] == rows[:, None]).float()
