"""Cache folders that are complete or absent, built once and reused by every run and sweep job.

A cache folder is named by a hash of its sources (`content_key`). It is built in a temporary folder
beside it, under a file lock, and renamed once it is complete. So a process that is killed while
building leaves nothing that could be mistaken for a cache, and if two processes need the same
folder, one builds it while the other waits and reuses it.

Each folder contains a file with the size and CRC-32 of all its other files. They are compared
whenever the folder is opened, and a folder with corrupted files is built again.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import logging
import mmap
import os
import re
import shutil
import struct
import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from filelock import BaseFileLock, FileLock, Timeout

from genre_lightning.errors import UserError

logger = logging.getLogger(__name__)

#: Default folder of caches.
DEFAULT_CACHE_DIR = "~/.cache/genre-lightning"
#: Smaller arrays stay in memory once they have been read, on any machine that trains.
SMALL_BYTES = 64 * 2**20

_NAME = re.compile(r"[A-Za-z0-9_]+")
_KEY = re.compile(r"[0-9a-f]{8,128}")
_LEFTOVER = re.compile(r"\.(?P<folder>[A-Za-z0-9_]+-[0-9a-f]+)\.tmp-[0-9a-f]+")
_CHECKSUMS = "checksums.json"
_NOT_WRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}


class CacheError(UserError, OSError):
    """A cache folder cannot be written (no permission, full disk, ...); the message names it."""


def content_key(*parts: Any) -> str:
    """Hash content: equal parts give equal keys, in every process and on every machine.

    Each part is plain data (None, bool, int, float, str, bytes, list, tuple, dict, Path) or a numpy
    array or number, with any nesting. Types count (1, 1.0, True and "1" differ), but a list and a
    tuple of the same items are equal, and a dict's order does not matter.

    Returns: 32 hex digits (BLAKE2b, 128 bits).
    Raises: TypeError for anything else, so that no object's address or iteration order can get
        into a key.
    """
    digest = hashlib.blake2b(digest_size=16)
    _hash_part(digest.update, list(parts))
    return digest.hexdigest()


def stored_folder(
    cache_dir: str | Path,
    name: str,
    key: str,
    build: Callable[[Path], None],
    check: Callable[[Path], str | None] | None = None,
) -> Path:
    """Return the folder `cache_dir/NAME-KEY`, building it first if it is missing.

    Args:
        cache_dir: parent of cache folders; created if needed. It can be read-only if the folder
            exists.
        name: purpose of the folder: letters, digits, underscores.
        key: hash, in hex digits, of everything that the content depends on, see `content_key`.
        build: fills the empty folder that it is given. Its errors are passed on to the caller, and
            leave no folder.
        check: inspects an existing folder and returns what is wrong with it, or None. If something
            is wrong, or files have changed since they were written, the folder is built again with
            a warning. It runs at every call, so keep it cheap.

    Raises:
        CacheError: the folder can't be written.
        ValueError: ``name`` or ``key`` has other characters.
    """
    if not _NAME.fullmatch(name) or not _KEY.fullmatch(key):
        raise ValueError(f"a cache folder is named by letters and hex digits: {name!r}, {key!r}")
    cache_dir = Path(cache_dir).expanduser()
    folder = cache_dir / f"{name}-{key}"

    def find_fault() -> str | None:
        return (check(folder) if check is not None else None) or find_changed_file(folder)

    if folder.is_dir() and find_fault() is None:
        _add_missing_checksums(folder)
        return folder  # the usual case; takes no lock, so it works in a read-only cache
    lock = _wait_for_lock(folder)
    try:
        _remove_leftovers(cache_dir, own=folder.name)
        if folder.is_dir():
            reason = find_fault()
            if reason is None:
                return folder  # the process we waited for has built it
            logger.warning("rebuilding %s: %s", folder, reason)
        _build(folder, build)
    except OSError as error:
        if isinstance(error, CacheError) or not _is_cache_failure(error, cache_dir):
            raise
        raise _cache_error(cache_dir, error) from error
    finally:
        lock.release()
    return folder


def find_changed_file(folder: Path) -> str | None:
    """Return which file of a :func:`stored_folder` has changed since it was built; None for none.

    Folders built by earlier versions have no checksums and are not checked.
    """
    try:
        sums = json.loads((folder / _CHECKSUMS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        return f"{_CHECKSUMS} can't be read ({error})"
    if not isinstance(sums, dict):
        return f"{_CHECKSUMS} is damaged"
    for name, expected in sums.items():
        try:
            actual = _checksum(folder / name)
        except FileNotFoundError:
            return f"{name} is gone"
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            return f"{name} can't be read ({error})"
        if actual != expected:
            return f"{name} has changed since it was written"
    return None


def save_array(path: Path, array: np.ndarray) -> None:
    """Write a ``.npy`` file.

    ``np.save`` to a path replaces the system's error, such as a full disk, by its own.
    """
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    path.write_bytes(content.getbuffer())


def _checksum(path: Path) -> list[int]:
    """Size and CRC-32 of a file."""
    size = checksum = 0
    buffer = bytearray(2**20)
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            checksum = zlib.crc32(view[:count], checksum)
            size += count
    return [size, checksum]


def _write_checksums(folder: Path) -> None:
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != _CHECKSUMS)
    sums = {path.relative_to(folder).as_posix(): _checksum(path) for path in paths}
    temporary = folder / f".{_CHECKSUMS}.{os.getpid()}"
    temporary.write_text(json.dumps(sums), encoding="utf-8")
    os.replace(temporary, folder / _CHECKSUMS)


def _add_missing_checksums(folder: Path) -> None:
    """Add the missing checksums to a folder of an earlier version, if it can be written."""
    if not (folder / _CHECKSUMS).exists():
        with suppress(OSError):
            _write_checksums(folder)


def remove_stored(folder: Path) -> None:
    """Remove a :func:`stored_folder` and its lock, unless a process is building it right now.

    Does nothing if the folder can't be removed, as in a read-only cache.
    """
    with _lock_if_free(folder.parent, folder.name) as lock:
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):
                Path(lock.lock_file).unlink(missing_ok=True)


def prefetch_rows(array: np.ndarray, rows: np.ndarray) -> None:
    """Ask the system to prefetch rows of a large memory-mapped array.

    Otherwise, if the file is larger than memory, each page is waited for. Small arrays are in
    memory since their checksum was compared, and prefetching would be slower than reading.

    Args:
        array: (N, ...).
        rows: (B,) integers in 0..N-1.
    """
    pages = getattr(array, "_mmap", None)
    if pages is None or array.nbytes < SMALL_BYTES or not hasattr(mmap, "MADV_WILLNEED"):
        return  # madvise is missing on Windows
    size = array[0].nbytes
    for row in rows.tolist():
        start = row * size // mmap.PAGESIZE * mmap.PAGESIZE
        pages.madvise(mmap.MADV_WILLNEED, start, (row + 1) * size - start)


def _build(folder: Path, build: Callable[[Path], None]) -> None:
    """Build into a temporary folder, then rename it. The caller holds the folder's lock."""
    temporary = _temporary(folder)
    temporary.mkdir()
    try:
        build(temporary)
        _write_checksums(temporary)
        if folder.is_dir():  # damaged; renamed first, so that no process sees it half removed
            damaged = folder.rename(_temporary(folder))
            shutil.rmtree(damaged, ignore_errors=True)
        temporary.rename(folder)
    except BaseException:  # also after Ctrl-C
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _remove_leftovers(cache_dir: Path, own: str) -> None:
    """Remove the temporary folders of killed builders. The caller holds the lock of `own`.

    A builder holds its folder's lock until it ends, when the system releases it. So a temporary
    folder whose lock is free, or held by us, has no builder any more.
    """
    for path in cache_dir.iterdir():
        match = _LEFTOVER.fullmatch(path.name)
        if match is None:
            continue
        if match["folder"] == own:
            shutil.rmtree(path, ignore_errors=True)
            continue
        with _lock_if_free(cache_dir, match["folder"]) as lock:
            if lock is not None:
                shutil.rmtree(path, ignore_errors=True)


def _temporary(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.tmp-{uuid.uuid4().hex[:12]}"


def _lock(cache_dir: Path, folder_name: str) -> BaseFileLock:
    return FileLock(cache_dir / f".{folder_name}.lock")


def _wait_for_lock(folder: Path) -> BaseFileLock:
    """Lock a cache folder, and create its parent if needed; waits for a process that builds it."""
    lock = _lock(folder.parent, folder.name)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.info("another process is building %s: waiting for it", folder)
            lock.acquire()
    except OSError as error:
        raise _cache_error(folder.parent, error) from error
    return lock


@contextmanager
def _lock_if_free(cache_dir: Path, folder_name: str) -> Iterator[BaseFileLock | None]:
    """Hold a folder's lock, or yield None if a process builds it or it is another user's."""
    lock = _lock(cache_dir, folder_name)
    try:
        lock.acquire(timeout=0)
    except (Timeout, OSError):
        yield None
        return
    try:
        yield lock
    finally:
        lock.release()


def _is_cache_failure(error: OSError, cache_dir: Path) -> bool:
    """Whether an error is a failure to write the cache, rather than an error elsewhere."""
    if error.errno in _NOT_WRITABLE:
        return True
    if not isinstance(error.filename, (str, bytes)):
        return False
    return Path(os.fsdecode(error.filename)).is_relative_to(cache_dir)


def _cache_error(cache_dir: Path, error: OSError) -> CacheError:
    reason = error.strerror or str(error)
    return CacheError(
        f"cannot write the cache folder {cache_dir}: {reason}. "
        "Free some space, or get write permission, or choose another cache_dir."
    )


def _hash_part(update: Callable[[bytes], object], part: Any) -> None:
    """Hash one part as type, length and content, so that different parts give different bytes."""
    if isinstance(part, np.generic):
        part = part.item()
    if isinstance(part, (list, tuple)):
        update(b"list:%d:" % len(part))
        for item in part:
            # Fast paths, since most of what is hashed is millions of strings, or None for a movie
            # without one; same bytes as below.
            if type(item) is str:
                data = item.encode("utf-8", "surrogatepass")
                update(b"str:%d:%b" % (len(data), data))
            elif item is None:
                update(b"NoneType:4:None")
            else:
                _hash_part(update, item)
    elif isinstance(part, Mapping):
        update(b"dict:%d:" % len(part))
        for name in sorted(part):
            _hash_part(update, name)
            _hash_part(update, part[name])
    elif isinstance(part, np.ndarray) and not part.dtype.hasobject:
        update(f"array:{part.dtype.str}:{part.shape}:".encode())
        update(np.ascontiguousarray(part).tobytes())
    else:
        data = _plain_bytes(part)
        kind = "path" if isinstance(part, Path) else type(part).__name__
        update(f"{kind}:{len(data)}:".encode())
        update(data)


def _plain_bytes(value: Any) -> bytes:
    """The content of a value that holds no others; TypeError for an object that is not data."""
    if value is None or isinstance(value, (bool, int)):
        return repr(value).encode()
    if isinstance(value, float):
        return struct.pack("<d", value)
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")  # as in file names in other encodings
    if isinstance(value, bytes):
        return value
    if isinstance(value, Path):
        return os.fsencode(value)
    kind = type(value).__name__
    raise TypeError(f"a cache key is made of plain data and numpy arrays, not of {kind}")
