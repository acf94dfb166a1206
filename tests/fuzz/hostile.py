"""Small versions of files that once caused a traceback or took minutes or gigabytes."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from tests.pictures import NOISE, encoded, with_size


def jpeg(image: Image.Image = NOISE, **options: Any) -> bytes:
    return encoded(image, "JPEG", **{"quality": 80, **options})


def jpeg_with_scans(scans: int, size: tuple[int, int] | None = None, **options: Any) -> bytes:
    """A progressive JPEG that repeats its second scan; its header may claim another size."""
    data = jpeg(progressive=True, **options)
    starts = [n for n in range(len(data)) if data[n : n + 2] == b"\xff\xda"]
    tables = data.rindex(b"\xff\xc4", 0, starts[1])
    repeated = data[tables : data.index(b"\xff\xc4", starts[1])]
    data = data[: starts[1]] + data[starts[1] :].replace(repeated, repeated, 1)
    data = data[:tables] + repeated * (scans - 10) + data[tables:]
    if size is not None:
        place = data.index(b"\xff\xc2") + 5
        data = data[:place] + struct.pack(">HH", size[1], size[0]) + data[place + 4 :]
    return data


def jpeg_of_kind(marker: int) -> bytes:
    return jpeg().replace(b"\xff\xc0", bytes([0xFF, marker]), 1)


def jpeg_with_exif(size: int) -> bytes:
    """A JPEG with EXIF in many segments, which Pillow joins: a resolution of very many numbers."""
    count = size // 8
    block = b"MM\0*\0\0\0\x08\0\x01" + struct.pack(">HHLL", 0x011A, 5, count, 26) + bytes(4)
    block += bytes(size)
    pieces = [block[n : n + 65_000] for n in range(0, len(block), 65_000)]
    segments = [
        b"\xff\xe1" + struct.pack(">H", len(piece) + 8) + b"Exif\0\0" + piece for piece in pieces
    ]
    data = jpeg()
    return data[:2] + b"".join(segments) + data[2:]


def webp_with_size(width: int, height: int) -> bytes:
    """A lossless WebP that claims another size."""
    data = bytearray(encoded(Image.new("RGB", (8, 8)), "WEBP", lossless=True))
    bits = int.from_bytes(data[21:25], "little") & ~0x0FFFFFFF
    data[21:25] = (bits | (width - 1) | (height - 1) << 14).to_bytes(4, "little")
    return bytes(data)


def tiff(*entries: tuple[int, int, int, int], order: str = "<", rest: int = 0) -> bytes:
    """A TIFF of 8 x 8 gray pixels, with further entries (tag, type, count, value or offset)."""
    tags = {
        256: (3, 1, 8), 257: (3, 1, 8), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1),
        273: (4, 1, 8), 277: (3, 1, 1), 278: (3, 1, 8), 279: (4, 1, 64),
    }  # fmt: skip
    for tag, kind, count, value in entries:
        tags[tag] = (kind, count, value)
    directory = struct.pack(f"{order}H", len(tags))
    for tag, (kind, count, value) in sorted(tags.items()):
        # A short value fills the first half of its field.
        data = struct.pack(f"{order}HH", value, 0) if kind == 3 else struct.pack(f"{order}L", value)
        directory += struct.pack(f"{order}HHL", tag, kind, count) + data
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}L", 72)
    return head + bytes(range(64)) + directory + bytes(4 + rest)


def bmp_in_runs(width: int, height: int) -> bytes:
    """A BMP of runs of a single pixel, which Pillow unpacks in a Python loop."""
    runs = (b"\x01\x05" * width + b"\0\0") * height + b"\0\x01"
    palette = bytes(4 * 256)
    head = struct.pack("<LllHHLLllLL", 40, width, height, 1, 8, 1, len(runs), 0, 0, 256, 256)
    start = 14 + len(head) + len(palette)
    file = struct.pack("<2sLHHL", b"BM", start + len(runs), 0, 0, start)
    return file + head + palette + runs


def gif_with_frame(width: int, height: int) -> bytes:
    """A GIF whose frame is larger than its screen."""
    data = encoded(Image.new("L", (8, 8), 7), "GIF")
    place = data.index(b",", 13 + 3 * 2 ** ((data[10] & 7) + 1)) + 5
    return data[:place] + struct.pack("<HH", width, height) + data[place + 4 :]


def png_with_text(size: int) -> bytes:
    """A PNG with a compressed comment."""
    content = b"Comment\0\0" + zlib.compress(bytes(size), 9)
    chunk = struct.pack(">L", len(content)) + b"zTXt" + content
    chunk += struct.pack(">L", zlib.crc32(b"zTXt" + content))
    data = encoded(NOISE)
    return data[:33] + chunk + data[33:]


#: Posters that are refused, by name: a function that makes one, and a pattern of the reason.
POSTERS: dict[str, tuple[Callable[[], bytes], str]] = {
    "jpeg of 1000 scans": (lambda: jpeg_with_scans(1000), "more than 100 scans"),
    "jpeg of 90 large scans": (lambda: jpeg_with_scans(90, (9000, 7000)), "scans .* cover more"),
    "progressive jpeg, large": (
        lambda: jpeg_with_scans(10, (9000, 7000), subsampling=0),
        "take .* MB, more than",
    ),
    "arithmetic jpeg": (lambda: jpeg_of_kind(0xC9), "unsupported kind of JPEG"),
    "lossless jpeg": (lambda: jpeg_of_kind(0xC3), "unsupported kind of JPEG"),
    "jpeg with huge exif": (lambda: jpeg_with_exif(3_000_000), "EXIF takes more"),
    "png, 1 x 64,000,000": (
        lambda: with_size(encoded(Image.new("RGB", (1, 1))), 1, 64_000_000),
        "a side of more than",
    ),
    "png, RGBA, 8000 x 8000": (
        lambda: with_size(encoded(Image.new("RGBA", (8, 8))), 8000, 8000),
        "take .* MB, more than",
    ),
    "webp, 16383 x 3900": (lambda: webp_with_size(16383, 3900), "as WEBP take .* MB"),
    "gif of a large frame": (lambda: gif_with_frame(16_000, 15_000), "pixels"),
    "tiff of many strips": (
        lambda: tiff((273, 4, 2_000_000, 8), rest=9_000_000),
        "tables of a TIFF",
    ),
    "tiff with numbers in its exif": (
        lambda: (
            tiff((34665, 4, 1, 200)).ljust(200, b"\0")
            + b"\x01\0"
            + struct.pack("<HHLL", 0x9286, 5, 2**20, 8)
            + bytes(99)
        ),
        "tables of a TIFF",
    ),
    "tiff of a large tile": (
        lambda: tiff((322, 4, 1, 60_000), (323, 4, 1, 60_000)),
        "tiles of more than",
    ),
    "tiff with a jpeg in it": (lambda: tiff((259, 3, 1, 7)), "compression 7"),
    "tiff, large": (lambda: tiff((256, 4, 1, 60_000), (257, 4, 1, 1000)), "a side of more than"),
    "tiff that holds itself": (lambda: tiff((34665, 4, 1, 72)), "form a cycle"),
    "big tiff": (lambda: b"II+\0" + bytes(60), "not an image of a known format"),
    "avif": (
        lambda: b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf" + bytes(200),
        "not an image of a known format",
    ),
}

#: Posters that look hostile but are valid.
HONEST: dict[str, Callable[[], bytes]] = {
    "jpeg of 40 scans": lambda: jpeg_with_scans(40),
    "png with a remark": lambda: png_with_text(900_000),
    "bmp in runs": lambda: bmp_in_runs(40, 60),
    "tiff": lambda: tiff(),
    "tiff, big endian": lambda: tiff(order=">"),
    "jpeg with exif": lambda: jpeg_with_exif(60_000),
    "webp": lambda: encoded(NOISE, "WEBP"),
    "gif": lambda: encoded(NOISE, "GIF"),
}


def pickle_of(steps: bytes, before: bytes = b"", after: bytes = b"") -> bytes:
    return b"\x80\x02" + before + steps + after + b"."


#: Pickles that are deeply nested, repetitive or large, by name; of about the given size in bytes.
PICKLES: dict[str, Callable[[int], bytes]] = {
    "lists in lists": lambda size: pickle_of(b"]" * (size // 2), after=b"a" * (size // 2 - 1)),
    "marks": lambda size: pickle_of(b"(" * (size // 2), after=b"t" * (size // 2)),
    "tuples in tuples": lambda size: pickle_of(b"\x85" * size, b")"),
    "pairs of one": lambda size: pickle_of(b"q\0h\0\x86" * (size // 5), b")"),
    "one long list": lambda size: pickle_of(b"]a" * (size // 2), b"]"),
    "dicts in dicts": lambda size: pickle_of(b"}X\x01\0\0\0a" * (size // 7), after=b"s"),
    "lists that hold each other": lambda size: pickle_of(
        b"".join(b"]q%c(" % n + b"h%c" % (n - 1) * 90 + b"e" for n in range(1, 20)), b"(]q\0", b"t"
    ),
    "nothing": lambda size: pickle_of(b"N" * size),
}


def zip_of(files: dict[str, bytes], method: int) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return content.getvalue()


def with_damaged_entry(archive: bytes, name: str) -> bytes:
    """The zip with random bytes in the middle of an entry's data."""
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        entry = opened.getinfo(name)
    start = entry.header_offset + 30 + len(entry.filename) + entry.compress_size // 3
    noise = np.random.default_rng(0).bytes(max(4, entry.compress_size // 3))
    return archive[:start] + noise + archive[start + len(noise) :]


#: Texts that spreadsheets take for formulas.
FORMULAS = ("=1+1", "+1 (1995)", "-cmd|' /C calc'!A0", "@SUM(A1)", "'=quoted", "=a,b")
