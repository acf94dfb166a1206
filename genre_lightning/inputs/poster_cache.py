"""Posters decoded once, into one memory-mapped file of pixels that every later run reuses.

A poster that can't be decoded correctly is masked and listed with its name and the reason. It never
stops a run and is never replaced by another picture.
"""

from __future__ import annotations

import json
import math
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from genre_lightning.cores import num_cores
from genre_lightning.inputs.decode import DECODER_VERSION, decode_poster
from genre_lightning.inputs.input import DenseFeatures, Store
from genre_lightning.inputs.masked import (
    Masked,
    Unreadable,
    first_recovered_reason,
    masked_from_json,
)
from genre_lightning.inputs.poster_limits import MAX_FILE_BYTES, PosterError
from genre_lightning.movies.movie import PosterFile
from genre_lightning.progress import progress
from genre_lightning.store import content_key, stored_folder

if TYPE_CHECKING:
    import torch

#: The reason for a poster whose file is missing; the dataset's summary reports such posters first.
NO_SUCH_FILE = "no such file"
#: Bytes that are copied to a device at a time.
_PART_BYTES = 64 * 2**20

_IMAGES, _META = "images.u8", "meta.json"


def open_poster_cache(
    posters: Sequence[PosterFile | None],
    *,
    size: tuple[int, int],
    shrink: int = 1,
    store: Store,
) -> DenseFeatures:
    """Open the cache of these posters, decoding all of them first if there is none.

    The cache's key consists of the path, size and stamp of every poster file, so a changed file is
    noticed without being read. Building takes the same memory for any number of posters.

    Args:
        posters: one per movie (N), None for a movie without a poster.
        size: (H, W) of the decoded posters.
        shrink: as for :func:`decode_poster`, applied before storing.
        store: where the cache is kept.

    Returns:
        "pixels", (M, H // shrink, W // shrink, 3) uint8 RGB, memory-mapped and read-only. The place
        is -1 for a movie without a poster or with a masked one.

    Raises:
        CacheError: the cache can't be written.
        ValueError: shrink is larger than the poster, or the store's workers are below 1.
    """
    if not 1 <= shrink <= min(size):
        raise ValueError(f"shrink ({shrink}) must lie between 1 and size ({min(size)})")
    if store.workers is not None and store.workers < 1:
        raise ValueError(f"workers ({store.workers}) must be at least 1")
    files, file_index = unique_files(posters)
    # One number for a square, to match the keys of existing caches.
    side = size[0] if size[0] == size[1] else list(size)
    key = content_key(DECODER_VERSION, side, shrink, *files_key(files))

    def build(folder: Path) -> None:
        _decode_all(files, folder, size, shrink, store)

    shape = (size[0] // shrink, size[1] // shrink, 3)
    folder = stored_folder(
        store.folder, "posters", key, build, lambda folder: _unusable_reason(folder, files, shape)
    )
    meta = _read_meta(folder)
    masked = meta["masked"]
    row_index, unreadable = cached_rows(files, file_index, masked)
    count = (meta["count"], *shape)
    images = (
        np.memmap(folder / _IMAGES, dtype=np.uint8, mode="r", shape=count)
        if meta["count"]
        else np.zeros(count, dtype=np.uint8)  # an empty file can't be mapped
    )
    return DenseFeatures("pixels", images, row_index, unreadable)


def unique_files(posters: Sequence[PosterFile | None]) -> tuple[list[PosterFile], np.ndarray]:
    """Collect the unique poster files of N movies, which can share files.

    Returns:
        M files, and (N,) int64, the index of each movie's file; -1 for a movie without a poster.
    """
    index_of: dict[str, int] = {}
    files: list[PosterFile] = []
    file_index = np.full(len(posters), -1, dtype=np.int64)
    for row, (key, poster) in enumerate(zip(_file_keys(posters), posters, strict=True)):
        if poster is None:
            continue
        if key not in index_of:
            index_of[key] = len(files)
            files.append(poster)
        file_index[row] = index_of[key]
    return files, file_index


def files_key(files: Sequence[PosterFile]) -> tuple[list[str], np.ndarray]:
    """Return the files' part of a cache's key: path, size and stamp of each."""
    stamps = np.array([(file.size, file.stamp) for file in files], dtype=np.int64)
    return _file_keys(files), stamps


def cached_rows(
    files: Sequence[PosterFile], file_index: np.ndarray, masked: Sequence[Masked]
) -> tuple[np.ndarray, list[tuple[str, str]]]:
    """Find each movie's poster in a cache that holds all files except the masked ones.

    Args:
        files: M poster files.
        file_index: (N,) int64, the index of each movie's file, see :func:`unique_files`.
        masked: files that could not be read.

    Returns:
        (N,) int64, -1 for none; name and reason of each masked poster.
    """
    cached_row = np.full(len(files), -1, dtype=np.int64)
    readable = np.ones(len(files), dtype=bool)
    readable[[item.position for item in masked]] = False
    cached_row[readable] = np.arange(readable.sum())
    row_index = np.where(file_index >= 0, cached_row[file_index], -1) if files else file_index
    return row_index, [(files[item.position].name, item.reason) for item in masked]


def to_device(images: np.ndarray, device: torch.device) -> torch.Tensor:
    """Copy a cache's array to a device, with the same shape and type.

    The array is read in parts, so that no second copy of it is made in host memory.

    Raises:
        torch.OutOfMemoryError: the array doesn't fit on the device.
    """
    import torch  # not needed to decode a poster

    copy = torch.empty(images.shape, dtype=torch.from_numpy(images[:0].copy()).dtype, device=device)
    chunk_size = max(1, _PART_BYTES * len(images) // max(1, images.nbytes))
    for start in range(0, len(images), chunk_size):
        chunk = np.array(images[start : start + chunk_size])  # PyTorch wants a writable array
        copy[start : start + chunk_size] = torch.from_numpy(chunk)
    return copy


def _file_keys(posters: Sequence[PosterFile | None]) -> list[str]:
    """Return a string per poster, independent of how the folder's path is written; "" for None."""
    parents: dict[str, str] = {}
    keys = []
    for poster in posters:
        if poster is None:
            keys.append("")
            continue
        parent, name = os.path.split(poster.path)
        if parent not in parents:
            parents[parent] = os.path.realpath(parent)
        member = "" if poster.member is None else f"\0{poster.member}"
        keys.append(f"{parents[parent]}{os.sep}{name}{member}")
    return keys


def _decode_all(
    files: Sequence[PosterFile], folder: Path, size: tuple[int, int], shrink: int, store: Store
) -> None:
    """Fill a cache folder with the pixels, then with the masked posters and their reasons."""
    masked: list[Masked] = []
    # Append instead of filling a file of full size: a full disk then raises an error and does not
    # kill the process with a signal, and after a power cut the file is recognisably too short.
    with (
        (folder / _IMAGES).open("wb") as images,
        progress("decoding posters", len(files), store.progress) as update,
    ):
        results = decode_files(files, size, shrink, store.workers or num_cores())
        for index, result in enumerate(results):
            if isinstance(result, np.ndarray):
                images.write(result.data)
            else:
                masked.append(Masked(index, *result))
            update(index + 1)
    meta = {"count": len(files) - len(masked), "masked": masked}
    (folder / _META).write_text(json.dumps(meta), encoding="utf-8")


def decode_files(
    files: Sequence[PosterFile], size: tuple[int, int], shrink: int, workers: int
) -> Iterator[np.ndarray | Unreadable]:
    """Decode files on several threads, a few ahead (Pillow releases the interpreter's lock).

    Yields:
        For each file in order its pixels, or why it has none.
    """
    Image.init()  # loads the formats before several threads need them
    pending: deque[Future[np.ndarray | Unreadable]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="posters")
    try:
        for file in files:
            if len(pending) >= 8 * workers:
                yield pending.popleft().result()
            pending.append(pool.submit(decode_file, file, size, shrink))
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def decode_file(
    file: PosterFile, size: tuple[int, int], shrink: int = 1
) -> np.ndarray | Unreadable:
    """Return a poster's pixels, (H // shrink, W // shrink, 3) uint8, or why it has none."""
    if not file.exists:
        return Unreadable(NO_SUCH_FILE, may_recover=False)
    if file.size > MAX_FILE_BYTES:
        return Unreadable(f"more than {MAX_FILE_BYTES:,} bytes", may_recover=False)
    try:
        data = file.read_bytes()
    except OSError as error:
        return Unreadable(f"can't be read: {error.strerror or error}", may_recover=True)
    try:
        return decode_poster(data, size, shrink)
    except PosterError as error:
        return Unreadable(str(error), may_recover=False)


def recovered_reason(file: PosterFile) -> str | None:
    """Return why a cache that masks this file is out of date if it is readable now, else None."""
    try:
        file.read_bytes()
    except OSError:
        return None
    return f"{file.name} could not be read when it was built, but can be now"


def _read_meta(folder: Path) -> dict[str, Any]:
    meta = json.loads((folder / _META).read_text(encoding="utf-8"))
    return {"count": int(meta["count"]), "masked": masked_from_json(meta["masked"])}


def _unusable_reason(
    folder: Path, files: Sequence[PosterFile], shape: tuple[int, int, int]
) -> str | None:
    """Return why a cache folder can't be used (truncated files, recovered posters), or None."""
    try:
        meta = _read_meta(folder)
        size = (folder / _IMAGES).stat().st_size
    except (OSError, ValueError, TypeError, KeyError) as error:
        return f"damaged ({error})"
    if meta["count"] + len(meta["masked"]) != len(files):
        return f"it has {meta['count']} posters and {len(meta['masked'])} masked, of {len(files)}"
    expected_size = meta["count"] * math.prod(shape)
    if size != expected_size:
        return f"{_IMAGES} has {size:,} bytes, not {expected_size:,}"
    return first_recovered_reason(
        meta["masked"], lambda position: recovered_reason(files[position])
    )
