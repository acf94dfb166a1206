"""Skips the tests of an extra that is not installed."""

from __future__ import annotations

from importlib.util import find_spec

import pytest


def skip_without(*packages: str) -> None:
    """Skip the calling module unless these packages are installed.

    `pytest.importorskip` would import them, which takes seconds in each process of xdist, even in
    one that runs none of these tests.
    """
    for name in packages:
        if find_spec(name) is None:
            pytest.skip(f"{name} is not installed", allow_module_level=True)
