"""Images and image files for tests."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from genre_lightning.movies.movie import PosterFile

RED, GREEN, BLUE, WHITE = (220, 30, 40), (20, 200, 60), (30, 40, 210), (255, 255, 255)
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 60, 3), dtype=np.uint8))


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def with_size(png: bytes, width: int, height: int) -> bytes:
    """A copy of a PNG with another size in its header."""
    header = b"IHDR" + struct.pack(">II", width, height) + png[24:29]
    return png[:12] + header + struct.pack(">I", zlib.crc32(header)) + png[33:]


def readable_if_small() -> bytes:
    """A JPEG that can be decoded at up to about 200 pixels, but is over the limits at 1024."""
    return encoded(Image.new("RGB", (32_000, 1_900), "red"), "JPEG")


#: Bytes that are no readable poster, and a pattern of the reason.
BROKEN = {
    "empty": (b"", "empty file"),
    "text": (b"<html>not found</html>", "not an image"),
    "zeros": (bytes(5000), "not an image"),
    "only a beginning": (b"\xff\xd8\xff\xe0", "not an image|damaged"),
    "truncated jpeg": (encoded(NOISE, "JPEG")[:-700], "damaged: .*truncated"),
    "truncated progressive jpeg": (
        encoded(NOISE, "JPEG", progressive=True)[:-700],
        "damaged: .*truncated",
    ),
    "truncated png": (encoded(NOISE)[:-700], "damaged"),
    "truncated gif": (encoded(NOISE, "GIF")[:-700], "damaged"),
    "truncated webp": (encoded(NOISE, "WEBP")[:-700], "damaged|not an image"),
    "damaged png": (encoded(NOISE)[:3000] + b"\xff" * 50 + encoded(NOISE)[3050:], "damaged"),
    "huge png": (with_size(encoded(NOISE), 9000, 8000), "9000 x 8000 pixels"),
    "bomb": (with_size(encoded(NOISE), 30_000, 30_000), "pixels"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    "pdf": (b"%PDF-1.4\n", "not an image"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
}


def locate(path: Path) -> PosterFile:
    return PosterFile.at(path)


def write_poster(path: Path, *lines: str) -> Path:
    """Write a poster with lines of light text on a dark background, from top to bottom."""
    image = Image.new("RGB", (300, 450), (20, 30, 60))
    draw = ImageDraw.Draw(image)
    for number, line in enumerate(lines):
        draw.text((20, 40 + 100 * number), line, "white", ImageFont.load_default(34))
    image.save(path)
    return path
