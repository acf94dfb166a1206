"""Decoding of posters of any format to pixels, and posters that can't be decoded."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import warnings
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile, features

from genre_lightning.inputs.decode import decode_poster, upright_size
from genre_lightning.inputs.poster_limits import MAX_PIXELS, PosterError
from tests.pictures import BLUE, BROKEN, GREEN, NOISE, RED, WHITE, encoded, with_size


def picture(width: int = 40, height: int = 60) -> Image.Image:
    """Draw one colour in each quarter: red and green above, blue and white below."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(GREEN, (width // 2, 0, width, height // 2))
    image.paste(BLUE, (0, height // 2, width // 2, height))
    image.paste(WHITE, (width // 2, height // 2, width, height))
    return image


def quarters(pixels: np.ndarray) -> np.ndarray:
    """The (4, 3) colours at the quarters' centres: top left, top right, bottom left and right."""
    low, high = pixels.shape[0] // 4, 3 * pixels.shape[0] // 4
    return pixels[[low, low, high, high], [low, high, low, high]].astype(int)


def assert_quarters(pixels: np.ndarray, expected, tolerance: int = 12) -> None:
    np.testing.assert_allclose(quarters(pixels), np.array(expected), atol=tolerance)


def gray_of(colour: tuple[int, int, int]) -> int:
    return round(0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2])


FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "jpeg": ("JPEG", {"quality": 95}),
    "progressive jpeg": ("JPEG", {"quality": 95, "progressive": True}),
    "png": ("PNG", {}),
    "webp": ("WEBP", {"lossless": True}),
    "gif": ("GIF", {}),
    "bmp": ("BMP", {}),
    "tiff": ("TIFF", {}),
}


@pytest.mark.parametrize("name", FORMATS)
def test_formats(name):
    form, options = FORMATS[name]
    if name == "webp" and not features.check(name):
        pytest.skip(f"this Pillow was built without {name}")
    pixels = decode_poster(encoded(picture(), form, **options), 32)
    assert pixels.shape == (32, 32, 3) and pixels.dtype == np.uint8
    assert pixels.flags.writeable
    assert_quarters(pixels, [RED, GREEN, BLUE, WHITE])


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF"])
def test_cmyk_and_gray_and_black_and_white(form):
    if form != "PNG":
        cmyk = encoded(picture().convert("CMYK"), form, quality=95)
        assert_quarters(decode_poster(cmyk, 32), [RED, GREEN, BLUE, WHITE])
    gray = decode_poster(encoded(picture().convert("L"), form), 32)
    assert np.ptp(gray, axis=2).max() == 0
    assert_quarters(gray, [[gray_of(colour)] * 3 for colour in (RED, GREEN, BLUE, WHITE)])
    if form != "JPEG":
        bits = Image.fromarray(np.asarray(picture().convert("L")) > 100)
        assert bits.mode == "1"
        expected = [[255 * (gray_of(colour) > 100)] * 3 for colour in (RED, GREEN, BLUE, WHITE)]
        assert_quarters(decode_poster(encoded(bits, form), 32), expected)


def test_transparent_parts_are_white():
    image = picture().convert("RGBA")
    image.paste((0, 0, 0, 0), (0, 0, 20, 30))  # all of the red quarter
    image.paste((*BLUE, 128), (0, 30, 20, 60))
    half = [round(value + (255 - value) * 127 / 255) for value in BLUE]
    assert_quarters(decode_poster(encoded(image), 32), [WHITE, GREEN, half, WHITE])
    # The hidden colour of transparent pixels does not shine through at the edges.
    edge = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    edge.paste((255, 255, 255, 255), (0, 0, 32, 64))
    assert decode_poster(encoded(edge), 15).min() >= 250


@pytest.mark.parametrize("mode", ["P", "L", "RGB", "LA", "PA"])
def test_other_kinds_of_transparency(mode):
    image = picture()
    if mode == "P":
        image = image.quantize(8)
        data = encoded(image, transparency=image.getpixel((5, 5)))
        assert_quarters(decode_poster(data, 32), [WHITE, GREEN, BLUE, WHITE])
    elif mode == "RGB":
        assert_quarters(
            decode_poster(encoded(image, transparency=RED), 32), [WHITE, GREEN, BLUE, WHITE]
        )
    elif mode == "PA":
        image = image.convert("RGBA")
        image.paste((*RED, 0), (0, 0, 20, 30))
        assert_quarters(decode_poster(image.convert("PA"), 32), [WHITE, GREEN, BLUE, WHITE], 60)
    else:
        grays = [[gray_of(colour)] * 3 for colour in (RED, GREEN, BLUE, WHITE)]
        if mode == "L":
            data = encoded(image.convert("L"), transparency=gray_of(RED))
        else:
            alpha = Image.new("L", image.size, 255)
            alpha.paste(0, (0, 0, 20, 30))
            data = encoded(Image.merge("LA", [image.convert("L"), alpha]))
        assert_quarters(decode_poster(data, 32), [WHITE, *grays[1:]])


def sixteen_bit_png(values: np.ndarray) -> bytes:
    """Encode (H, W) or (H, W, 3) uint16 as a PNG; Pillow can't write 16-bit colour."""
    height, width = values.shape[:2]
    colour = 2 if values.ndim == 3 else 0

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "gray png", "colour png"])
def test_16_bits_become_8(mode):
    gray = np.asarray(picture().convert("L")).astype(np.uint16) * 257
    grays = [[gray_of(colour)] * 3 for colour in (RED, GREEN, BLUE, WHITE)]
    if mode == "colour png":
        values = np.asarray(picture()).astype(np.uint16) * 257
        pixels = decode_poster(sixteen_bit_png(values), 32)
        assert_quarters(pixels, [RED, GREEN, BLUE, WHITE])
    elif mode == "gray png":
        assert_quarters(decode_poster(sixteen_bit_png(gray), 32), grays)
    else:
        data = gray.astype(">u2" if mode == "I;16B" else "<u2").tobytes()
        image = Image.frombytes(mode, (40, 60), data)
        assert_quarters(decode_poster(image, 32), grays)
        assert_quarters(decode_poster(encoded(image, "TIFF"), 32), grays)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pixels_of_unknown_range_are_refused(mode):
    with pytest.raises(PosterError, match="unknown range"):
        decode_poster(encoded(picture().convert("L").convert(mode), "TIFF"), 32)


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP"])
def test_first_frame_of_an_animation_is_used(form):
    frames = [Image.new("RGB", (20, 20), colour) for colour in (RED, GREEN, BLUE)]
    data = encoded(frames[0], form, save_all=True, append_images=frames[1:])
    assert_quarters(decode_poster(data, 16), [RED] * 4)


# Stored quarters of the picture for each EXIF orientation (definition: EXIF 2.32, 4.6.4).
STORED = {
    1: [RED, GREEN, BLUE, WHITE],
    2: [GREEN, RED, WHITE, BLUE],
    3: [WHITE, BLUE, GREEN, RED],
    4: [BLUE, WHITE, RED, GREEN],
    5: [RED, BLUE, GREEN, WHITE],
    6: [GREEN, WHITE, RED, BLUE],
    7: [WHITE, GREEN, BLUE, RED],
    8: [BLUE, RED, WHITE, GREEN],
}


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP", "open image"])
@pytest.mark.parametrize("orientation", STORED)
def test_orientation(orientation, form):
    colours = STORED[orientation]
    size = (64, 96) if orientation < 5 else (96, 64)
    image = Image.new("RGB", size)
    for position, colour in enumerate(colours):
        left, top = (position % 2) * size[0] // 2, (position // 2) * size[1] // 2
        image.paste(colour, (left, top, left + size[0] // 2, top + size[1] // 2))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(image, "JPEG" if form == "open image" else form, exif=exif)
    source = Image.open(io.BytesIO(data)) if form == "open image" else data
    assert_quarters(decode_poster(source, 32), [RED, GREEN, BLUE, WHITE], 20)


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_invalid_orientation_is_ignored(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert_quarters(decode_poster(encoded(picture(), exif=exif), 32), [RED, GREEN, BLUE, WHITE])


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_broken_exif_block_is_ignored():
    data = encoded(picture(), "JPEG", quality=95, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert_quarters(decode_poster(data, 32), [RED, GREEN, BLUE, WHITE])


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (3, 2)], ids=str)
def test_tiny_and_thin_posters(size):
    pixels = decode_poster(encoded(Image.new("RGB", size, RED)), 32)
    np.testing.assert_array_equal(pixels, np.broadcast_to(RED, (32, 32, 3)))


@pytest.mark.parametrize(("size", "shrink"), [(32, 2), (33, 2), (35, 4), (32, 32)])
def test_shrinking_is_the_rounded_mean_of_squares(size, shrink):
    whole = decode_poster(encoded(NOISE), size)
    side = size // shrink
    squares = whole[: side * shrink, : side * shrink].reshape(side, shrink, side, shrink, 3)
    expected = np.floor(squares.mean((1, 3)) + 0.5)
    np.testing.assert_array_equal(decode_poster(encoded(NOISE), size, shrink), expected)


def test_large_jpeg_is_close_to_a_full_decode():
    y, x = np.mgrid[0:1200, 0:800]
    waves = [127 + 100 * np.sin(x / 40 + phase) * np.cos(y / 60) for phase in (0, 1, 2)]
    image = Image.fromarray(np.stack(waves, axis=2).astype(np.uint8))
    data = encoded(image, "JPEG", quality=95)
    expected = np.asarray(image.resize((64, 64), Image.Resampling.LANCZOS)).astype(int)
    assert np.abs(decode_poster(data, 64) - expected).mean() < 2
    assert np.abs(decode_poster(encoded(image), 64) - expected).mean() < 2


def test_bytes_paths_and_open_images_give_the_same_pixels(tmp_path):
    data = encoded(picture(), "JPEG")
    (tmp_path / "poster.jpg").write_bytes(data)
    expected = decode_poster(data, 32)
    for path in (tmp_path / "poster.jpg", str(tmp_path / "poster.jpg")):
        np.testing.assert_array_equal(decode_poster(path, 32), expected)
    np.testing.assert_array_equal(decode_poster(Image.open(io.BytesIO(data)), 32), expected)


def test_an_open_image_is_not_changed():
    image = Image.open(io.BytesIO(encoded(picture(400, 600), "JPEG")))
    decode_poster(image, 32)
    assert image.size == (400, 600) and image.mode == "RGB"
    assert decode_poster(image, 32).shape == (32, 32, 3)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", BROKEN)
def test_broken_posters_are_refused_with_a_reason(name):
    data, reason = BROKEN[name]
    with pytest.raises(PosterError, match=reason):
        decode_poster(data, 32)


@pytest.mark.parametrize("error", [False, True], ids=["warnings", "warnings as errors"])
@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_decompression_bomb_is_refused_before_it_is_decoded(form, error, monkeypatch):
    # 100 million pixels: Pillow alone would warn and decode them.
    if form == "PNG":
        data = with_size(encoded(Image.new("RGB", (8, 8))), 10_000, 10_000)
    else:
        data = encoded(Image.new("RGB", (8, 8)), "JPEG")
        position = data.index(b"\xff\xc0") + 5
        data = data[:position] + struct.pack(">HH", 10_000, 10_000) + data[position + 4 :]

    def load(self: ImageFile.ImageFile) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    with warnings.catch_warnings():
        warnings.simplefilter("error" if error else "ignore")
        with pytest.raises(PosterError, match="pixels"):
            decode_poster(data, 32)


def test_an_open_image_has_the_same_limit():
    image = Image.open(io.BytesIO(with_size(encoded(Image.new("RGB", (8, 8))), 9000, 8000)))
    with pytest.raises(PosterError, match=f"{MAX_PIXELS:,}"):
        decode_poster(image, 32)


def test_pillow_settings_are_unchanged():
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, warnings.filters[:])
    for data, _ in BROKEN.values():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(PosterError):
                decode_poster(data, 32)
    assert before == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, warnings.filters[:])


def test_missing_file_raises_file_not_found(tmp_path):
    with pytest.raises(FileNotFoundError):
        decode_poster(tmp_path / "none.jpg", 32)


@pytest.mark.parametrize("size", [(16, 24), (24, 16), (7, 7)], ids=str)
def test_height_and_width_may_differ(size):
    pixels = decode_poster(encoded(picture()), size)
    assert pixels.shape == (*size, 3)
    corners = pixels[[0, 0, -1, -1], [0, -1, 0, -1]]
    np.testing.assert_allclose(corners.astype(int), [RED, GREEN, BLUE, WHITE], atol=12)
    half = decode_poster(encoded(NOISE), (size[0], size[1]), 2)
    assert half.shape == (size[0] // 2, size[1] // 2, 3)


def test_height_and_width_of_a_rotated_poster():
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = decode_poster(encoded(picture(96, 64), exif=exif), (24, 16))
    assert pixels.shape == (24, 16, 3)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8, None])
@pytest.mark.parametrize("form", ["bytes", "path", "open"])
def test_upright_size(orientation, form, tmp_path):
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    data = encoded(picture(40, 60), exif=exif)
    (tmp_path / "poster.png").write_bytes(data)
    sources = {
        "bytes": data,
        "path": tmp_path / "poster.png",
        "open": Image.open(io.BytesIO(data)),
    }
    assert upright_size(sources[form]) == ((60, 40) if orientation in (6, 8) else (40, 60))


def test_importing_is_light():
    program = "import sys, genre_lightning.inputs.decode; print(*sys.modules)"
    output = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    heavy = {"torch", "torchvision", "sklearn", "scipy", "rich", "pytorch_lightning"}
    assert not heavy & set(output.stdout.split())
