"""Imports that leave out what is installed for something else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lightning_utilities.core.imports import RequirementCache
from packaging.requirements import Requirement


@contextmanager
def without(*packages: str) -> Iterator[None]:
    """Let Lightning and torchmetrics import as if some packages were not installed.

    torchmetrics imports torchvision, and with it PyTorch's compiler, where it is installed, and
    half of transformers, for metrics that nothing here uses. Both belong to the extra
    ``pretrained``, and would cost every start two seconds. What is imported within stays without
    its features that need them; what is imported later finds them as always.

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
    with without("torchvision", "transformers"):
        import torchmetrics  # noqa: F401
