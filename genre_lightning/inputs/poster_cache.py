"""Posters decoded once, into one memory-mapped file of pixels that every later run reuses.

A poster that can't be decoded rightly is masked and listed with its name and the reason; it never
stops a run and no other picture takes its place.
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
    first_recovered,
    masked_from_json,
)
from genre_lightning.inputs.poster_limits import MAX_FILE_BYTES, PosterError
from genre_lightning.movies.movie import PosterFile
from genre_lightning.progress import progress
from genre_lightning.store import content_key, stored_folder

if TYPE_CHECKING:
    import torch

#: Why a poster that the dataset names has no pixels; the dataset's summary tells of it first.
NO_SUCH_FILE = "no such file"
#: So much is carried to a device at a time.
_PART_BYTES = 64 * 2**20

_IMAGES, _META = "images.u8", "meta.json"


def open_poster_cache(
    posters: Sequence[PosterFile | None],
    *,
    size: tuple[int, int],
    shrink: int = 1,
    store: Store,
) -> DenseFeatures:
    """Open the cache of these posters, first decoding them all where no earlier run has.

    The cache is found by place, size and stamp of every poster file, so a file that has changed is
    noticed without being read. Memory needed for building does not grow with the number of posters.

    Args:
        posters: of N movies, None for a movie without.
        size: (H, W) of the decoded posters.
        shrink: as for :func:`decode_poster`; the cache holds what is left.
        store: where it is kept.

    Returns:
        "pixels", (M, H, W, 3) uint8 RGB, memory-mapped and read-only; the place -1 is that of a
        movie without a poster, or with one that is masked.

    Raises:
        CacheError: the cache can't be written.
        ValueError: shrink is larger than the poster, or the store's workers are below 1.
    """
    if not 1 <= shrink <= min(size):
        raise ValueError(f"shrink ({shrink}) must lie between 1 and size ({min(size)})")
    if store.workers is not None and store.workers < 1:
        raise ValueError(f"workers ({store.workers}) must be at least 1")
    files, named = unique_files(posters)
    # One number for a square, as in caches that are there already.
    side = size[0] if size[0] == size[1] else list(size)
    key = content_key(DECODER_VERSION, side, shrink, *files_key(files))

    def build(folder: Path) -> None:
        _decode_all(files, folder, size, shrink, store)

    shape = (size[0] // shrink, size[1] // shrink, 3)
    folder = stored_folder(
        store.folder, "posters", key, build, lambda folder: _damage(folder, files, shape)
    )
    meta = _read_meta(folder)
    masked = meta["masked"]
    place, unreadable = places_of(files, named, masked)
    count = (meta["count"], *shape)
    images = (
        np.memmap(folder / _IMAGES, dtype=np.uint8, mode="r", shape=count)
        if meta["count"]
        else np.zeros(count, dtype=np.uint8)  # an empty file can't be mapped
    )
    return DenseFeatures("pixels", images, place, unreadable)


def unique_files(posters: Sequence[PosterFile | None]) -> tuple[list[PosterFile], np.ndarray]:
    """The files that N movies' posters lie in; movies may share one.

    Returns:
        M files, and (N,) int64, which of them is each movie's; -1 for a movie without.
    """
    index: dict[str, int] = {}
    files: list[PosterFile] = []
    named = np.full(len(posters), -1, dtype=np.int64)
    for row, (place, poster) in enumerate(zip(_places(posters), posters, strict=True)):
        if poster is None:
            continue
        if place not in index:
            index[place] = len(files)
            files.append(poster)
        named[row] = index[place]
    return files, named


def files_key(files: Sequence[PosterFile]) -> tuple[list[str], np.ndarray]:
    """What of the files is part of a cache's key: place, size and stamp of each."""
    stamps = np.array([(file.size, file.stamp) for file in files], dtype=np.int64)
    return _places(files), stamps


def places_of(
    files: Sequence[PosterFile], named: np.ndarray, masked: Sequence[Masked]
) -> tuple[np.ndarray, list[tuple[str, str]]]:
    """Where each movie's poster is in a cache that holds all files but the masked ones.

    Returns:
        (N,) int64, -1 for none; name and reason of each masked poster.
    """
    found = np.full(len(files), -1, dtype=np.int64)
    readable = np.ones(len(files), dtype=bool)
    readable[[item.position for item in masked]] = False
    found[readable] = np.arange(readable.sum())
    place = np.where(named >= 0, found[named], -1) if files else named
    return place, [(files[item.position].name, item.reason) for item in masked]


def to_device(images: np.ndarray, device: torch.device) -> torch.Tensor:
    """A copy of a cache's array on a device: the same shape and type.

    Read a part at a time, so that no second copy of all is made in the computer's memory.

    Raises:
        torch.OutOfMemoryError: there is no room on the device.
    """
    import torch  # whoever only decodes a poster does without

    copy = torch.empty(images.shape, dtype=torch.from_numpy(images[:0].copy()).dtype, device=device)
    size = max(1, _PART_BYTES * len(images) // max(1, images.nbytes))
    for start in range(0, len(images), size):
        part = np.array(images[start : start + size])  # one that may be written, as PyTorch wants
        copy[start : start + size] = torch.from_numpy(part)
    return copy


def _places(posters: Sequence[PosterFile | None]) -> list[str]:
    """One string per poster file, the same however the dataset's folder is written; "" for None."""
    parents: dict[str, str] = {}
    places = []
    for poster in posters:
        if poster is None:
            places.append("")
            continue
        parent, name = os.path.split(poster.path)
        if parent not in parents:
            parents[parent] = os.path.realpath(parent)
        member = "" if poster.member is None else f"\0{poster.member}"
        places.append(f"{parents[parent]}{os.sep}{name}{member}")
    return places


def _decode_all(
    files: Sequence[PosterFile], folder: Path, size: tuple[int, int], shrink: int, store: Store
) -> None:
    """Fill a cache folder: the pixels one after another, then what is masked and why."""
    masked: list[Masked] = []
    # Appending, instead of filling a file made at its full size: a full disk is an error and not a
    # signal that kills, and after a power cut the file is seen to be too short.
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
    """Decode on several threads (Pillow works outside the interpreter's lock), a few ahead.

    Yields:
        In order, of each file its pixels, or why there are none.
    """
    Image.init()  # loads the formats: not while several threads ask for them
    waiting: deque[Future[np.ndarray | Unreadable]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="posters")
    try:
        for file in files:
            if len(waiting) >= 8 * workers:
                yield waiting.popleft().result()
            waiting.append(pool.submit(decode_file, file, size, shrink))
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def decode_file(
    file: PosterFile, size: tuple[int, int], shrink: int = 1
) -> np.ndarray | Unreadable:
    """(H // shrink, W // shrink, 3) uint8 pixels of a poster, or why there are none."""
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


def recovered(file: PosterFile) -> str | None:
    """Why a cache in which this file is masked is out of date: it can be read by now; else None."""
    try:
        file.read_bytes()
    except OSError:
        return None
    return f"{file.name} could not be read then, and can be now"


def _read_meta(folder: Path) -> dict[str, Any]:
    meta = json.loads((folder / _META).read_text(encoding="utf-8"))
    return {"count": int(meta["count"]), "masked": masked_from_json(meta["masked"])}


def _damage(folder: Path, files: Sequence[PosterFile], shape: tuple[int, int, int]) -> str | None:
    """Why a cache folder can't be used, or None: files cut short, posters readable by now."""
    try:
        meta = _read_meta(folder)
        found = (folder / _IMAGES).stat().st_size
    except (OSError, ValueError, TypeError, KeyError) as error:
        return f"damaged ({error})"
    if meta["count"] + len(meta["masked"]) != len(files):
        return f"it has {meta['count']} posters and {len(meta['masked'])} masked, of {len(files)}"
    wanted = meta["count"] * math.prod(shape)
    if found != wanted:
        return f"{_IMAGES} has {found:,} bytes, not {wanted:,}"
    return first_recovered(meta["masked"], lambda position: recovered(files[position]))
