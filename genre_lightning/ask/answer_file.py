"""answers.jsonl: one line per movie; an answer counts once it is on disk."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self, final

from genre_lightning.errors import UserError

#: Maximum length of a line; an answer has a few hundred bytes.
MAX_LINE_BYTES = 2**20
ANSWER_FILE_NAME = "answers.jsonl"


@dataclass(frozen=True)
class Record:
    """The outcome of asking about a movie.

    Attributes:
        id: the movie's id.
        key: key of the question (URL, model, messages, parameters); "" if nothing was asked.
        scores: scores by genre, in 0..1; None if there is no answer.
        why: the model's reason, in its words.
        failed: why there is no answer; None if there is one.
        asks: number of requests that had a reply.
        prompt_tokens: sum over these requests; None if not reported.
        completion_tokens: sum over these requests; None if not reported.
        seconds: sum over these requests, from sending to the end of the reply.
        poster: fingerprint of the poster that was shown; None for none.
        image: digest of the image that was sent; None for none.
    """

    id: str
    key: str
    scores: dict[str, float] | None
    why: str = ""
    failed: str | None = None
    asks: int = 0
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    seconds: float = 0.0
    poster: str | None = None
    image: str | None = None

    @property
    def tokens(self) -> int | None:
        """Number of prompt and completion tokens; None if not reported."""
        counts = (self.prompt_tokens, self.completion_tokens)
        return None if counts == (None, None) else sum(filter(None, counts))


@final
class AnswerFile:
    """The answers of a run, and those of other runs that can be reused.

    Keeps only the answers' positions in memory. Failures are written for the user to read, but
    :meth:`find` ignores them. Only one process writes at a time; see ``runs/lock.py``.

    Args:
        path: the run's file; created when the first line is written.
        others: further files to search.
        keep: whether to write added records; False for a folder that is only read.

    Attributes:
        images: digest of the image that was sent, by the poster's fingerprint.

    Raises:
        UserError: a file can't be read.
    """

    def __init__(self, path: Path, others: Sequence[Path] = (), keep: bool = True) -> None:
        self.path = path
        self.keep = keep
        self.images: dict[str, str] = {}
        self._locations: dict[str, tuple[Path, int]] = {}
        self._file: int | None = None
        for other in others:
            self._index(other)
        self._index(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __contains__(self, key: str) -> bool:
        return key in self._locations

    def __len__(self) -> int:
        return len(self._locations)

    def find(self, key: str) -> Record | None:
        """Return the answer to a question; None if there is none."""
        location = self._locations.get(key)
        if location is None:
            return None
        path, offset = location
        try:
            with path.open("rb") as file:
                file.seek(offset)
                record = _read(file.readline(MAX_LINE_BYTES))
        except OSError as error:
            raise UserError(f"{path}: can't be read ({error.strerror or error})") from error
        # Another run's file may have changed since it was indexed.
        return record if record is not None and record.key == key else None

    def is_own(self, key: str) -> bool:
        """Whether an answer is in this run's own file."""
        return key in self._locations and self._locations[key][0] == self.path

    def add(self, records: Sequence[Record]) -> None:
        """Append records, and return once they are on disk.

        Raises:
            UserError: the records can't be written; the file's earlier lines are intact.
        """
        if not self.keep:
            return
        lines = [json.dumps(asdict(record)).encode() + b"\n" for record in records]
        try:
            if self._file is None:
                self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
                self._end_line(self._file)
            start = os.fstat(self._file).st_size
            try:
                _write(self._file, b"".join(lines))
                os.fsync(self._file)
            except OSError:
                os.ftruncate(self._file, start)
                raise
        except OSError as error:
            raise UserError(
                f"{self.path} can't be written ({error.strerror or error}); what was answered "
                "before is kept"
            ) from error
        for record, line in zip(records, lines, strict=True):
            self._register(record, self.path, start)
            start += len(line)

    def _end_line(self, file: int) -> None:
        """Terminate a line left incomplete by a crash, so that the next one is separate."""
        size = os.fstat(file).st_size
        if size and os.pread(file, 1, size - 1) != b"\n":
            _write(file, b"\n")

    def _index(self, path: Path) -> None:
        try:
            for offset, record in _lines(path):
                self._register(record, path, offset)
        except FileNotFoundError:
            return
        except OSError as error:
            raise UserError(f"{path}: can't be read ({error.strerror or error})") from error

    def _register(self, record: Record, path: Path, offset: int) -> None:
        if record.poster is not None and record.image is not None:
            self.images[record.poster] = record.image
        if record.scores is not None:
            self._locations[record.key] = (path, offset)


def _write(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def _lines(path: Path) -> Iterator[tuple[int, Record]]:
    """Yield each record with its offset, skipping invalid lines."""
    offset = 0
    with path.open("rb") as file:
        while line := file.readline(MAX_LINE_BYTES):
            record = _read(line)
            if record is not None:
                yield offset, record
            offset += len(line)


def _read(line: bytes) -> Record | None:
    """Parse a line; None if it is damaged or incomplete."""
    try:
        entry = json.loads(line)
        record = Record(**entry)
    except (ValueError, TypeError, RecursionError):
        return None
    return record if _is_valid_record(record) else None


def _is_valid_record(record: Any) -> bool:
    """Whether every field has the right type and range."""

    def is_number(value: Any) -> bool:
        return type(value) in (int, float) and 0 <= value < float("inf")

    texts = (record.id, record.key, record.why)
    optional_texts = (record.failed, record.poster, record.image)
    counts = (record.prompt_tokens, record.completion_tokens)
    scores = {} if record.scores is None else record.scores
    return (
        all(type(text) is str for text in texts)
        and all(text is None or type(text) is str for text in optional_texts)
        and isinstance(scores, dict)
        and all(is_number(score) and score <= 1 for score in scores.values())
        and type(record.asks) is int
        and is_number(record.seconds)
        and all(count is None or (type(count) is int and count >= 0) for count in counts)
    )
