"""A poster's file to pixels: one way for every part of the package."""

from __future__ import annotations

import contextlib
import errno
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from genre_lightning.inputs.poster_limits import (
    FORMATS,
    MAX_FILE_BYTES,
    MAX_PIXELS,
    MAX_TABLE_BYTES,
    MeteredBytes,
    PosterError,
    check_file,
    check_image,
)

#: Part of every cache's key: raise it when `decode_poster` gives other pixels than before.
DECODER_VERSION = 1

#: Posters that take more bytes than this are decoded one at a time, so that the memory needed does
#: not grow with the number of threads.
_LARGE_BYTES = 32_000_000
_large = threading.Lock()
#: Pixels that are converted at a time.
_BAND_PIXELS = 1_000_000
#: From 3 on, first averaging whole squares can't be told from doing without.
_REDUCING_GAP = 3

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
#: Of these, the ones that swap width and height.
_SIDEWAYS = (5, 6, 7, 8)


def decode_poster(
    source: bytes | str | Path | Image.Image, size: int | tuple[int, int], shrink: int = 1
) -> np.ndarray:
    """Decode a poster to (H, W, 3) uint8 RGB, stretched to that size.

    Grayscale, palette and CMYK become RGB, 16 bits become 8, transparent parts become white, the
    first frame of an animation counts, and EXIF orientation is applied. A large JPEG is decoded at
    a half, quarter or eighth of its size, whatever is still at least H x W, which costs less and
    looks the same. The resampling filter is bicubic, stretched when it shrinks (antialiased).
    Numbers do not depend on where the poster comes from, except that such a reduction is not made
    for an image that is already open.

    Args:
        source: an encoded image, the way to one, or an open one, which is not changed (but its
            pixels are loaded).
        size: (H, W) in pixels, or one number for a square, as in the original recipe.
        shrink: side of the squares of pixels that are averaged then, each mean rounded: the result
            is (H // shrink, W // shrink, 3).

    Raises:
        PosterError: not an image of a known format, truncated or damaged, more work or memory than
            a poster may cost (``inputs/poster_limits.py``), pixel values of unknown range.
        OSError: the file can't be read. That says nothing about the poster.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if isinstance(source, Image.Image):
        with _told_reason():
            needed = check_image(source, source.size)
            return _pixels(source, (height, width), shrink, needed)
    data = _read(source)
    with _told_reason(empty=not data), _opened(data) as (image, further):
        whole = image.size
        image.draft(None, (max(height, width), max(height, width)))
        needed = check_image(image, whole, further)
        return _pixels(image, (height, width), shrink, needed)


def upright_size(source: bytes | Path | Image.Image) -> tuple[int, int]:
    """Width and height of a poster that could be decoded, as one sees it."""
    if isinstance(source, Image.Image):
        size, orientation = source.size, _orientation(source)
    else:
        with _opened(_read(source)) as (image, _):
            size, orientation = image.size, _orientation(image)
    return (size[1], size[0]) if orientation in _SIDEWAYS else size


def _read(source: bytes | str | Path) -> bytes:
    if isinstance(source, bytes):
        return source
    path = Path(source)
    if not stat.S_ISREG(path.stat().st_mode):
        # A pipe would be waited for, and a device never ends.
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    with path.open("rb") as file:
        return file.read(MAX_FILE_BYTES + 1)


@contextlib.contextmanager
def _opened(data: bytes) -> Iterator[tuple[Image.Image, int]]:
    """An image that is not decoded yet, and the bytes that it takes beside its pixels.

    The one place where files of posters are opened.
    """
    extra = check_file(data)
    with Image.open(MeteredBytes(data), formats=FORMATS) as image:
        yield image, extra + len(data)


@contextlib.contextmanager
def _told_reason(empty: bool = False) -> Iterator[None]:
    try:
        yield
    except PosterError:
        raise
    except Exception as error:  # on a damaged file Pillow raises anything
        raise PosterError(_reason(error, empty)) from error


def _pixels(image: Image.Image, size: tuple[int, int], shrink: int, needed: int) -> np.ndarray:
    height, width = size
    with _large if needed > _LARGE_BYTES else contextlib.nullcontext():
        image.load()
        orientation = _orientation(image)
        turned = orientation in _SIDEWAYS
        small = _stretched(image, (height, width) if turned else (width, height))
    if small.mode == "RGBA":
        small = Image.alpha_composite(Image.new("RGBA", small.size, "white"), small).convert("RGB")
    if orientation in _UPRIGHT:
        # After stretching: turning commutes with it, and there is less to turn.
        small = small.transpose(_UPRIGHT[orientation])
    if shrink > 1:
        box = (0, 0, width // shrink * shrink, height // shrink * shrink)
        small = small.reduce(shrink, box=box)
    return np.array(small)


def _stretched(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """In RGB or RGBA, bicubic, as ``Image.resize`` with this ``reducing_gap`` gives it.

    A band of rows at a time, so that no second copy of a large image is made.
    """
    mode = "RGBA" if image.has_transparency_data else "RGB"
    premultiplied = {"RGBA": "RGBa", "RGB": "RGB"}[mode]
    across, down = (
        int(whole / side / _REDUCING_GAP) or 1 for whole, side in zip(image.size, size, strict=True)
    )
    if image.width * image.height <= _BAND_PIXELS:
        return _to_8_bit_colour(image, mode).resize(
            size, Image.Resampling.BICUBIC, reducing_gap=_REDUCING_GAP
        )
    averaged = across > 1 or down > 1
    # Not averaged, the rows of each band are stretched, which Pillow does first as well.
    width = -(-image.width // across) if averaged else size[0]
    joined = Image.new(premultiplied, (width, -(-image.height // down)))
    rows = max(1, _BAND_PIXELS // (image.width * down)) * down
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        band = _to_8_bit_colour(band, mode).convert(premultiplied)
        if averaged:
            band = band.reduce((across, down))
        else:
            band = band.resize((width, band.height), Image.Resampling.BICUBIC)
        joined.paste(band, (0, top // down))
    box = (0, 0, image.width / across if averaged else width, image.height / down)
    return joined.resize(size, Image.Resampling.BICUBIC, box=box).convert(mode)


def _orientation(image: Image.Image) -> Any:
    """The EXIF orientation, or None; a block that can't be read does not spoil the picture."""
    if len(image.info.get("exif", b"")) > MAX_TABLE_BYTES:
        return None
    try:
        return image.getexif().get(_ORIENTATION_TAG)
    except Exception:  # noqa: BLE001 - on a damaged block Pillow's reader raises anything
        return None


def _to_8_bit_colour(image: Image.Image, mode: str) -> Image.Image:
    """Any mode to RGB, or RGBA, by rules that keep what one sees.

    Raises:
        PosterError: numbers of which nobody says which one is white.
    """
    if image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.float32) / 257.0  # 65535 is white
        return Image.fromarray(np.round(values).astype(np.uint8)).convert(mode)
    if image.mode in ("I", "F"):
        raise PosterError(f"pixel values of unknown range (mode {image.mode})")
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
