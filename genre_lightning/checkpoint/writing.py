"""Writing a checkpoint, completely or not at all, with an error that says what went wrong."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genre_lightning.errors import TrainingError
from genre_lightning.files import whole_file


def check_plain(value: Any, where: str = "") -> None:
    """Refuse content that :func:`genre_lightning.checkpoint.archive.check_archive` would refuse.

    Otherwise it would be noticed only after training, when the file is read. Subclasses are refused
    as well: PyTorch stores a float of NumPy as code.

    Args:
        value: content of a checkpoint, or a part of it.
        where: names of the part, for messages.

    Raises:
        TrainingError: naming the part that is neither plain data nor a tensor.
    """
    from torch import Tensor

    kind, problem = type(value), None
    if kind in (dict, OrderedDict):
        for key, item in value.items():
            check_plain(item, f"{where}.{key}" if where else str(key))
            if not isinstance(key, (str, int)):
                problem = f"has a key of {type(key)}"
    elif kind in (list, tuple):
        for number, item in enumerate(value):
            check_plain(item, f"{where}.{number}")
    elif kind not in (str, int, float, bool, type(None), Tensor):
        problem = f"is of {kind}"
    if problem is not None:
        raise TrainingError(
            f"the checkpoint's {where} {problem}, and a checkpoint contains only tensors and plain "
            "numbers, strings, lists and dicts: convert it where it comes from, such as by float() "
            "in a schedule, or in a callback's state_dict"
        )


def write_checkpoint(content: Mapping[str, Any], path: Path) -> None:
    """Write a file that ``torch.load(weights_only=True)`` can read.

    Args:
        content: tensors and plain data.
        path: path of the file.

    Raises:
        FullDiskError: the disk is full.
        OSError: the file could not be written for another reason.
    """
    import torch

    with whole_file(path, "wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            # "unexpected pos 36465024 vs 36464912": after a system error or a second Ctrl-C PyTorch
            # still closes its zip, finds that bytes are missing, and reports that instead.
            if error.__context__ is None:
                raise
            raise error.__context__ from None
