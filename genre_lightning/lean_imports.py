"""Imports that leave out what is installed for something else."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from lightning_utilities.core.imports import RequirementCache
from packaging.requirements import Requirement

from genre_lightning import late_compiler
from genre_lightning.garbage import without_garbage_collection


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
    with without_garbage_collection():
        late_compiler.install()
        _load_flop_counter()
        with without("torchvision", "transformers", "matplotlib"), _without_signals():
            import torchmetrics  # noqa: F401


def _load_flop_counter() -> None:
    """Import what Lightning counts operations with, without Triton, of which it wants one class.

    Triton compiles for GPUs. Its import takes .1 s, and the end of a command .5 s: its extension
    complains of each object that is left then.
    """
    jit = ModuleType("triton.runtime.jit")
    vars(jit)["JITFunction"] = type("JITFunction", (), {})
    stand_ins = {name: ModuleType(name) for name in ("triton", "triton.runtime")}
    with _standing_in({**stand_ins, jit.__name__: jit}):
        import torch.utils.flop_counter  # noqa: F401


@contextmanager
def without_wandb() -> Iterator[None]:
    """Let timm import as if W&B were not installed, whose import takes .3 s of a core.

    timm would log to it, which nothing here has it do.
    """
    with _standing_in({"wandb": None}):
        yield


@contextmanager
def late_scikit_learn() -> Iterator[None]:
    """Let sentence-transformers import without scikit-learn, and with it half of SciPy: .8 s.

    It makes use of one function, which imports them once it is called.

    Raises:
        ImportError: within, of another version that makes use of more.
    """
    package, metrics = ModuleType("sklearn"), ModuleType("sklearn.metrics")
    vars(package).update(__path__=[], metrics=metrics)
    vars(metrics)["pairwise_distances"] = _pairwise_distances
    for module in (package, metrics):
        module.__spec__ = ModuleSpec(module.__name__, None)
    with _standing_in({"sklearn": package, "sklearn.metrics": metrics}):
        yield


def _pairwise_distances(*arguments: Any, **options: Any) -> Any:
    return importlib.import_module("sklearn.metrics").pairwise_distances(*arguments, **options)


@contextmanager
def _without_signals() -> Iterator[None]:
    """Let torchmetrics find ``scipy.signal.hamming``, without importing ``scipy.signal``.

    It puts that function back, which SciPy has moved and a package for audio still asks for. To do
    so it would import SciPy's statistics, splines and image filters. Later imports find SciPy's
    own module, without the function.
    """
    patched = ModuleType("scipy.signal")
    vars(patched)["hamming"] = None
    with _standing_in({"scipy.signal": patched}):
        yield


@contextmanager
def _standing_in(modules: dict[str, ModuleType | None]) -> Iterator[None]:
    """Have imports find these modules, None for none of that name, unless they are imported."""
    if not modules.keys().isdisjoint(sys.modules):
        yield
        return
    known: dict[str, Any] = sys.modules
    known.update(modules)
    try:
        yield
    finally:
        for name, module in modules.items():
            if known.get(name, known) is not module:
                continue
            del known[name]
            package, _, own = name.rpartition(".")
            # Where an import puts it, too.
            if module is not None and vars(known.get(package, sys)).get(own) is module:
                del vars(known[package])[own]
