"""Limits on the work and memory that decoding a poster may take, checked before decoding.

A small file can be expensive: an image of a single colour compresses to almost nothing, and a JPEG
can have a thousand scans that each cover the whole image. So this module reads the headers first.
:class:`MeteredBytes` bounds what headers do not reveal, while Pillow reads the file.
"""

from __future__ import annotations

import io
import re
import struct
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, cast

from PIL import Image

from genre_lightning.errors import InputError

if TYPE_CHECKING:  # Pillow imports them only for files that need them
    from PIL.ImageFile import ImageFile
    from PIL.TiffImagePlugin import TiffImageFile

#: The formats that are opened. Formats that posters don't use are left out, among them EPS, for
#: which Pillow starts Ghostscript; so is AVIF, whose header does not bound the cost of decoding.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
#: File suffixes of these formats.
POSTER_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")

MAX_FILE_BYTES = 96 * 2**20
#: 64 million pixels are A3 at 600 dpi. Pillow's own limit is a global that other code can lift.
MAX_PIXELS = 64_000_000
#: Each row of an open image takes at least 16 bytes in addition to its pixels.
MAX_SIDE = 32_000
#: Bytes that a file and its pixels may take during decoding. The overhead of the libraries and of
#: resizing stays below a third of this.
MAX_BYTES = 220_000_000
#: CPU time of the decoding thread, so that a busy machine refuses no more posters than an idle one.
MAX_SECONDS = 4.0

#: Encoders write ten scans, or up to about forty when they search for the shortest file.
MAX_SCANS = 100
#: Blocks of 8 x 8 in all scans of a JPEG; decoding a block takes up to a tenth of a microsecond. A
#: photo of 24 million pixels with full colour and ten scans has 5 million.
MAX_BLOCKS = 24_000_000
#: Size of a TIFF's tables, and of EXIF: Pillow makes an object of each number.
MAX_TABLE_BYTES = 2**20

_BYTES_PER_BLOCK = 64 * 2
_MODE_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}
#: Per pixel: libwebp holds two canvases; Pillow copies one and makes the image from the copy.
_WEBP_BYTES = 16
#: Additional bytes per pixel: Pillow unpacks the data into a bytearray and copies that.
_BMP_RLE_BYTES = 3

#: A marker in a JPEG that is neither padding nor part of a scan's data.
_MARKER = re.compile(rb"\xff+([\x01-\xcf\xd8-\xfe])")
_TEM, _SOI, _EOI, _SOS, _APP1 = 0x01, 0xD8, 0xD9, 0xDA, 0xE1
#: Markers that begin a frame; DHT, JPG and DAC have codes in between.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_BASELINE, _EXTENDED, _PROGRESSIVE = 0xC0, 0xC1, 0xC2

#: Tags of a TIFF, the sizes of its number types, and the allowed compressions: none, three of fax,
#: LZW, two of deflate, PackBits. Others embed an image of another format, with its own costs.
_BITS, _COMPRESSION, _ORIENTATION, _SAMPLES, _TILE_SIDES = 258, 259, 274, 277, (322, 323)
#: Tags of subdirectories: EXIF, GPS, interoperability.
_DIRECTORIES = (34665, 34853, 40965)
_TYPE_BYTES = {3: 2, 6: 1, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_TEXT_TYPES = (1, 2, 7)
_SHORT = 3
_COMPRESSIONS = (1, 2, 3, 4, 5, 8, 32946, 32773)
_MAX_TILE_SIDE = 4096


class PosterError(InputError):
    """A poster that can't be decoded correctly; the message is the reason, without the name."""


class MeteredBytes(io.BytesIO):
    """A file in memory that refuses further reads once its reader has taken too long.

    Pillow reads in small pieces, and some of its readers are Python loops that a file can keep
    busy. The limit is on the thread's CPU time since construction.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._deadline = time.thread_time() + MAX_SECONDS

    def read(self, size: int | None = -1, /) -> bytes:
        """Read bytes, as from any file.

        Raises:
            PosterError: the thread has worked for more than ``MAX_SECONDS``.
        """
        if time.thread_time() > self._deadline:
            raise PosterError(f"it takes more than {MAX_SECONDS:.0f} s to decode")
        return super().read(size)


def check_file(data: bytes) -> int:
    """Check a file's headers before Pillow opens it.

    Returns:
        Bytes that decoding takes in addition to the file and the pixels.

    Raises:
        PosterError: decoding would take too much work or memory.
    """
    if len(data) > MAX_FILE_BYTES:
        raise PosterError(f"more than {MAX_FILE_BYTES:,} bytes")
    if data[:2] == b"\xff\xd8":
        return _check_jpeg(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        _check_webp(data)
    elif data[:2] in (b"II", b"MM"):
        _check_tiff(data)
    return 0


def check_image(image: Image.Image, size: tuple[int, int], extra_bytes: int = 0) -> int:
    """Check an image that is open but not decoded yet.

    Args:
        image: the open image, after ``draft``.
        size: width and height before ``draft``.
        extra_bytes: bytes in addition to the pixels: the file, and the result of
            :func:`check_file`.

    Returns:
        Bytes that decoding takes.

    Raises:
        PosterError: too many pixels, or too many bytes.
    """
    width, height = size
    if width * height > MAX_PIXELS:
        raise PosterError(f"{width} x {height} pixels, more than {MAX_PIXELS:,}")
    if max(width, height) > MAX_SIDE:
        raise PosterError(f"{width} x {height} pixels, a side of more than {MAX_SIDE:,}")
    bytes_per_pixel = _MODE_BYTES.get(image.mode, 4)
    if image.format == "WEBP":
        bytes_per_pixel = _WEBP_BYTES
    elif image.format == "TIFF":
        bytes_per_pixel += _tiff_bytes_per_pixel(cast("TiffImageFile", image))
    elif image.format == "BMP" and any("rle" in tile[0] for tile in cast("ImageFile", image).tile):
        bytes_per_pixel += _BMP_RLE_BYTES
    num_bytes = image.width * image.height * bytes_per_pixel + extra_bytes
    _check_bytes(num_bytes, width, height, image.format or "an image")
    return num_bytes


def _check_bytes(num_bytes: int, width: int, height: int, kind: str) -> None:
    if num_bytes > MAX_BYTES:
        raise PosterError(
            f"{width} x {height} pixels as {kind} take {num_bytes / 1e6:,.0f} MB, more than "
            f"{MAX_BYTES / 1e6:,.0f}"
        )


def _check_jpeg(data: bytes) -> int:
    """Check a JPEG's scans and return the bytes of buffered coefficients.

    Other damage is left to the decoder.
    """
    component_blocks: dict[int, int] = {}
    progressive = False
    num_scans = num_blocks = exif_bytes = coefficient_bytes = 0
    for marker, body in _jpeg_segments(data):
        if marker in _FRAMES:
            if marker not in (_BASELINE, _EXTENDED, _PROGRESSIVE):
                raise PosterError(f"an unsupported kind of JPEG (SOF{marker - _BASELINE})")
            if component_blocks:
                raise PosterError("damaged: a JPEG with two frames")
            progressive = marker == _PROGRESSIVE
            component_blocks = _count_blocks(body)
        elif marker == _APP1 and body[:4] == b"Exif":
            exif_bytes += len(body)
            if exif_bytes > MAX_TABLE_BYTES:
                raise PosterError(f"its EXIF takes more than {MAX_TABLE_BYTES:,} bytes")
        elif marker == _SOS and body:
            components = body[1 : 1 + 2 * body[0] : 2]
            scan_blocks = [component_blocks.get(component, MAX_BLOCKS) for component in components]
            num_scans += 1
            num_blocks += sum(scan_blocks)
            if progressive or len(scan_blocks) < len(component_blocks):
                coefficient_bytes = sum(component_blocks.values()) * _BYTES_PER_BLOCK
            if num_scans > MAX_SCANS:
                raise PosterError(f"a JPEG of more than {MAX_SCANS} scans")
            if num_blocks > MAX_BLOCKS:
                raise PosterError(
                    f"the {num_scans} scans of a JPEG cover more than {MAX_BLOCKS:,} blocks"
                )
    return coefficient_bytes


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield marker and content of each segment of a JPEG, up to the end or a truncated segment."""
    position = 2
    while (match := _MARKER.search(data, position)) is not None:
        marker, position = match[1][0], match.end()
        if marker in (_TEM, _SOI):
            continue
        length = int.from_bytes(data[position : position + 2])
        body = data[position + 2 : position + length]
        if marker == _EOI or length < 2 or len(body) < length - 2:
            return
        position += length
        yield marker, body


def _count_blocks(frame: bytes) -> dict[int, int]:
    """Return the number of 8 x 8 blocks of each component, by the component's number."""
    if len(frame) < 6 or len(frame) < 6 + 3 * frame[5]:
        return {}
    height, width = struct.unpack(">HH", frame[1:5])
    components = [frame[6 + 3 * n : 9 + 3 * n] for n in range(frame[5])]
    sampling = {number: (factors >> 4, factors & 15) for number, factors, _ in components}
    max_horizontal = max((horizontal for horizontal, _ in sampling.values()), default=1) or 1
    max_vertical = max((vertical for _, vertical in sampling.values()), default=1) or 1
    units = -(-width // (8 * max_horizontal)) * -(-height // (8 * max_vertical))
    return {
        number: units * horizontal * vertical for number, (horizontal, vertical) in sampling.items()
    }


def _check_webp(data: bytes) -> None:
    """Check a WebP's canvas, which is allocated as soon as Pillow opens the file."""
    kind = data[12:16]
    if len(data) < 30:
        raise PosterError("damaged: a truncated WebP")
    if kind == b"VP8X":
        width, height = (1 + int.from_bytes(data[n : n + 3], "little") for n in (24, 27))
    elif kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    else:
        width, height = (int.from_bytes(data[n : n + 2], "little") & 0x3FFF for n in (26, 28))
    _check_bytes(width * height * _WEBP_BYTES + 2 * len(data), width, height, "WEBP")


def _check_tiff(data: bytes) -> None:
    """Check a TIFF's directories: Pillow makes an object of each number in them."""
    order: Literal["little", "big"] = "little" if data[:2] == b"II" else "big"
    if data[:4] not in (b"II*\0", b"MM\0*"):
        raise PosterError("not an image of a known format: an unsupported kind of TIFF")
    starts, seen, number_bytes, text_bytes = [int.from_bytes(data[4:8], order)], set[int](), 0, 0
    while starts:
        start = starts.pop()
        if start in seen or len(seen) > len(_DIRECTORIES):
            raise PosterError("damaged: a TIFF whose directories form a cycle")
        seen.add(start)
        for tag, kind, count, value in _directory(data, start, order):
            number_bytes += count * _TYPE_BYTES.get(kind, 0)
            text_bytes += count if kind in _TEXT_TYPES else 0
            if number_bytes > MAX_TABLE_BYTES or text_bytes > len(data):
                raise PosterError(f"the tables of a TIFF take more than {MAX_TABLE_BYTES:,} bytes")
            if tag in _DIRECTORIES:
                starts.append(value)
            if len(seen) > 1:
                continue
            if tag == _COMPRESSION and value not in _COMPRESSIONS:
                raise PosterError(f"a TIFF with compression {value}; save it as PNG or JPEG")
            if tag in _TILE_SIDES and value > _MAX_TILE_SIDE:
                raise PosterError(f"a TIFF with tiles of more than {_MAX_TILE_SIDE} pixels a side")


def _directory(
    data: bytes, start: int, order: Literal["little", "big"]
) -> Iterator[tuple[int, int, int, int]]:
    """Yield tag, type, count, and value or offset of each entry."""
    count = int.from_bytes(data[start : start + 2], order)
    for position in range(start + 2, start + 2 + 12 * count, 12):
        entry = data[position : position + 12]
        kind = int.from_bytes(entry[2:4], order)
        value = entry[8:10] if kind == _SHORT else entry[8:12]
        yield (
            int.from_bytes(entry[:2], order),
            kind,
            int.from_bytes(entry[4:8], order),
            int.from_bytes(value, order),
        )


def _tiff_bytes_per_pixel(image: TiffImageFile) -> int:
    """Return bytes per pixel for unpacking and rotating a TIFF, which can be a single strip."""
    num_bytes = 0
    if image.info.get("compression") != "raw":
        bits = image.tag_v2.get(_BITS, (1,))
        num_bytes += -(-max(sum(bits), bits[0] * image.tag_v2.get(_SAMPLES, 1)) // 8)
    if image.tag_v2.get(_ORIENTATION, 1) != 1:
        num_bytes += 4
    return num_bytes
