"""Faster imports of libraries, without optional dependencies that are not needed here."""

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
def hide_packages(*packages: str) -> Iterator[None]:
    """Let Lightning and torchmetrics import as if some packages were not installed.

    If they are installed, torchmetrics imports torchvision, and with it PyTorch's compiler, and
    half of transformers, for metrics that are not used here. Both belong to the extra
    ``pretrained`` and would add two seconds to every start; matplotlib, for drawing metrics, adds a
    third of a second. Modules imported in the block lack the features that need these packages;
    later imports are not affected.

    Args:
        packages: project names, such as ``"torchvision"``.
    """
    is_met = RequirementCache.__bool__

    def is_met_and_not_hidden(self: RequirementCache) -> bool:
        if self.requirement and Requirement(self.requirement).name in packages:
            return False
        return is_met(self)

    RequirementCache.__bool__ = is_met_and_not_hidden  # type: ignore[method-assign]
    try:
        yield
    finally:
        RequirementCache.__bool__ = is_met  # type: ignore[method-assign]


def load_lightning() -> None:
    """Import Lightning and torchmetrics without their dependencies that are not used here."""
    with without_garbage_collection():
        late_compiler.install()
        _load_flop_counter()
        with hide_packages("torchvision", "transformers", "matplotlib"), _without_scipy_signal():
            import torchmetrics  # noqa: F401


def _load_flop_counter() -> None:
    """Import PyTorch's FLOP counter, which Lightning uses, without Triton.

    The counter needs only one class of Triton, a compiler for GPUs. Importing Triton takes .1 s,
    and .5 s at exit, since its extension reports every object that is left.
    """
    jit = ModuleType("triton.runtime.jit")
    vars(jit)["JITFunction"] = type("JITFunction", (), {})
    stand_ins = {name: ModuleType(name) for name in ("triton", "triton.runtime")}
    with _replace_modules({**stand_ins, jit.__name__: jit}):
        import torch.utils.flop_counter  # noqa: F401


@contextmanager
def without_wandb() -> Iterator[None]:
    """Let timm import as if W&B were not installed; importing W&B takes .3 s of CPU time.

    timm needs it only for logging, which is not used here.
    """
    with _replace_modules({"wandb": None}):
        yield


@contextmanager
def late_scikit_learn() -> Iterator[None]:
    """Let sentence-transformers import without scikit-learn and half of SciPy, which saves .8 s.

    It uses only one function, which is replaced by one that imports scikit-learn when called.

    Raises:
        ImportError: in the block, if another version of sentence-transformers uses more.
    """
    package, metrics = ModuleType("sklearn"), ModuleType("sklearn.metrics")
    vars(package).update(__path__=[], metrics=metrics)
    vars(metrics)["pairwise_distances"] = _pairwise_distances
    for module in (package, metrics):
        module.__spec__ = ModuleSpec(module.__name__, None)
    with _replace_modules({"sklearn": package, "sklearn.metrics": metrics}):
        yield


def _pairwise_distances(*arguments: Any, **options: Any) -> Any:
    return importlib.import_module("sklearn.metrics").pairwise_distances(*arguments, **options)


@contextmanager
def _without_scipy_signal() -> Iterator[None]:
    """Let torchmetrics import without ``scipy.signal``.

    torchmetrics restores ``scipy.signal.hamming``, which SciPy has moved, for an audio package. For
    that it would import SciPy's statistics, splines and image filters. Later imports get SciPy's
    real module, without that function.
    """
    patched = ModuleType("scipy.signal")
    vars(patched)["hamming"] = None
    with _replace_modules({"scipy.signal": patched}):
        yield


@contextmanager
def _replace_modules(modules: dict[str, ModuleType | None]) -> Iterator[None]:
    """Replace modules in the block, by None to hide one, unless any is already imported."""
    if not modules.keys().isdisjoint(sys.modules):
        yield
        return
    imported: dict[str, Any] = sys.modules
    imported.update(modules)
    try:
        yield
    finally:
        for name, module in modules.items():
            if imported.get(name, imported) is not module:
                continue
            del imported[name]
            package, _, attribute = name.rpartition(".")
            # An import also sets the module as an attribute of its package.
            if module is not None and vars(imported.get(package, sys)).get(attribute) is module:
                del vars(imported[package])[attribute]
