"""Values that exist but can't be read: they are masked and reported, and never stop a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple


class Unreadable(NamedTuple):
    """Why a value could not be read.

    Attributes:
        reason: for messages.
        may_recover: whether the value can become readable later, for example after a disk error.
            A cache retries such values, but not values with damaged content.
    """

    reason: str
    may_recover: bool


class Masked(NamedTuple):
    """An item of a dataset that could not be read; a list of three values in a cache's JSON.

    Attributes:
        position: index of the item among all items, or among the requested ones.
        reason: see :class:`Unreadable`.
        may_recover: see :class:`Unreadable`.
    """

    position: int
    reason: str
    may_recover: bool


def first_recovered_reason(
    masked: Iterable[Masked], recovered_reason: Callable[[int], str | None]
) -> str | None:
    """Return why a cache is out of date if one of its masked items is readable now, else None.

    Args:
        masked: masked items of the cache.
        recovered_reason: returns the reason for the item at a position, or None; called only for
            items that may recover.
    """
    positions = (item.position for item in masked if item.may_recover)
    return next(filter(None, map(recovered_reason, positions)), None)


def masked_from_json(entries: Iterable[Sequence[Any]]) -> list[Masked]:
    """Rebuild masked items from a cache's JSON.

    Raises:
        ValueError, TypeError: the entries are not lists of three such values.
    """
    return [
        Masked(int(position), str(reason), bool(may_recover))
        for position, reason, may_recover in entries
    ]
