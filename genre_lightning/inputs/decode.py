"""Decoding of poster files to pixels, shared by all parts of the package."""

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

#: Part of every cache's key: raise it when `decode_poster` gives different pixels.
DECODER_VERSION = 1

#: Posters that take more bytes than this are decoded one at a time, so that memory use does not
#: grow with the number of threads.
_LARGE_BYTES = 32_000_000
_large_lock = threading.Lock()
#: Pixels that are converted at a time.
_BAND_PIXELS = 1_000_000
#: As for ``Image.resize``; from 3 on, averaging whole squares first makes no visible difference.
_REDUCING_GAP = 3

#: The transposition that turns an image upright, by the EXIF tag Orientation.
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
#: Orientations whose transposition swaps width and height.
_SIDEWAYS = (5, 6, 7, 8)


def decode_poster(
    source: bytes | str | Path | Image.Image, size: int | tuple[int, int], shrink: int = 1
) -> np.ndarray:
    """Decode a poster to (H, W, 3) uint8 RGB, stretched to that size.

    Grayscale, palette and CMYK become RGB, 16 bits become 8, transparent parts become white, only
    the first frame of an animation is used, and EXIF orientation is applied. A large JPEG is
    decoded at a half, quarter or eighth of its size if the result is still at least H x W, which
    is cheaper and looks the same. Resampling is bicubic, antialiased when it shrinks. The result
    doesn't depend on the kind of source, except that images that are already open are never decoded
    at a reduced size.

    Args:
        source: an encoded image, a path, or an open image, which is not changed (except that its
            pixels are loaded).
        size: (H, W) in pixels, or one number for a square, as in the original recipe.
        shrink: side of the squares of pixels that are averaged at the end, with rounded means: the
            result is (H // shrink, W // shrink, 3).

    Raises:
        PosterError: the image has an unknown format or pixel values of unknown range, is truncated
            or damaged, or exceeds the limits of ``inputs/poster_limits.py``.
        OSError: the file can't be read, which says nothing about its content.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if isinstance(source, Image.Image):
        with _as_poster_error():
            num_bytes = check_image(source, source.size)
            return _to_pixels(source, (height, width), shrink, num_bytes)
    data = _read(source)
    with _as_poster_error(empty=not data), _open_image(data) as (image, extra_bytes):
        full_size = image.size
        image.draft(None, (max(height, width), max(height, width)))
        num_bytes = check_image(image, full_size, extra_bytes)
        return _to_pixels(image, (height, width), shrink, num_bytes)


def upright_size(source: bytes | Path | Image.Image) -> tuple[int, int]:
    """Return width and height of a decodable poster, with its EXIF orientation applied."""
    if isinstance(source, Image.Image):
        size, orientation = source.size, _orientation(source)
    else:
        with _open_image(_read(source)) as (image, _):
            size, orientation = image.size, _orientation(image)
    return (size[1], size[0]) if orientation in _SIDEWAYS else size


def _read(source: bytes | str | Path) -> bytes:
    if isinstance(source, bytes):
        return source
    path = Path(source)
    if not stat.S_ISREG(path.stat().st_mode):
        # Reading a pipe can block, and reading a device can never end.
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    with path.open("rb") as file:
        return file.read(MAX_FILE_BYTES + 1)


@contextlib.contextmanager
def _open_image(data: bytes) -> Iterator[tuple[Image.Image, int]]:
    """Open an image without decoding it; yield it and the bytes it takes in addition to its pixels.

    This is the only place where poster files are opened.
    """
    decoder_bytes = check_file(data)
    with Image.open(MeteredBytes(data), formats=FORMATS) as image:
        yield image, decoder_bytes + len(data)


@contextlib.contextmanager
def _as_poster_error(empty: bool = False) -> Iterator[None]:
    try:
        yield
    except PosterError:
        raise
    except Exception as error:  # on a damaged file Pillow raises anything
        raise PosterError(_error_reason(error, empty)) from error


def _to_pixels(
    image: Image.Image, size: tuple[int, int], shrink: int, num_bytes: int
) -> np.ndarray:
    height, width = size
    with _large_lock if num_bytes > _LARGE_BYTES else contextlib.nullcontext():
        image.load()
        orientation = _orientation(image)
        sideways = orientation in _SIDEWAYS
        resized = _resize(image, (height, width) if sideways else (width, height))
    if resized.mode == "RGBA":
        resized = Image.alpha_composite(Image.new("RGBA", resized.size, "white"), resized).convert(
            "RGB"
        )
    if orientation in _UPRIGHT:
        # After resizing, with which transposing commutes: there are fewer pixels to move.
        resized = resized.transpose(_UPRIGHT[orientation])
    if shrink > 1:
        box = (0, 0, width // shrink * shrink, height // shrink * shrink)
        resized = resized.reduce(shrink, box=box)
    return np.array(resized)


def _resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resize to RGB or RGBA with bicubic resampling, as ``Image.resize`` with ``_REDUCING_GAP``.

    Works on bands of rows, so that no second copy of a large image is made.
    """
    mode = "RGBA" if image.has_transparency_data else "RGB"
    premultiplied = {"RGBA": "RGBa", "RGB": "RGB"}[mode]
    factor_x, factor_y = (
        int(full / side / _REDUCING_GAP) or 1 for full, side in zip(image.size, size, strict=True)
    )
    if image.width * image.height <= _BAND_PIXELS:
        return _to_8_bit_colour(image, mode).resize(
            size, Image.Resampling.BICUBIC, reducing_gap=_REDUCING_GAP
        )
    averaging = factor_x > 1 or factor_y > 1
    # Without averaging, each band is resized horizontally first, as Pillow does.
    width = -(-image.width // factor_x) if averaging else size[0]
    canvas = Image.new(premultiplied, (width, -(-image.height // factor_y)))
    rows = max(1, _BAND_PIXELS // (image.width * factor_y)) * factor_y
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        band = _to_8_bit_colour(band, mode).convert(premultiplied)
        if averaging:
            band = band.reduce((factor_x, factor_y))
        else:
            band = band.resize((width, band.height), Image.Resampling.BICUBIC)
        canvas.paste(band, (0, top // factor_y))
    box = (0, 0, image.width / factor_x if averaging else width, image.height / factor_y)
    return canvas.resize(size, Image.Resampling.BICUBIC, box=box).convert(mode)


def _orientation(image: Image.Image) -> Any:
    """Return the EXIF orientation, or None if there is none or EXIF can't be read."""
    if len(image.info.get("exif", b"")) > MAX_TABLE_BYTES:
        return None
    try:
        return image.getexif().get(_ORIENTATION_TAG)
    except Exception:  # noqa: BLE001 - on a damaged block Pillow's reader raises anything
        return None


def _to_8_bit_colour(image: Image.Image, mode: str) -> Image.Image:
    """Convert an image of any mode to RGB or RGBA, keeping its appearance.

    Raises:
        PosterError: the pixel values have an unknown range.
    """
    if image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.float32) / 257.0  # 65535 is white
        return Image.fromarray(np.round(values).astype(np.uint8)).convert(mode)
    if image.mode in ("I", "F"):
        raise PosterError(f"pixel values of unknown range (mode {image.mode})")
    return image if image.mode == mode else image.convert(mode)


def _error_reason(error: Exception, empty: bool) -> str:
    if empty:
        return "empty file"
    if isinstance(error, Image.UnidentifiedImageError):
        return f"not an image of a known format ({', '.join(FORMATS)})"
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return f"more than {MAX_PIXELS:,} pixels"
    if isinstance(error, MemoryError):
        return "not enough memory to decode it"
    return f"damaged: {error}" if str(error) else f"damaged: {type(error).__name__}"
