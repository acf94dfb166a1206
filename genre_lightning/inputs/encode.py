"""Encoding of new movies as the parts of a batch, with the inputs that training used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from genre_lightning.inputs.input import Input, Value, check_prepared
from genre_lightning.inputs.part import Part


def is_absent(value: Value | None) -> bool:
    """Whether a movie with this value lacks the column: the value is None or a blank text."""
    return value is None or (isinstance(value, str) and not value.strip())


def read_column(inputs: Mapping[str, Input], column: str, value: Value | None) -> dict[str, Any]:
    """Read a movie's value for every branch of a column; None for a branch that lacks it.

    As in a dataset, either all branches use the value or none does: a poster that one branch can't
    read, such as one that is too large at this branch's size, is left out by the others as well.

    Raises:
        InputError: one of the branches can't read the value.
        TypeError: the value has a type that no such column has.
    """
    return {
        name: None if is_absent(value) else branch_input.read(value)
        for name, branch_input in inputs.items()
        if branch_input.column == column
    }


def encode_items(
    inputs: Mapping[str, Input],
    items: Mapping[str, Sequence[Any]],
    device: torch.device | str = "cpu",
) -> dict[str, Part]:
    """Encode and prepare B movies as one part per branch.

    Args:
        inputs: the model's inputs, by branch.
        items: for each branch, B results of its input's ``read``, None for a movie that lacks the
            column.
        device: of the model.

    Returns:
        The parts by branch, for :meth:`genre_lightning.models.fusion.Fusion.forward`.

    Raises:
        ValueError: an input's vectors are not what it declares; the message names its class.
    """
    parts = {}
    for name, branch_input in inputs.items():
        rows = [row for row, item in enumerate(items[name]) if item is not None]
        numbers = branch_input.encode([items[name][row] for row in rows])
        moved = {key: value.to(device) for key, value in numbers.items()}
        row_index = torch.tensor(rows, dtype=torch.int64, device=device)
        prepared = branch_input.prepare(moved, None)
        check_prepared(branch_input, prepared, len(rows))
        parts[name] = Part(row_index, prepared)
    return parts
