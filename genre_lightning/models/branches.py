"""The branches that a configuration lists, each with its input and network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from genre_lightning.errors import UserError


@dataclass(frozen=True)
class Branch:
    """One file of ``conf/model/branch``.

    Attributes:
        input: ``kind`` and arguments, for :func:`genre_lightning.inputs.table.build_input`.
        network: ``name`` and arguments, for :func:`genre_lightning.models.networks.build_network`.
        lr_scale: factor of the optimizer's learning rate; 0 freezes the branch.
        l2: factor of the penalty of ``optimizer=lbfgs``; other optimizers ignore it.
    """

    input: Mapping[str, Any]
    network: Mapping[str, Any]
    lr_scale: float = 1.0
    l2: float = 1.0


def read_branches(listed: Mapping[str, Any]) -> dict[str, Branch]:
    """Return the branches by name, in their order, without those set to null.

    A branch with ``finetune`` has two forms, ``frozen`` and ``finetuned``, and ``encoder`` names
    the image encoder of both. The finetuned form takes the size, mean and std of its posters from
    the encoder, unless its input sets them. A branch that reads a file can have ``path`` beside
    its ``input`` instead of within it.

    Raises:
        UserError: no branch is listed, or a branch is not made of an input and a network.
    """
    branches = {
        name: _read(name, dict(branch)) for name, branch in listed.items() if branch is not None
    }
    if not branches:
        raise UserError("model/branch lists no branch; list one: 'model/branch=[title_tfidf]'")
    return branches


def _read(name: str, branch: dict[str, Any]) -> Branch:
    """Read one branch and check the keys that all branches have."""
    where = f"model.branches.{name}"
    if "finetune" in branch:
        branch = _resolve_finetune(where, branch)
    if "path" in branch and isinstance(branch.get("input"), Mapping):
        branch["input"] = {**branch["input"], "path": branch.pop("path")}
    for key in ("input", "network"):
        if not isinstance(branch.get(key), Mapping):
            raise UserError(f"{where}.{key} must be a mapping, not {branch.get(key)!r}")
    unknown = sorted(set(branch) - {"input", "network", "lr_scale", "l2"})
    if unknown:
        raise UserError(f"{where}.{unknown[0]}: a branch has input, network, lr_scale and l2")
    return Branch(**branch)


def _resolve_finetune(where: str, branch: dict[str, Any]) -> dict[str, Any]:
    """Replace a branch with ``finetune`` by its form ``frozen`` or ``finetuned``.

    Args:
        where: key of the branch, for messages.
        branch: as configured, with ``finetune``, ``encoder``, ``frozen`` and ``finetuned``.
    """
    from genre_lightning.inputs.encoders.table import resolve

    finetune = branch.pop("finetune")
    if finetune not in (True, False):
        raise UserError(f"{where}.finetune={finetune} must be true or false")
    encoder = branch.pop("encoder")
    frozen, finetuned = branch.pop("frozen"), branch.pop("finetuned")
    form = {**branch, **(finetuned if finetune else frozen)}
    form["input"] = dict(form["input"])
    if not finetune:
        form["input"]["encoder"] = encoder
        return form
    spec = resolve(encoder, trusted=True)
    if spec.size is None or spec.mean is None or spec.std is None:
        raise UserError(f"{where}.encoder={encoder} is not an image encoder")
    for name, value in (("size", spec.size), ("mean", spec.mean), ("std", spec.std)):
        if form["input"].get(name) is None:
            form["input"][name] = list(value)
    form["network"] = {**form["network"], "encoder": encoder}
    return form
