"""Files and folders that are complete or absent, and hashes of files."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO, Literal, TextIO, overload

from genre_lightning.errors import UserError

#: Error codes: no space left, quota exceeded, file too large.
FULL_DISK_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_TEMPORARY = re.compile(r"\..+\.(?P<process>[0-9]+)")


class FullDiskError(UserError):
    """There is no room for a file; the message names it and the space that is left."""


@overload
def whole_file(path: Path, mode: Literal["w"] = "w") -> AbstractContextManager[TextIO]: ...
@overload
def whole_file(path: Path, mode: Literal["wb"]) -> AbstractContextManager[BinaryIO]: ...
@contextmanager  # type: ignore[misc]
def whole_file(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file for writing that appears under its name only once it is complete.

    Until then an existing file stays unchanged, even if the block raises or is killed. Links are
    kept, and their targets are written. Devices and pipes can't be replaced and are written
    directly.

    Args:
        path: path of the file.
        mode: "w" for UTF-8 text, "wb" for bytes.

    Raises:
        FullDiskError: the disk is full.
    """
    # Text can contain file names in other encodings, which are escaped instead of raising an error.
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
    """Fill a folder that appears under its name only once it is complete.

    Removes unfinished folders of processes that have ended.

    Args:
        path: path of the folder, which must be absent or empty.

    Yields:
        A temporary folder beside ``path``, to be filled.

    Raises:
        FullDiskError: the disk is full.
        OSError: ``path`` is not empty, or can't be written.
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
                    with file.open("rb") as opened:
                        os.fsync(opened.fileno())
            temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def temporary_name(path: Path) -> Path:
    """The temporary path at which this process writes a file until it is complete."""
    return path.with_name(f".{path.name}.{os.getpid()}")


def remove_unfinished(folder: Path) -> None:
    """Remove unfinished files in a folder whose processes have ended."""
    for path in folder.glob(".*"):
        match = _TEMPORARY.fullmatch(path.name)
        if match is not None and not is_alive(int(match["process"])):
            path.unlink(missing_ok=True)


def hash_parts(parts: Sequence[Path]) -> str:
    """Return the SHA-256, 64 hex digits, of a file that consists of one or more parts."""
    digest = hashlib.sha256()
    for part in parts:
        with part.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


def is_alive(process: int) -> bool:
    """Whether a process with this id is running on this machine."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        return True
    # A terminated process keeps its id until its parent waits for it. In a container that may never
    # happen: the first process there is often a command that waits for its own children only.
    try:
        fields = Path(f"/proc/{process}/stat").read_text("utf-8", "replace")
    except OSError:  # not Linux, or ended just now
        return True
    return fields.rpartition(")")[2].split()[0] not in ("Z", "X")


def full_disk(path: Path, error: OSError) -> FullDiskError:
    """Make the error for a file that does not fit on the disk.

    Args:
        path: path of the file.
        error: the system's error, with an ``errno`` in ``FULL_DISK_ERRNOS``.
    """
    free = shutil.disk_usage(path.parent).free
    return FullDiskError(
        f"{path} could not be written: {error.strerror} ({free / 2**20:,.0f} MiB free there). "
        "Free some space; any earlier content is intact"
    )


@contextmanager
def full_disk_errors(path: Path) -> Iterator[None]:
    """Turn the system's error about a full disk into one that names the file.

    Args:
        path: path of the file that is written.

    Raises:
        FullDiskError: the disk is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL_DISK_ERRNOS:
            raise
        raise full_disk(path, error) from error


class AppendedText(io.TextIOBase):
    """A UTF-8 text file opened for appending, without a buffer.

    Each text is written immediately and in one piece, so that several processes can append, and
    closing the file can't fail on a full disk.

    Args:
        path: path of the file; created if needed.
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
        remaining = memoryview(text.encode("utf-8", "backslashreplace"))
        with full_disk_errors(self.path):
            while remaining:
                remaining = remaining[self._file.write(remaining) :]
        return len(text)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._file.fileno()

    def close(self) -> None:
        self._file.close()
        super().close()
