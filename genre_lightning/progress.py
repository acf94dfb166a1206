"""How far something is that takes minutes: a bar in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from genre_lightning.wording import shown_time

if TYPE_CHECKING:
    from rich.console import Console

#: Seconds between two lines, at least; or this share of the time that has passed, if that is more.
EVERY, SHARE = 30, 0.05


def how_far(done: float, total: int, more: str) -> str:
    """Such as "300 of 4,000, 2 broken"."""
    return f"{int(done):,} of {total:,}{more}"


class Lines:
    """Lines of how far something is, for the log of a job that nobody watches.

    Args:
        what: is done, such as "decoding posters".
        total: of it.
        say: prints a line.
        clock: seconds, from any moment on.
    """

    def __init__(
        self,
        what: str,
        total: int,
        say: Callable[[str], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.what = what
        self.total = total
        self._say = say
        self._clock = clock
        self._lock = threading.Lock()
        self._begun = clock()
        self._next = self._begun + EVERY
        self._before: tuple[float, float] | None = None

    def update(self, done: float, more: str = "") -> None:
        """Print a line if it is time for one.

        Args:
            done: of the total, by now; from any thread.
            more: to be told as well.
        """
        with self._lock:
            now = self._clock()
            if self._before is None:  # before it, an encoder may have been loaded
                self._before = now, done
                return
            if now < self._next:
                return
            # As fast as since the line before: what an earlier run has done is passed in no time.
            took, gained = now - self._before[0], done - self._before[1]
            left = ""
            if gained > 0:
                left = f", about {shown_time((self.total - done) * took / gained)} left"
            self._say(f"{self.what}: {how_far(done, self.total, more)}{left}")
            self._before = now, done
            self._next = now + max(EVERY, SHARE * (now - self._begun))


@contextmanager
def progress(
    what: str, total: int, shown: bool = True, console: Console | None = None
) -> Iterator[Callable[..., object]]:
    """Show how far something is.

    Args:
        what: is done, such as "decoding posters".
        total: of it.
        shown: False to show nothing.
        console: where; None for standard error.

    Yields:
        A function to call with how much is done and, if need be, more to tell, as for
        :meth:`Lines.update`; from any thread.
    """
    if not shown:
        yield lambda done, more="": None
        return
    # Here, since one prediction decodes a poster too, without a bar and in a hurry.
    import rich.progress
    from rich.console import Console

    if console is None:
        console = Console(stderr=True, markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        yield Lines(what, total, partial(console.print, soft_wrap=True)).update
        return
    bar = rich.progress.Progress(
        rich.progress.TextColumn(what),
        rich.progress.BarColumn(),
        rich.progress.TextColumn("{task.fields[how_far]}", markup=False),
        rich.progress.TimeRemainingColumn(),
        console=console,
    )
    with bar:
        task = bar.add_task(what, total=total, how_far=how_far(0, total, ""))
        yield lambda done, more="": bar.update(
            task, completed=done, how_far=how_far(done, total, more)
        )
