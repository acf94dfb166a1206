"""Read and write CSV files of movies, row by row in constant memory."""

from __future__ import annotations

import csv
import io
import itertools
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from genre_lightning.cells import text_of, unguard
from genre_lightning.files import whole_file
from genre_lightning.movies.movie import URL_PATTERN, poster_path
from genre_lightning.movies.table import (
    csv_problem,
    csv_reader,
    delimiter_of,
    is_unquoted,
    quotes_hint,
    split_lines,
    wrong_format,
)
from genre_lightning.predicting.arguments import STREAM
from genre_lightning.predicting.printing import CommandError
from genre_lightning.progress import progress
from genre_lightning.wording import counted


class MovieRows:
    """The rows of a CSV file, each kept until its prediction is done.

    Column names are case-insensitive, as in a dataset. Apostrophes that guard cells against
    spreadsheets are removed.

    Args:
        file: UTF-8, opened in binary mode.
        path: of the file; poster paths are relative to it. ``STREAM`` for standard input, whose
            poster paths are relative to the current folder.
        columns: the columns to look for, each with its kind: "text" or "poster".

    Attributes:
        name: of the file, for messages.
        header: names of all columns, as written.
        names: the same, stripped and in lower case.
        positions: by name, the index in a row of each of ``columns`` that the file has.

    Raises:
        CommandError: the header can't be read, or names a column twice.
    """

    def __init__(self, file: IO[bytes], path: Path, columns: Mapping[str, str]) -> None:
        self.name = "standard input" if path == STREAM else str(path)
        self.folder = path.parent
        self.columns = columns
        lines = self._lines(file)
        first = next(lines, "")
        self._delimiter = delimiter_of(first)
        lines = itertools.chain([first], lines)
        unquoted = False
        if self._delimiter == "\t":
            # Only the whole table shows whether its cells are quoted: read it twice. A pipe can be
            # read only once, so its lines are kept.
            if file.seekable():
                unquoted = is_unquoted(lines)
                file.seek(0)
                lines = self._lines(file)
            else:
                kept = list(lines)
                unquoted = is_unquoted(kept)
                lines = iter(kept)
        self._reader = csv_reader(lines, self._delimiter, unquoted=unquoted)
        self._pending: deque[list[str]] = deque()
        self._last_line = 0  # number of the previous row's last line
        self.header = self._next_row() or []
        self.names = [name.strip().lower() for name in self.header]
        for name in self.names:
            if name and self.names.count(name) > 1:
                raise CommandError(f"{self.name}: it has two columns named {name!r}")
        self.positions = {
            column: self.names.index(column.lower())
            for column in columns
            if column.lower() in self.names
        }

    def movies(self) -> Iterator[dict[str, str | Path | None]]:
        """The values of each row by column, None for an empty cell."""
        while (row := self._next_row()) is not None:
            if not any(cell.strip() for cell in row):  # as spreadsheets leave at the end
                continue
            if len(row) != len(self.header):
                raise CommandError(
                    f"{self.name}:{self._reader.line_num}: {len(row)} values for "
                    f"{len(self.header)} columns; {quotes_hint(self._delimiter)}"
                )
            self._pending.append(row)
            yield {
                column: self._value(column, row[index]) for column, index in self.positions.items()
            }

    def pop_row(self) -> list[str]:
        """Remove and return the row of the next prediction."""
        return self._pending.popleft()

    def cells_by_name(self, row: Sequence[str]) -> dict[str, str | None]:
        """A row's cells by name (as in ``columns``, else the header); None for an empty cell."""
        names = [*self.header]
        for column, index in self.positions.items():
            names[index] = column
        return {name: cell or None for name, cell in zip(names, row, strict=True) if name}

    def _value(self, column: str, cell: str) -> str | Path | None:
        text = cell.strip()
        # As in training: spaces before an apostrophe that guards against spreadsheets don't count.
        text = text_of(column, text if text == cell else unguard(text))
        if not text:
            return None
        # Don't make a path of a URL: it would lose one of its slashes.
        is_file = self.columns[column] == "poster" and not URL_PATTERN.search(text)
        return poster_path(self.folder, text) if is_file else text

    def _lines(self, file: IO[bytes]) -> Iterator[str]:
        # Decoded line by line, so that an error can name the line's number.
        for number, line in enumerate(file, 1):
            if number == 1 and (other := wrong_format(line)) is not None:
                raise CommandError(f"{self.name} {other}")
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise CommandError(
                    f"{self.name}:{number}: this line is not UTF-8 ({error.reason}); save the "
                    "file as UTF-8"
                ) from error
            if "\0" in text:
                raise CommandError(
                    f"{self.name}:{number}: this line has a NUL byte, which no text has; save the "
                    "file as CSV in UTF-8"
                )
            yield from split_lines(text)

    def _next_row(self) -> list[str] | None:
        try:
            row = next(self._reader, None)
        except csv.Error as error:
            # A row can span several lines: report the one where it begins.
            raise CommandError(
                f"{self.name}:{self._last_line + 1}: {csv_problem(error)}"
            ) from error
        self._last_line = self._reader.line_num
        return None if row is None else [unguard(cell) for cell in row]


@contextmanager
def open_input(path: Path) -> Iterator[IO[bytes]]:
    """Open a file, or standard input, in binary mode.

    Raises:
        CommandError: the file can't be opened.
    """
    if path == STREAM:
        yield sys.stdin.buffer
        return
    try:
        file = path.open("rb")
    except OSError as error:
        raise CommandError(f"{path}: can't be read ({error.strerror or error})") from error
    with file:
        yield file


@contextmanager
def open_output(path: Path) -> Iterator[Any]:
    """Give a CSV writer to standard output, or to a file that is written completely or not at all.

    The file appears under its name when the block has ended, and not at all if the block raises or
    the process is killed.

    Raises:
        CommandError: the file can't be written.
    """
    if path == STREAM:
        if isinstance(sys.stdout, io.TextIOWrapper):
            # UTF-8 like the input, whatever the terminal uses. File names may hold bytes that are
            # not UTF-8, which raise an error by default.
            sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
        yield _csv_writer(sys.stdout)
        sys.stdout.flush()
        return
    try:
        with _sigterm_as_interrupt(), whole_file(path) as file:
            yield _csv_writer(file)
    except OSError as error:
        raise CommandError(f"{path}: can't be written ({error.strerror or error})") from error


def _csv_writer(file: IO[str]) -> Any:
    # The default is \r\n, whose \r other commands in a pipe would add to the last cell.
    return csv.writer(file, lineterminator="\n")


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, so that partly written files are removed."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    try:
        previous = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # only the main thread can handle signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def predicting_progress(file: IO[bytes], path: Path) -> Iterator[Callable[[], object]]:
    """Show progress as the share of a file that has been read; none for a pipe of unknown length.

    Yields:
        A function to call after each movie.
    """
    if path == STREAM or not path.is_file():
        yield lambda: None
        return
    movies = itertools.count(1)
    with progress("predicting", path.stat().st_size) as update:
        yield lambda: update(file.tell(), f" bytes, {counted(next(movies), 'movie')}")
