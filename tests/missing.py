"""Tests of what an extra brings are skipped where it is not installed."""

from __future__ import annotations

from importlib.util import find_spec

import pytest


def skip_without(*packages: str) -> None:
    """Skip the module that calls this, unless there are these packages.

    Unlike `pytest.importorskip` it imports none, which takes seconds in each process of the tests,
    whichever of them it runs.
    """
    for name in packages:
        if find_spec(name) is None:
            pytest.skip(f"{name} is not installed", allow_module_level=True)
