"""Objects that are made without a search for garbage, and those that are garbage all the same."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Iterator

import pytest

from genre_lightning.garbage import without_garbage_collection


class Ring:
    """Refers to itself: only a search frees it."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture
def thawed() -> Iterator[None]:
    """Nothing is frozen, as in a user's process; the tests' own is frozen again."""
    gc.unfreeze()
    yield
    gc.freeze()


@pytest.mark.usefixtures("thawed")
def test_nothing_is_searched_within_and_garbage_is_found_after() -> None:
    searches: list[object] = []
    before, within = Ring(), None
    rings = [weakref.ref(before)]
    with without_garbage_collection():
        gc.callbacks.append(lambda phase, about: searches.append(about))
        try:
            del before
            within = Ring()
            rings.append(weakref.ref(within))
            within = None
            created: list[list[int]] = [[] for _ in range(100_000)]
        finally:
            gc.callbacks.pop()
    assert searches == [] and gc.isenabled() and gc.get_freeze_count() == 0
    # With the oldest, so that no search of the young walks through them.
    assert gc.get_count()[0] < 50_000 < len(created)
    gc.collect()
    assert [ring() for ring in rings] == [None, None]


def test_what_someone_froze_or_switched_off_stays_so() -> None:
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


def test_an_error_within_leaves_it_on() -> None:
    with pytest.raises(ZeroDivisionError), without_garbage_collection():
        print(1 / 0)
    assert gc.isenabled()


def test_lightning_comes_without_a_search() -> None:
    program = """
import gc
from genre_lightning import lean_imports
searches = []
gc.callbacks.append(lambda phase, about: searches.append(about))
lean_imports.load_lightning()
print(len(searches), gc.isenabled())
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ran.stdout == "0 True\n", ran.stderr
