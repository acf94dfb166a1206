"""Values that are there and can't be read: they are masked and named, and never stop a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple


class Unreadable(NamedTuple):
    """Why a value could not be read.

    Attributes:
        reason: for messages.
        may_recover: whether it may be readable later, as where a disk did not answer. A cache then
            tries again; it does not where the content itself is damaged.
    """

    reason: str
    may_recover: bool


class Masked(NamedTuple):
    """An item of a dataset that could not be read; a list of the three in the JSON of a cache.

    Attributes:
        position: of the item, among all or among those that were asked for.
        reason: see :class:`Unreadable`, as the next one.
        may_recover: likewise.
    """

    position: int
    reason: str
    may_recover: bool


def first_recovered(masked: Iterable[Masked], recovered: Callable[[int], str | None]) -> str | None:
    """Why a cache is out of date, since an item that is masked there can be read by now; or None.

    Args:
        masked: of the cache.
        recovered: why, for the item at a position, or None; asked of those that may recover.
    """
    hopeful = (item.position for item in masked if item.may_recover)
    return next(filter(None, map(recovered, hopeful)), None)


def masked_from_json(entries: Iterable[Sequence[Any]]) -> list[Masked]:
    """What a cache wrote.

    Raises:
        ValueError, TypeError: the entries are anything else.
    """
    return [
        Masked(int(position), str(reason), bool(may_recover))
        for position, reason, may_recover in entries
    ]
