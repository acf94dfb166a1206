"""Creating objects with the garbage collector off, and finding the garbage among them later."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Iterator

import pytest

from genre_lightning.garbage import without_garbage_collection


class Ring:
    """Refers to itself, so only the garbage collector frees it."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture
def unfrozen() -> Iterator[None]:
    """No object is frozen, as in a user's process; afterwards all are frozen again."""
    gc.unfreeze()
    yield
    gc.freeze()


@pytest.mark.usefixtures("unfrozen")
def test_no_collection_runs_inside_and_garbage_is_found_afterwards() -> None:
    collections: list[object] = []
    before, inside = Ring(), None
    rings = [weakref.ref(before)]
    with without_garbage_collection():
        gc.callbacks.append(lambda phase, info: collections.append(info))
        try:
            del before
            inside = Ring()
            rings.append(weakref.ref(inside))
            inside = None
            created: list[list[int]] = [[] for _ in range(100_000)]
        finally:
            gc.callbacks.pop()
    assert collections == [] and gc.isenabled() and gc.get_freeze_count() == 0
    # The objects are in the oldest generation, so collections of the young one skip them.
    assert gc.get_count()[0] < 50_000 < len(created)
    gc.collect()
    assert [ring() for ring in rings] == [None, None]


def test_frozen_objects_and_a_disabled_collector_stay_so() -> None:
    gc.collect()
    gc.freeze()
    frozen = gc.get_freeze_count()
    with without_garbage_collection(), without_garbage_collection():
        assert not gc.isenabled()
        created: list[list[int]] = [[] for _ in range(100_000)]
    del created
    assert gc.isenabled() and gc.get_freeze_count() == frozen > 0
    gc.disable()
    try:
        with without_garbage_collection():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_collector_is_enabled_again_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), without_garbage_collection():
        print(1 / 0)
    assert gc.isenabled()


def test_lightning_is_imported_without_a_collection() -> None:
    program = """
import gc
from genre_lightning import lean_imports
collections = []
gc.callbacks.append(lambda phase, info: collections.append(info))
lean_imports.load_lightning()
print(len(collections), gc.isenabled())
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ran.stdout == "0 True\n", ran.stderr
