"""Reading CSV files of movies, with errors that name the row."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from genre_lightning.cells import unguard
from genre_lightning.movies.movie import DataError
from genre_lightning.wording import printable

if TYPE_CHECKING:
    from _csv import Reader as CsvReader

#: Supported delimiters, and their names for messages.
DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab"}


def delimiter_of(header: str) -> str:
    """The delimiter of a file: the one of ``DELIMITERS`` that is most frequent in its header."""
    return max(DELIMITERS, key=header.count)


def quotes_hint(delimiter: str) -> str:
    """Advice for a row whose number of cells differs from the header's."""
    return f'a cell with a {DELIMITERS[delimiter]} in it needs quotes: "Godfather, The (1972)"'


class Row(NamedTuple):
    """One row that is not blank.

    Attributes:
        number: as a spreadsheet shows it: the header is row 1, and a cell with line breaks stays
            in one row.
        where: the place for messages, e.g. ``"movies.csv:17"``.
        cells: text by column, without surrounding whitespace and without an apostrophe that guards
            it against spreadsheets.
    """

    number: int
    where: str
    cells: dict[str, str]


def read_table(path: Path, required: Sequence[str]) -> tuple[list[str], list[Row]]:
    """Read the columns and rows of a UTF-8 CSV file; column names become lower case.

    The header shows whether commas, semicolons or tabs separate the cells. Quotes around a cell are
    removed, except in tab-separated files without quoting, such as IMDb's: see
    :func:`is_unquoted`.

    Columns without a name, as spreadsheets and pandas write them, are left out.

    Args:
        path: path of the file.
        required: columns that the file must have.

    Raises:
        DataError: the file is missing or is no CSV in UTF-8, contains a NUL byte, has a missing or
            duplicate column, or a row with more or fewer cells than the header.
    """
    text = _read_text(path)
    file = path.name
    delimiter = delimiter_of(next(split_lines(text), ""))
    unquoted = delimiter == "\t" and is_unquoted(split_lines(text))
    reader = csv_reader(split_lines(text), delimiter, unquoted=unquoted)
    number = 0
    columns: list[str] = []
    rows: list[Row] = []
    try:
        for number, cells in _numbered_rows(reader):
            if number == 1:
                columns = _check_header(cells, file, required)
                continue
            if not any(cells):
                continue
            where = f"{file}:{number}"
            if reader.line_num != number:  # for users who open the file in a text editor
                where += f" (line {reader.line_num})"
            if len(cells) != len(columns):
                raise DataError(
                    f"{where}: {len(cells)} cells, but the header has {len(columns)}; "
                    f"{quotes_hint(delimiter)}"
                )
            row_cells = {name: cell for name, cell in zip(columns, cells, strict=True) if name}
            rows.append(Row(number, where, row_cells))
    except csv.Error as error:
        where = f"{file}:{number + 1} (line {reader.line_num})"
        raise DataError(f"{where}: {csv_problem(error)}") from error
    if not columns:
        raise DataError(f"{file} is empty; its first row must be {','.join(required)}")
    return [name for name in columns if name], rows


#: Parts of the messages of Python's csv module, and what to tell the user instead.
_PROBLEMS = {
    "unexpected end of data": "a quote is opened here and not closed before the file ends",
    "expected after": "a quoted cell goes on after its quote: double each quote in a quoted cell, "
    'and quote a title that begins with a quote as a whole: """Weird Al"" Story (2022)"',
    "field limit": f"a cell has more than {csv.field_size_limit():,} characters: shorten it",
}


#: Files that users mistake for a CSV: their first bytes, and what to do.
_WRONG_FORMATS = (
    (rb"\x1f\x8b", "is compressed by gzip: unpack it first"),
    (rb"BZh[1-9]1AY&SY", "is compressed by bzip2: unpack it first"),
    (rb"\xfd7zXZ\0", "is compressed by xz: unpack it first"),
    (rb"\x28\xb5\x2f\xfd", "is compressed by Zstandard: unpack it first"),
    (rb"PK\x03\x04", "is a zip, as workbooks are: unpack it, or save the sheet as CSV in UTF-8"),
    (rb"\xd0\xcf\x11\xe0", "is a workbook: save the sheet as CSV in UTF-8"),
    (rb"\xff\xfe|\xfe\xff", "is in UTF-16: save it as CSV in UTF-8"),
)


def wrong_format(data: bytes) -> str | None:
    """What a file with these first bytes is, and what to do; None if it can be a CSV."""
    return next((advice for start, advice in _WRONG_FORMATS if re.match(start, data)), None)


def csv_problem(error: csv.Error) -> str:
    """What is wrong with a CSV, and what to do."""
    return next(
        (message for pattern, message in _PROBLEMS.items() if pattern in str(error)), str(error)
    )


def split_lines(text: str) -> Iterator[str]:
    """The lines of a text with their ends: a line feed, a carriage return, or both."""
    return iter(io.StringIO(text, newline=""))


def csv_reader(lines: Iterable[str], delimiter: str, *, unquoted: bool) -> CsvReader:
    """A reader of the cells of each row; ``unquoted`` is that of :func:`is_unquoted`."""
    # strict: an unclosed quote is an error, instead of one cell that swallows the rest of the file.
    return csv.reader(
        lines,
        delimiter=delimiter,
        quoting=csv.QUOTE_NONE if unquoted else csv.QUOTE_MINIMAL,
        skipinitialspace=True,  # Otherwise quotes after a blank would be part of the cell.
        strict=True,
    )


#: An unquoted cell that begins with a quote, such as '"Weird Al" Story'. Programs that quote cells
#: never write one.
_BEGINS_WITH_QUOTE = re.compile(r'(?:^|\t)"[^"\t\r\n]*(?:"[^"\t\r\n]|[\r\n\t]|\Z)')
#: A quoted cell with doubled quotes in it, as programs that quote cells write them.
_QUOTED = re.compile(r'(?:^|\t)"(?:[^"\t\r\n]*"")+[^"\t\r\n]*"(?=[\t\r\n]|\Z)')


def is_unquoted(lines: Iterable[str]) -> bool:
    """Whether quotes in a tab-separated table are part of its cells.

    True if at least one cell can only be unquoted, no cell is clearly quoted, and all rows have as
    many tabs as the header.
    """
    begins_with_quote = False
    num_tabs = set()
    for line in lines:
        if '"' in line:
            if _QUOTED.search(line):
                return False
            begins_with_quote = begins_with_quote or bool(_BEGINS_WITH_QUOTE.search(line))
        if line.strip():
            num_tabs.add(line.count("\t"))
    return begins_with_quote and len(num_tabs) == 1


def _numbered_rows(reader: Iterator[list[str]]) -> Iterator[tuple[int, list[str]]]:
    for number, cells in enumerate(reader, start=1):
        stripped = [cell.strip() for cell in cells]
        # Few cells are guarded, so the others skip the check.
        yield number, [unguard(cell).strip() if cell[:1] == "'" else cell for cell in stripped]


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"can't read {path}: {reason}") from error
    if (problem := wrong_format(data)) is not None:
        raise DataError(f"{path.name} {problem}")
    if b"\0" in data:
        line = data.count(b"\n", 0, data.index(b"\0")) + 1
        raise DataError(
            f"{path.name} has a NUL byte (line {line}), so it is not text; save it as CSV in UTF-8"
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path.name} is not UTF-8 (line {line}, byte {data[error.start]:#04x}); "
            "save it as UTF-8"
        ) from error


def _check_header(cells: list[str], name: str, required: Sequence[str]) -> list[str]:
    columns = [cell.lower() for cell in cells]
    for column in columns:
        if column and columns.count(column) > 1:
            raise DataError(f"{name}:1: the column {column!r} comes more than once")
    missing = [column for column in required if column not in columns]
    if not any(columns):
        raise DataError(
            f"{name}:1: the first row is blank; it must name the columns: {','.join(required)}"
        )
    if missing:
        raise DataError(
            f"{name}:1: the header has no column {' and no '.join(missing)}; "
            f"it has {printable(', '.join(cells))}; rename the columns that hold these values"
        )
    return columns
