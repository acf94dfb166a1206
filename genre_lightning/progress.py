"""Progress of long tasks: a bar in a terminal, occasional lines elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from genre_lightning.wording import format_duration

if TYPE_CHECKING:
    from rich.console import Console

#: Minimum seconds between two lines, and minimum share of the elapsed time; the longer applies.
MIN_SECONDS, MIN_SHARE = 30, 0.05


def progress_text(done: float, total: int, more: str) -> str:
    """Progress as text, such as "300 of 4,000, 2 broken"."""
    return f"{int(done):,} of {total:,}{more}"


class ProgressLines:
    """Progress as occasional lines, for the log of an unattended job.

    Args:
        what: name of the task, such as "decoding posters".
        total: total amount of work.
        say: prints a line.
        clock: returns seconds, from any starting point.
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
        self._next = self._begun + MIN_SECONDS
        self._last: tuple[float, float] | None = None

    def update(self, done: float, more: str = "") -> None:
        """Print a line if it is time for one; can be called from any thread.

        Args:
            done: amount of work done so far.
            more: text to add.
        """
        with self._lock:
            now = self._clock()
            if self._last is None:  # excludes setup time, such as loading an encoder
                self._last = now, done
                return
            if now < self._next:
                return
            # Only the speed since the previous line counts: work that an earlier run has done is
            # skipped in no time.
            seconds, advance = now - self._last[0], done - self._last[1]
            remaining = ""
            if advance > 0:
                estimate = (self.total - done) * seconds / advance
                remaining = f", about {format_duration(estimate)} left"
            self._say(f"{self.what}: {progress_text(done, self.total, more)}{remaining}")
            self._last = now, done
            self._next = now + max(MIN_SECONDS, MIN_SHARE * (now - self._begun))


@contextmanager
def progress(
    what: str, total: int, shown: bool = True, console: Console | None = None
) -> Iterator[Callable[..., object]]:
    """Show the progress of a task.

    Args:
        what: name of the task, such as "decoding posters".
        total: total amount of work.
        shown: False to show nothing.
        console: where to show it; None for standard error.

    Yields:
        A function with the arguments of :meth:`ProgressLines.update`, for any thread.
    """
    if not shown:
        yield lambda done, more="": None
        return
    # Imported here, since a single prediction also decodes a poster, but must be fast and needs no
    # bar.
    import rich.progress
    from rich.console import Console

    if console is None:
        console = Console(stderr=True, markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        yield ProgressLines(what, total, partial(console.print, soft_wrap=True)).update
        return
    bar = rich.progress.Progress(
        rich.progress.TextColumn(what),
        rich.progress.BarColumn(),
        rich.progress.TextColumn("{task.fields[progress_text]}", markup=False),
        rich.progress.TimeRemainingColumn(),
        console=console,
    )
    with bar:
        task = bar.add_task(what, total=total, progress_text=progress_text(0, total, ""))
        yield lambda done, more="": bar.update(
            task, completed=done, progress_text=progress_text(done, total, more)
        )
