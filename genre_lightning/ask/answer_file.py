"""answers.jsonl: what was answered, a line each, on the disk before it counts."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self, final

from genre_lightning.errors import UserError

#: A line of an answer has some hundred bytes.
MAX_LINE_BYTES = 2**20
NAME = "answers.jsonl"


@dataclass(frozen=True)
class Record:
    """What came of asking about a movie.

    Attributes:
        id: of the movie.
        key: of the question: URL, model, messages, parameters; "" for one that was not asked.
        scores: by genre, in 0..1; None where there is no answer.
        why: in the model's words.
        failed: why there is no answer; None where there is one.
        asks: requests that had a reply.
        prompt_tokens: of all of them; None where the server does not tell.
        completion_tokens: likewise.
        seconds: of all of them, from sending to the end of the reply.
        poster: fingerprint of the poster that was shown.
        image: digest of what was sent of it.
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
        """Of prompts and answers together."""
        counts = (self.prompt_tokens, self.completion_tokens)
        return None if counts == (None, None) else sum(filter(None, counts))


@final
class AnswerFile:
    """The answers of a run, and those of other runs that may be used.

    In memory is where each answer stands, not the answer. Lines of failures are kept for the
    reader, and never found again. One process writes at a time; see ``runs/lock.py``.

    Args:
        path: of the file; made when the first line is written.
        others: further files to look in.
        keep: write what is added; a folder that is read only is looked in alone.

    Attributes:
        images: by fingerprint of a poster, the digest of what was sent of it.

    Raises:
        UserError: a file can't be read.
    """

    def __init__(self, path: Path, others: Sequence[Path] = (), keep: bool = True) -> None:
        self.path = path
        self.keep = keep
        self.images: dict[str, str] = {}
        self._places: dict[str, tuple[Path, int]] = {}
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
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def find(self, key: str) -> Record | None:
        """The answer to a question; None where there is none."""
        place = self._places.get(key)
        if place is None:
            return None
        path, offset = place
        try:
            with path.open("rb") as file:
                file.seek(offset)
                record = _read(file.readline(MAX_LINE_BYTES))
        except OSError as error:
            raise UserError(f"{path}: can't be read ({error.strerror or error})") from error
        # Another run's file may have become another one meanwhile.
        return record if record is not None and record.key == key else None

    def is_own(self, key: str) -> bool:
        """Whether an answer stands in this run's own file."""
        return key in self._places and self._places[key][0] == self.path

    def add(self, records: Sequence[Record]) -> None:
        """Write lines, and return when they are on the disk.

        Raises:
            UserError: they can't be written; what stood there before is whole.
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
            self._note(record, self.path, start)
            start += len(line)

    def _end_line(self, file: int) -> None:
        """End a line that was begun when the machine went down: the next is one of its own."""
        size = os.fstat(file).st_size
        if size and os.pread(file, 1, size - 1) != b"\n":
            _write(file, b"\n")

    def _index(self, path: Path) -> None:
        try:
            for offset, record in _lines(path):
                self._note(record, path, offset)
        except FileNotFoundError:
            return
        except OSError as error:
            raise UserError(f"{path}: can't be read ({error.strerror or error})") from error

    def _note(self, record: Record, path: Path, offset: int) -> None:
        if record.poster is not None and record.image is not None:
            self.images[record.poster] = record.image
        if record.scores is not None:
            self._places[record.key] = (path, offset)


def _write(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def _lines(path: Path) -> Iterator[tuple[int, Record]]:
    """Where each record begins, and the record; lines that are none are passed over."""
    offset = 0
    with path.open("rb") as file:
        while line := file.readline(MAX_LINE_BYTES):
            record = _read(line)
            if record is not None:
                yield offset, record
            offset += len(line)


def _read(line: bytes) -> Record | None:
    """The record of a line; None for one that is damaged, or was not written to its end."""
    try:
        entry = json.loads(line)
        record = Record(**entry)
    except (ValueError, TypeError, RecursionError):
        return None
    return record if _is_sound(record) else None


def _is_sound(record: Any) -> bool:
    """Whether every field of what was read is of the type that it should be."""

    def number(value: Any) -> bool:
        return type(value) in (int, float) and 0 <= value < float("inf")

    texts = (record.id, record.key, record.why)
    maybe_texts = (record.failed, record.poster, record.image)
    counts = (record.prompt_tokens, record.completion_tokens)
    scores = {} if record.scores is None else record.scores
    return (
        all(type(text) is str for text in texts)
        and all(text is None or type(text) is str for text in maybe_texts)
        and isinstance(scores, dict)
        and all(number(score) and score <= 1 for score in scores.values())
        and type(record.asks) is int
        and number(record.seconds)
        and all(count is None or (type(count) is int and count >= 0) for count in counts)
    )
