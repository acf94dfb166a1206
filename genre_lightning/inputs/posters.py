"""Posters decoded once, into one memory-mapped file of pixels that every later run reuses.

A poster that can't be decoded rightly is masked and listed with its name and the reason; it never
stops a run and no other picture takes its place.
"""

from __future__ import annotations

import contextlib
import io
import json
import mmap
import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from genre_lightning.inputs.store import content_key, stored_folder
from genre_lightning.movies.movie import PosterFile

if TYPE_CHECKING:
    import torch

#: Part of every cache's key: raise it when `decode_poster` gives other pixels than before.
DECODER_VERSION = 1

#: What is opened at all. Left out are formats that no poster comes in, among them EPS, for which
#: Pillow starts Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")

#: A poster with more pixels than this is refused by its header, before any of them is decoded
#: (64 million are A3 at 600 dpi). Pillow's own limit is a global that other code may have lifted.
MAX_PIXELS = 64_000_000
MAX_FILE_BYTES = 256 * 2**20

#: Posters above this many pixels are decoded one at a time, so that the memory needed does not
#: grow with the number of threads.
_LARGE_PIXELS = 8_000_000
_large = threading.Lock()

#: So much is carried to a device at a time.
_PART_BYTES = 64 * 2**20

_IMAGES, _META = "images.u8", "meta.json"

#: What makes an image upright for each value of the EXIF tag Orientation.
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class PosterError(ValueError):
    """A poster that can't be decoded rightly; the message is the reason, without the name."""


def pool_stages(pool: int) -> tuple[int, int]:
    """How the averaging of ``poster_pool`` x ``poster_pool`` pixels is shared out.

    Returns:
        The side of the squares that :func:`decode_poster` averages, and of those left to the batch.
        Two are, so that a random crop is stretched from more pixels than it becomes.

    Raises:
        ValueError: neither 1 nor an even number.
    """
    if pool != 1 and (pool < 2 or pool % 2):
        raise ValueError(f"poster_pool must be 1 or an even number, not {pool}")
    return (1, 1) if pool == 1 else (pool // 2, 2)


def decode_poster(
    source: bytes | str | Path | Image.Image, size: int, shrink: int = 1
) -> np.ndarray:
    """Decode a poster to (size, size, 3) uint8 RGB, squashed to a square as in the original recipe.

    Grayscale, palette and CMYK become RGB, 16 bits become 8, transparent parts become white, the
    first frame of an animation counts, and EXIF orientation is applied. A large JPEG is decoded at
    a half, quarter or eighth of its size, whatever is still at least `size`, which costs less and
    looks the same. The resampling filter is bicubic, stretched when it shrinks (antialiased).
    Numbers do not depend on where the poster comes from, except that such a reduction is not made
    for an image that is already open.

    Args:
        source: an encoded image, the way to one, or an open one, which is not changed (but its
            pixels are loaded).
        size: height and width in pixels.
        shrink: side of the squares of pixels that are averaged then, each mean rounded: the result
            is (size // shrink, size // shrink, 3).

    Raises:
        PosterError: not an image of a known format, truncated or damaged, more than `MAX_PIXELS`
            pixels, pixel values of unknown range.
        OSError: the file can't be read. That says nothing about the poster.
    """
    if isinstance(source, (str, Path)):
        with Path(source).open("rb") as file:
            source = file.read(MAX_FILE_BYTES + 1)
    if isinstance(source, bytes) and len(source) > MAX_FILE_BYTES:
        raise PosterError(f"more than {MAX_FILE_BYTES:,} bytes")
    try:
        if isinstance(source, Image.Image):
            return _pixels(source, size, shrink, opened_here=False)
        with Image.open(io.BytesIO(source), formats=FORMATS) as image:
            return _pixels(image, size, shrink, opened_here=True)
    except PosterError:
        raise
    except Exception as error:  # on a damaged file Pillow raises anything
        raise PosterError(_reason(error, empty=source == b"")) from error


def _pixels(image: Image.Image, size: int, shrink: int, *, opened_here: bool) -> np.ndarray:
    pixels = image.width * image.height
    if pixels > MAX_PIXELS:
        raise PosterError(f"{image.width} x {image.height} pixels, more than {MAX_PIXELS:,}")
    if opened_here:
        image.draft(None, (size, size))
    large = pixels > 4 * _LARGE_PIXELS or image.width * image.height > _LARGE_PIXELS
    with _large if large else contextlib.nullcontext():
        image.load()
        orientation = _orientation(image)
        # From reducing_gap 3 on, the shortcut for large images can't be told from doing without.
        small = _to_8_bit_colour(image).resize(
            (size, size), Image.Resampling.BICUBIC, reducing_gap=3.0
        )
    if small.mode == "RGBA":
        small = Image.alpha_composite(Image.new("RGBA", small.size, "white"), small).convert("RGB")
    if orientation in _UPRIGHT:
        # After squashing to a square: turning commutes with it, and there is less to turn.
        small = small.transpose(_UPRIGHT[orientation])
    if shrink > 1:
        whole = size // shrink * shrink
        small = small.reduce(shrink, box=(0, 0, whole, whole))
    return np.array(small)


def _orientation(image: Image.Image) -> Any:
    """The EXIF orientation, or None; a block that can't be read does not spoil the picture."""
    try:
        return image.getexif().get(_ORIENTATION_TAG)
    except Exception:  # noqa: BLE001 - on a damaged block Pillow's reader raises anything
        return None


def _to_8_bit_colour(image: Image.Image) -> Image.Image:
    """Any mode to RGB, or to RGBA where something is transparent, by rules that keep what one sees.

    Raises:
        PosterError: numbers of which nobody says which one is white.
    """
    if image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.float32) / 257.0  # 65535 is white
        return Image.fromarray(np.round(values).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise PosterError(f"pixel values of unknown range (mode {image.mode})")
    mode = "RGBA" if image.has_transparency_data else "RGB"
    return image if image.mode == mode else image.convert(mode)


def _reason(error: Exception, empty: bool) -> str:
    if empty:
        return "empty file"
    if isinstance(error, Image.UnidentifiedImageError):
        return f"not an image of a known format ({', '.join(FORMATS)})"
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return f"more than {MAX_PIXELS:,} pixels"
    if isinstance(error, MemoryError):
        return "not enough memory to decode it"
    return f"damaged: {error}" if str(error) else f"damaged: {type(error).__name__}"


@dataclass(frozen=True)
class PosterCache:
    """The decoded posters of N movies.

    Attributes:
        images: (P, H, W, 3) uint8 RGB, memory-mapped and read-only.
        row: (N,) int64, each movie's place in `images`, -1 where it has no poster or a masked one.
        unreadable: name and reason of each masked poster.
        folder: where it is stored.
    """

    images: np.ndarray
    row: np.ndarray
    unreadable: list[tuple[str, str]]
    folder: Path

    def read_ahead(self, places: np.ndarray) -> None:
        """Have the system begin to read some images into memory, where they are not there yet.

        Without it every page of a cache that is larger than the memory is waited for.

        Args:
            places: of the images.
        """
        pages = getattr(self.images, "_mmap", None)
        if pages is None or not hasattr(mmap, "MADV_WILLNEED"):  # not on Windows
            return
        size = self.images[0].nbytes
        for place in places.tolist():
            start = place * size // mmap.PAGESIZE * mmap.PAGESIZE
            pages.madvise(mmap.MADV_WILLNEED, start, (place + 1) * size - start)

    def __reduce__(self) -> tuple[Any, ...]:
        # To another process goes the way to the pixels, not a copy of them.
        side = self.images.shape[1]
        return _reopen, (self.folder, len(self.images), side, self.row, self.unreadable)


def open_poster_cache(
    posters: Sequence[PosterFile | None],
    *,
    size: int,
    shrink: int = 1,
    cache_dir: str | Path,
    workers: int | None = None,
    progress: bool = True,
) -> PosterCache:
    """Open the cache of these posters, first decoding them all where no earlier run has.

    The cache is found by place, size and stamp of every poster file, so a file that has changed is
    noticed without being read. Memory needed for building does not grow with the number of posters.

    Args:
        posters: of N movies, None for a movie without.
        size: H = W of the decoded posters.
        shrink: as for :func:`decode_poster`; the cache holds what is left.
        cache_dir: the folder under which caches are kept; safe to share between processes.
        workers: threads that decode; None for one per core.
        progress: show a bar on standard error while decoding, if that is a terminal.

    Raises:
        CacheError: the cache can't be written.
        ValueError: shrink not in 1 to size, or workers below 1.
    """
    if not 1 <= shrink <= size:
        raise ValueError(f"shrink ({shrink}) must lie between 1 and size ({size})")
    if workers is not None and workers < 1:
        raise ValueError(f"workers ({workers}) must be at least 1")
    places = _places(posters)
    unique: dict[str, int] = {}
    files: list[PosterFile] = []
    for place, poster in zip(places, posters, strict=True):
        if poster is not None and place not in unique:  # movies may share one
            unique[place] = len(files)
            files.append(poster)
    key = content_key(
        DECODER_VERSION,
        size,
        shrink,
        list(unique),
        np.array([(file.size, file.stamp) for file in files], dtype=np.int64),
    )

    def build(folder: Path) -> None:
        _decode_all(files, folder, (size, shrink), workers or _num_cores(), progress)

    folder = stored_folder(
        cache_dir, "posters", key, build, lambda folder: _damage(folder, files, size // shrink)
    )
    meta = _read_meta(folder)
    found = np.full(len(files), -1, dtype=np.int64)
    masked = meta["masked"]
    readable = np.ones(len(files), dtype=bool)
    readable[[index for index, _, _ in masked]] = False
    found[readable] = np.arange(meta["count"])
    named = np.array([unique.get(place, -1) for place in places], dtype=np.int64)
    row = np.where(named >= 0, found[named], -1) if files else named
    unreadable = [(files[index].name, reason) for index, reason, _ in masked]
    return _reopen(folder, meta["count"], size // shrink, row, unreadable)


def to_device(images: np.ndarray, device: torch.device) -> torch.Tensor:
    """A copy of the pixels of a cache on a device: the same shape, uint8.

    Read a part at a time, so that no second copy of all is made in the computer's memory.

    Raises:
        torch.OutOfMemoryError: there is no room on the device.
    """
    import torch  # whoever only decodes a poster does without

    copy = torch.empty(images.shape, dtype=torch.uint8, device=device)
    size = max(1, _PART_BYTES * len(images) // max(1, images.nbytes))
    for start in range(0, len(images), size):
        part = np.array(images[start : start + size])  # one that may be written, as PyTorch wants
        copy[start : start + size] = torch.from_numpy(part)
    return copy


def _reopen(
    folder: Path, count: int, side: int, row: np.ndarray, unreadable: list[tuple[str, str]]
) -> PosterCache:
    shape = (count, side, side, 3)
    if count:
        images: np.ndarray = np.memmap(folder / _IMAGES, dtype=np.uint8, mode="r", shape=shape)
    else:  # an empty file can't be mapped
        images = np.zeros(shape, dtype=np.uint8)
    return PosterCache(images, row, unreadable, folder)


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
    files: Sequence[PosterFile], folder: Path, size: tuple[int, int], workers: int, progress: bool
) -> None:
    """Fill a cache folder: the pixels one after another, then what is masked and why."""
    # Here, since one prediction decodes a poster too, without a bar and in a hurry.
    import rich.progress
    from rich.console import Console

    masked: list[tuple[int, str, bool]] = []
    console = Console(stderr=True)
    bar = rich.progress.Progress(
        rich.progress.TextColumn("decoding posters"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeRemainingColumn(),
        console=console,
        disable=not (progress and console.is_terminal),
    )
    # Appending, instead of filling a file made at its full size: a full disk is an error and not a
    # signal that kills, and after a power cut the file is seen to be too short.
    with (folder / _IMAGES).open("wb") as images, bar:
        results = _in_order(files, size, workers)
        for index, result in enumerate(bar.track(results, total=len(files))):
            if isinstance(result, np.ndarray):
                images.write(result.data)
            else:
                masked.append((index, *result))
    meta = {"count": len(files) - len(masked), "masked": masked}
    (folder / _META).write_text(json.dumps(meta), encoding="utf-8")


def _in_order(
    files: Sequence[PosterFile], size: tuple[int, int], workers: int
) -> Iterator[np.ndarray | tuple[str, bool]]:
    """Decode on several threads (Pillow works outside the interpreter's lock), a few ahead."""
    Image.init()  # loads the formats: not while several threads ask for them
    waiting: deque[Future[np.ndarray | tuple[str, bool]]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="posters")
    try:
        for file in files:
            if len(waiting) >= 8 * workers:
                yield waiting.popleft().result()
            waiting.append(pool.submit(_decode_file, file, size))
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _decode_file(file: PosterFile, size: tuple[int, int]) -> np.ndarray | tuple[str, bool]:
    """Pixels, or why there are none and whether trying again later may help."""
    if not file.exists:
        return "no such file", False
    if file.size > MAX_FILE_BYTES:
        return f"more than {MAX_FILE_BYTES:,} bytes", False
    try:
        data = file.read_bytes()
    except OSError as error:
        return f"can't be read: {error.strerror or error}", True
    try:
        return decode_poster(data, *size)
    except PosterError as error:
        return str(error), False


def _read_meta(folder: Path) -> dict[str, Any]:
    meta = json.loads((folder / _META).read_text(encoding="utf-8"))
    return {"count": int(meta["count"]), "masked": [tuple(item) for item in meta["masked"]]}


def _damage(folder: Path, files: Sequence[PosterFile], side: int) -> str | None:
    """Why a cache folder can't be used, or None: files cut short, posters readable by now."""
    try:
        meta = _read_meta(folder)
        found = (folder / _IMAGES).stat().st_size
    except (OSError, ValueError, TypeError, KeyError) as error:
        return f"damaged ({error})"
    if meta["count"] + len(meta["masked"]) != len(files):
        return f"it has {meta['count']} posters and {len(meta['masked'])} masked, of {len(files)}"
    wanted = meta["count"] * side * side * 3
    if found != wanted:
        return f"{_IMAGES} has {found:,} bytes, not {wanted:,}"
    for index, _, again in meta["masked"]:
        if again:
            try:
                files[index].read_bytes()
            except OSError:
                continue
            return f"{files[index].name} could not be read then, and can be now"
    return None


def _num_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
