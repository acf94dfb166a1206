"""Turns Python's garbage collector off while many long-lived objects are created."""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

#: Number of new objects whose collection takes a noticeable time: .01 s.
_MANY_OBJECTS = 50_000
#: Maximum number of frozen objects that are Python's own; version 3.12 starts with 375.
_MAX_OWN_FROZEN = 1_000


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Turn the collector off while the block runs.

    PyTorch and the libraries on top of it create half a million objects. Collections take a sixth
    of the time of importing them, and half of the time of reading a million movies.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        # The frozen objects are counted second, since that takes .03 s in a training. If the
        # program has frozen objects of its own, they must not be unfrozen.
        if gc.get_count()[0] > _MANY_OBJECTS and gc.get_freeze_count() < _MAX_OWN_FROZEN:
            # Moves all objects to the oldest generation, which is collected least often.
            gc.freeze()
            gc.unfreeze()
        gc.enable()


@contextmanager
def freeze_imports() -> Iterator[None]:
    """Import with the collector off, and exclude all existing objects from later collections.

    Each collection would take .1 s or more. There is one after each job of a sweep, and several at
    the end of a command, which take .5 s together. Use this only in commands: a program that uses
    the package may have garbage of its own, which would never be freed.
    """
    num_modules = len(sys.modules)
    with without_garbage_collection():
        yield
    if len(sys.modules) > num_modules:
        gc.freeze()
        _unfreeze_at_exit()


@cache
def _unfreeze_at_exit() -> None:
    atexit.register(_unfreeze_for_triton)


def _unfreeze_for_triton() -> None:
    # Triton's extension prints a line for each of its objects that is left at exit. Nothing else
    # has to be freed, since the process ends.
    if "triton" in sys.modules:
        gc.unfreeze()
