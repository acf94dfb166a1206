"""Imports that leave out what is installed for something else."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import EntryPoints, entry_points
from types import ModuleType

from lightning_utilities.core.imports import RequirementCache
from packaging.requirements import Requirement

from genre_lightning import late_compiler


@contextmanager
def without(*packages: str) -> Iterator[None]:
    """Let Lightning and torchmetrics import as if some packages were not installed.

    torchmetrics imports torchvision, and with it PyTorch's compiler, where it is installed, and
    half of transformers, for metrics that nothing here uses. Both belong to the extra
    ``pretrained``, and would cost every start two seconds; matplotlib, to draw metrics, a third of
    one. What is imported within stays without its features that need them; what is imported later
    finds them as always.

    Args:
        packages: names of projects, as ``"torchvision"``.
    """
    is_met = RequirementCache.__bool__

    def is_met_and_wanted(self: RequirementCache) -> bool:
        if self.requirement and Requirement(self.requirement).name in packages:
            return False
        return is_met(self)

    RequirementCache.__bool__ = is_met_and_wanted  # type: ignore[method-assign]
    try:
        yield
    finally:
        RequirementCache.__bool__ = is_met  # type: ignore[method-assign]


def load_lightning() -> None:
    """Import Lightning and torchmetrics without what this package does not use of them."""
    late_compiler.install()
    with without("torchvision", "transformers", "matplotlib"), _without_signals():
        import torchmetrics  # noqa: F401


def look_for_plugins_once() -> None:
    """Have Lightning look once in a process for packages that add callbacks to every trainer.

    For each trainer it would read what all installed packages say of themselves again: .01 s of
    each job of a sweep.
    """
    from pytorch_lightning.trainer.connectors import callback_connector

    # In the names of the module that defines it, which is of a package that Lightning brings.
    look = vars(callback_connector).get("_load_external_callbacks")
    if look is not None and "entry_points" in look.__globals__:  # not so in every version
        look.__globals__["entry_points"] = _entry_points


@cache
def _entry_points(*, group: str) -> EntryPoints:
    return entry_points(group=group)


@contextmanager
def _without_signals() -> Iterator[None]:
    """Let torchmetrics find a ``scipy.signal`` that needs no patch, without importing it.

    It gives it back a window that a package for audio needs, and imports statistics, splines and
    image filters for that. What is imported later finds SciPy's own, unpatched.
    """
    name = "scipy.signal"
    if name in sys.modules:
        yield
        return
    patched = ModuleType(name)
    vars(patched)["hamming"] = None
    sys.modules[name] = patched
    try:
        yield
    finally:
        del sys.modules[name]
        vars(sys.modules["scipy"]).pop("signal", None)
