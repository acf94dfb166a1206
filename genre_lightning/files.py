"""Files that are whole or not there."""

from __future__ import annotations

import errno
import io
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO, Literal, TextIO, overload

from genre_lightning.errors import UserError

#: No space, no quota, no larger file allowed.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_TEMPORARY = re.compile(r"\..+\.(?P<process>[0-9]+)")


class FullDiskError(UserError):
    """There is no room for a file; the message names it and the space that is left."""


@overload
def whole_file(path: Path, mode: Literal["w"] = "w") -> AbstractContextManager[TextIO]: ...
@overload
def whole_file(path: Path, mode: Literal["wb"]) -> AbstractContextManager[BinaryIO]: ...
@contextmanager  # type: ignore[misc]
def whole_file(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file that appears under its name once it is whole, and not otherwise.

    Whatever stood there before stays until then, also when the block raises or is killed. A link
    stays one: what it leads to is written. So do devices and pipes, which can't be replaced: they
    are written as they are.

    Args:
        path: of the file.
        mode: "w" for UTF-8 text, "wb" for bytes.

    Raises:
        FullDiskError: the disk is full.
    """
    # A file name in another encoding is no text in UTF-8; escaped, it costs nobody the whole file.
    utf8 = {"encoding": "utf-8", "newline": "", "errors": "backslashreplace"}
    text = {} if "b" in mode else utf8
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        with path.open(mode, **text) as file:  # type: ignore[call-overload]
            yield file
        return
    temporary = temporary_name(path)
    try:
        with full_disk_errors(path):
            with temporary.open(mode, **text) as file:  # type: ignore[call-overload]
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Fill a folder that appears under its name once all of it is written, and not otherwise.

    What processes that are no more have left half filled is removed.

    Args:
        path: of the folder; nothing, or an empty folder, may be there.

    Yields:
        The folder to fill, beside it.

    Raises:
        FullDiskError: the disk is full.
        OSError: ``path`` is there and not empty, or can't be written.
    """
    for other in path.parent.glob(f".{path.name}.*"):
        match = _TEMPORARY.fullmatch(other.name)
        if match is not None and other.is_dir() and not is_alive(int(match["process"])):
            shutil.rmtree(other)
    temporary = temporary_name(path)
    try:
        with full_disk_errors(path):
            temporary.mkdir()
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    with file.open("rb") as written:
                        os.fsync(written.fileno())
            temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def temporary_name(path: Path) -> Path:
    """Where this process writes a file that will have this name once it is whole."""
    return path.with_name(f".{path.name}.{os.getpid()}")


def remove_unfinished(folder: Path) -> None:
    """Remove the files that processes which are no more have left half written in a folder."""
    for path in folder.glob(".*"):
        match = _TEMPORARY.fullmatch(path.name)
        if match is not None and not is_alive(int(match["process"])):
            path.unlink(missing_ok=True)


def is_alive(process: int) -> bool:
    """Whether this machine has a process of this number that has not ended."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        return True
    # Of a process that has ended the number stays until its parent asks how. In a container it may
    # stay for good: the first process there is often a command that asks for its own children only.
    try:
        fields = Path(f"/proc/{process}/stat").read_text("utf-8", "replace")
    except OSError:  # another system than Linux, or gone by now
        return True
    return fields.rpartition(")")[2].split()[0] not in ("Z", "X")


def full_disk(path: Path, error: OSError) -> FullDiskError:
    """What the user is told of a file for which there is no room.

    Args:
        path: of the file.
        error: one of ``FULL``.
    """
    free = shutil.disk_usage(path.parent).free
    return FullDiskError(
        f"{path} could not be written: {error.strerror} ({free / 2**20:,.0f} MiB free there). "
        "Make room; what stood there before is intact"
    )


@contextmanager
def full_disk_errors(path: Path) -> Iterator[None]:
    """Let an error of the system about a full disk name the file.

    Args:
        path: of the file that is written.

    Raises:
        FullDiskError: the disk is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise full_disk(path, error) from error


class AppendedText(io.TextIOBase):
    """A UTF-8 text file that is written to at its end.

    Every text is handed to the system at once and in one piece, so that several processes can
    append, and closing a file on a full disk fails for nothing that was held back.

    Args:
        path: of the file, made if needed.
    """

    encoding = "utf-8"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("ab", buffering=0)

    def write(self, text: str) -> int:
        """Append a text.

        Raises:
            FullDiskError: the disk is full.
        """
        left = memoryview(text.encode("utf-8", "backslashreplace"))
        with full_disk_errors(self.path):
            while left:
                left = left[self._file.write(left) :]
        return len(text)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._file.fileno()

    def close(self) -> None:
        self._file.close()
        super().close()
