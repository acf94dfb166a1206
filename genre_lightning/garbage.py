"""Turns Python's garbage collector off while many objects are made that stay."""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

#: New objects of which a collection would be felt: .01 s.
_MANY = 50_000
#: Frozen objects that may be Python's own: version 3.12 begins with 375.
_OWN = 1_000


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Turn the collector off while the block runs, where it is on.

    PyTorch and what builds on it are half a million objects: collections take a sixth of the time
    of their imports. Of reading a million movies they take half.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        # Counting what is frozen takes .03 s in a training. Nothing is thawed that someone froze.
        if gc.get_count()[0] > _MANY and gc.get_freeze_count() < _OWN:
            # Moves all to the oldest generation, which is collected least.
            gc.freeze()
            gc.unfreeze()
        gc.enable()


@contextmanager
def kept_imports() -> Iterator[None]:
    """Import with the collector off, and leave what is there by now out of later collections.

    Each of these would take .1 s and more. One comes after each job of a sweep, and several as a
    command ends, .5 s together. For commands alone: a program that uses the package may have
    garbage of its own, which would stay.
    """
    known = len(sys.modules)
    with without_garbage_collection():
        yield
    if len(sys.modules) > known:
        gc.freeze()
        _free_at_the_end()


@cache
def _free_at_the_end() -> None:
    atexit.register(_free_if_missed)


def _free_if_missed() -> None:
    # Triton's extension prints a line for each of its objects that is left then. Nothing else has
    # to be freed: the process ends.
    if "triton" in sys.modules:
        gc.unfreeze()
