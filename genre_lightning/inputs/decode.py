"""A poster's file to pixels: one way for every part of the package."""

from __future__ import annotations

import contextlib
import io
import threading
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from genre_lightning.errors import InputError

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


class PosterError(InputError):
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
        PosterError: not an image of a known format, truncated or damaged, more than `MAX_PIXELS`
            pixels, pixel values of unknown range.
        OSError: the file can't be read. That says nothing about the poster.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if isinstance(source, (str, Path)):
        with Path(source).open("rb") as file:
            source = file.read(MAX_FILE_BYTES + 1)
    if isinstance(source, bytes) and len(source) > MAX_FILE_BYTES:
        raise PosterError(f"more than {MAX_FILE_BYTES:,} bytes")
    try:
        if isinstance(source, Image.Image):
            return _pixels(source, (height, width), shrink, opened_here=False)
        with Image.open(io.BytesIO(source), formats=FORMATS) as image:
            return _pixels(image, (height, width), shrink, opened_here=True)
    except PosterError:
        raise
    except Exception as error:  # on a damaged file Pillow raises anything
        raise PosterError(_reason(error, empty=source == b"")) from error


def upright_size(source: bytes | Path | Image.Image) -> tuple[int, int]:
    """Width and height of a poster that could be decoded, as one sees it."""
    if isinstance(source, Image.Image):
        size, orientation = source.size, _orientation(source)
    else:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            size, orientation = image.size, _orientation(image)
    return (size[1], size[0]) if orientation in _SIDEWAYS else size


def _pixels(
    image: Image.Image, size: tuple[int, int], shrink: int, *, opened_here: bool
) -> np.ndarray:
    pixels = image.width * image.height
    if pixels > MAX_PIXELS:
        raise PosterError(f"{image.width} x {image.height} pixels, more than {MAX_PIXELS:,}")
    height, width = size
    if opened_here:
        image.draft(None, (max(size), max(size)))
    large = pixels > 4 * _LARGE_PIXELS or image.width * image.height > _LARGE_PIXELS
    with _large if large else contextlib.nullcontext():
        image.load()
        orientation = _orientation(image)
        # From reducing_gap 3 on, the shortcut for large images can't be told from doing without.
        turned = orientation in _SIDEWAYS
        small = _to_8_bit_colour(image).resize(
            (height, width) if turned else (width, height),
            Image.Resampling.BICUBIC,
            reducing_gap=3.0,
        )
    if small.mode == "RGBA":
        small = Image.alpha_composite(Image.new("RGBA", small.size, "white"), small).convert("RGB")
    if orientation in _UPRIGHT:
        # After stretching: turning commutes with it, and there is less to turn.
        small = small.transpose(_UPRIGHT[orientation])
    if shrink > 1:
        box = (0, 0, width // shrink * shrink, height // shrink * shrink)
        small = small.reduce(shrink, box=box)
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
