from __future__ import annotations

import io
import logging
import os
import pickle
import signal
import struct
import subprocess
import sys
import time
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile, features

from genre_lightning.inputs import posters as posters_module
from genre_lightning.inputs.posters import (
    MAX_PIXELS,
    PosterCache,
    PosterError,
    decode_poster,
    open_poster_cache,
    pool_stages,
)
from genre_lightning.store import CacheError
from genre_lightning.movies.movie import PosterFile

RED, GREEN, BLUE, WHITE = (220, 30, 40), (20, 200, 60), (30, 40, 210), (255, 255, 255)


def picture(width: int = 40, height: int = 60) -> Image.Image:
    """Four colours, one in each quarter: red and green above, blue and white below."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(GREEN, (width // 2, 0, width, height // 2))
    image.paste(BLUE, (0, height // 2, width // 2, height))
    image.paste(WHITE, (width // 2, height // 2, width, height))
    return image


def encoded(image: Image.Image, form: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def quarters(pixels: np.ndarray) -> np.ndarray:
    """Colours in the middle of the quarters, (4, 3): top left, top right, bottom left and right."""
    low, high = pixels.shape[0] // 4, 3 * pixels.shape[0] // 4
    return pixels[[low, low, high, high], [low, high, low, high]].astype(int)


def assert_quarters(pixels: np.ndarray, wanted, tolerance: int = 12) -> None:
    np.testing.assert_allclose(quarters(pixels), np.array(wanted), atol=tolerance)


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
    "avif": ("AVIF", {"quality": 95}),
}


@pytest.mark.parametrize("name", FORMATS)
def test_formats(name):
    form, options = FORMATS[name]
    if name in ("webp", "avif") and not features.check(name):
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
        wanted = [[255 * (gray_of(colour) > 100)] * 3 for colour in (RED, GREEN, BLUE, WHITE)]
        assert_quarters(decode_poster(encoded(bits, form), 32), wanted)


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
    """(H, W) or (H, W, 3) uint16 as a PNG, written by hand, since Pillow can't write colour."""
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
def test_numbers_of_unknown_range_are_refused(mode):
    with pytest.raises(PosterError, match="unknown range"):
        decode_poster(encoded(picture().convert("L").convert(mode), "TIFF"), 32)


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP"])
def test_the_first_frame_of_an_animation_counts(form):
    frames = [Image.new("RGB", (20, 20), colour) for colour in (RED, GREEN, BLUE)]
    data = encoded(frames[0], form, save_all=True, append_images=frames[1:])
    assert_quarters(decode_poster(data, 16), [RED] * 4)


# What a camera held that way would have stored, by the definition of the tag (EXIF 2.32, 4.6.4).
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
    for place, colour in enumerate(colours):
        left, top = (place % 2) * size[0] // 2, (place // 2) * size[1] // 2
        image.paste(colour, (left, top, left + size[0] // 2, top + size[1] // 2))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(image, "JPEG" if form == "open image" else form, exif=exif)
    source = Image.open(io.BytesIO(data)) if form == "open image" else data
    assert_quarters(decode_poster(source, 32), [RED, GREEN, BLUE, WHITE], 20)


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_a_senseless_orientation_is_ignored(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert_quarters(decode_poster(encoded(picture(), exif=exif), 32), [RED, GREEN, BLUE, WHITE])


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_broken_exif_block_does_not_spoil_the_picture():
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
    wanted = np.floor(squares.mean((1, 3)) + 0.5)
    np.testing.assert_array_equal(decode_poster(encoded(NOISE), size, shrink), wanted)


def test_the_averaging_is_shared_out():
    assert [pool_stages(pool) for pool in (1, 2, 4, 6)] == [(1, 1), (1, 2), (2, 2), (3, 2)]
    for pool in (0, -2, 3):
        with pytest.raises(ValueError, match=f"1 or an even number, not {pool}"):
            pool_stages(pool)


def test_a_large_jpeg_looks_as_if_decoded_whole():
    y, x = np.mgrid[0:1200, 0:800]
    waves = [127 + 100 * np.sin(x / 40 + phase) * np.cos(y / 60) for phase in (0, 1, 2)]
    image = Image.fromarray(np.stack(waves, axis=2).astype(np.uint8))
    data = encoded(image, "JPEG", quality=95)
    whole = np.asarray(image.resize((64, 64), Image.Resampling.LANCZOS)).astype(int)
    assert np.abs(decode_poster(data, 64) - whole).mean() < 2
    assert np.abs(decode_poster(encoded(image), 64) - whole).mean() < 2


def test_sources_agree(tmp_path):
    data = encoded(picture(), "JPEG")
    (tmp_path / "poster.jpg").write_bytes(data)
    wanted = decode_poster(data, 32)
    for path in (tmp_path / "poster.jpg", str(tmp_path / "poster.jpg")):
        np.testing.assert_array_equal(decode_poster(path, 32), wanted)
    np.testing.assert_array_equal(decode_poster(Image.open(io.BytesIO(data)), 32), wanted)


def test_an_open_image_is_not_changed():
    image = Image.open(io.BytesIO(encoded(picture(400, 600), "JPEG")))
    decode_poster(image, 32)
    assert image.size == (400, 600) and image.mode == "RGB"
    assert decode_poster(image, 32).shape == (32, 32, 3)


def with_size(png: bytes, width: int, height: int) -> bytes:
    """The same PNG with another size in its header."""
    header = b"IHDR" + struct.pack(">II", width, height) + png[24:29]
    return png[:12] + header + struct.pack(">I", zlib.crc32(header)) + png[33:]


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 60, 3), dtype=np.uint8))

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


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", BROKEN)
def test_broken_posters_are_refused_with_a_reason(name):
    data, reason = BROKEN[name]
    with pytest.raises(PosterError, match=reason):
        decode_poster(data, 32)


@pytest.mark.parametrize("error", [False, True], ids=["warnings", "warnings as errors"])
@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_a_bomb_is_refused_before_it_is_decoded(form, error, monkeypatch):
    # 100 million pixels: Pillow alone would warn and decode them.
    if form == "PNG":
        data = with_size(encoded(Image.new("RGB", (8, 8))), 10_000, 10_000)
    else:
        data = encoded(Image.new("RGB", (8, 8)), "JPEG")
        place = data.index(b"\xff\xc0") + 5
        data = data[:place] + struct.pack(">HH", 10_000, 10_000) + data[place + 4 :]

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


def test_pillow_settings_stay_as_they_are():
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, warnings.filters[:])
    for data, _ in BROKEN.values():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(PosterError):
                decode_poster(data, 32)
    assert before == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, warnings.filters[:])


def test_a_file_that_is_not_there_is_no_broken_poster(tmp_path):
    with pytest.raises(FileNotFoundError):
        decode_poster(tmp_path / "none.jpg", 32)


def locate(path: Path) -> PosterFile:
    status = path.stat()
    return PosterFile(path, None, status.st_size, status.st_mtime_ns)


def make_posters(folder: Path, num: int) -> list[PosterFile]:
    """Plain gray posters, the n-th of brightness 10 n."""
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(num):
        (folder / f"{n}.png").write_bytes(encoded(Image.new("RGB", (12, 18), (10 * n,) * 3)))
    return [locate(folder / f"{n}.png") for n in range(num)]


def open_cache(posters, cache_dir: Path, size: int = 8, workers: int | None = 2) -> PosterCache:
    return open_poster_cache(
        posters, size=size, cache_dir=cache_dir, workers=workers, progress=False
    )


def caches(cache_dir: Path) -> list[str]:
    """All that lies there, finished or not, apart from locks."""
    return [path.name for path in cache_dir.iterdir() if not path.name.endswith(".lock")]


@pytest.fixture
def decodes(monkeypatch) -> list[bytes]:
    """What has been handed to the decoder."""
    seen: list[bytes] = []

    def counting(source: bytes, size: int, shrink: int) -> np.ndarray:
        seen.append(source)
        return decode_poster(source, size, shrink)

    monkeypatch.setattr(posters_module, "decode_poster", counting)
    return seen


@pytest.mark.parametrize("workers", [1, 3, None])
def test_cache_holds_each_movies_poster(tmp_path, workers):
    posters = make_posters(tmp_path, 20)
    wanted = [3, None, 0, 19, None, 3, 7]
    listed = [None if n is None else posters[n] for n in wanted]
    cache = open_cache(listed, tmp_path / "cache", workers=workers)
    assert cache.images.shape == (4, 8, 8, 3) and cache.images.dtype == np.uint8
    assert cache.row.dtype == np.int64 and cache.unreadable == []
    assert not cache.images.flags.writeable
    for n, row in zip(wanted, cache.row, strict=True):
        assert (row == -1) if n is None else (cache.images[row] == 10 * n).all()


def test_pixels_are_those_of_decode_poster(tmp_path):
    for n in range(30):
        (tmp_path / f"{n}.jpg").write_bytes(encoded(NOISE.rotate(n), "JPEG"))
    files = [locate(tmp_path / f"{n}.jpg") for n in range(30)]
    for shrink in (1, 2):  # each in a cache of its own
        cache = open_poster_cache(files, size=16, shrink=shrink, cache_dir=tmp_path, workers=4)
        for n, file in enumerate(files):
            wanted = decode_poster(file.read_bytes(), 16, shrink)
            np.testing.assert_array_equal(cache.images[cache.row[n]], wanted)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_broken_posters_are_masked_and_listed(tmp_path):
    posters: list[PosterFile | None] = [*make_posters(tmp_path / "good", 3)]
    for name, (data, _) in BROKEN.items():
        (tmp_path / f"{name}.jpg").write_bytes(data)
        posters.insert(1, locate(tmp_path / f"{name}.jpg"))
    gone = PosterFile(tmp_path / "gone.jpg", None, 100, 1)
    posters += [gone, PosterFile(tmp_path / "never.jpg", None, -1, 0), None]
    for _ in range(2):  # built, and opened again
        cache = open_cache(posters, tmp_path / "cache")
        good = [0, *range(len(posters))[-5:-3]]
        assert len(cache.images) == 3
        for n, place in enumerate(good):
            assert (cache.images[cache.row[place]] == 10 * n).all()
        masked = np.delete(cache.row, good)
        assert (masked == -1).all()
        listed = dict(cache.unreadable)
        assert len(listed) == len(BROKEN) + 2
        assert "truncated" in listed[str(tmp_path / "truncated jpeg.jpg")]
        assert "No such file" in listed[gone.name]
        assert listed[str(tmp_path / "never.jpg")] == "no such file"


@pytest.mark.parametrize("posters", [[], [None, None], ["broken"]], ids=["none", "None", "broken"])
def test_a_cache_without_a_poster(tmp_path, posters):
    (tmp_path / "broken").write_bytes(b"broken")
    listed = [None if poster is None else locate(tmp_path / poster) for poster in posters]
    for _ in range(2):
        cache = open_cache(listed, tmp_path / "cache")
        assert cache.images.shape == (0, 8, 8, 3)
        assert cache.row.tolist() == [-1] * len(posters)


def test_a_second_opening_decodes_nothing(tmp_path, decodes):
    posters = make_posters(tmp_path, 5)
    first = open_cache(posters, tmp_path / "cache")
    assert len(decodes) == 5
    second = open_cache(posters, tmp_path / "cache")
    assert len(decodes) == 5 and first.folder == second.folder
    np.testing.assert_array_equal(first.images, second.images)


def test_the_same_posters_by_another_way_to_write_the_folder(tmp_path, decodes, monkeypatch):
    open_cache(make_posters(tmp_path / "data", 3), tmp_path / "cache")
    (tmp_path / "link").symlink_to(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    for folder in ("data", "link", "cache/../data"):
        open_cache([locate(Path(folder) / f"{n}.png") for n in range(3)], tmp_path / "cache")
    assert len(decodes) == 3 and len(caches(tmp_path / "cache")) == 1


@pytest.mark.parametrize("change", ["content", "time", "order", "one less", "size", "version"])
def test_whatever_changes_pixels_or_rows_changes_the_cache(tmp_path, change, monkeypatch):
    posters = make_posters(tmp_path, 3)
    before = open_cache(posters, tmp_path / "cache")
    size = 8
    if change == "content":
        (tmp_path / "1.png").write_bytes(encoded(Image.new("RGB", (12, 18), (99, 99, 99))))
    elif change == "time":
        os.utime(tmp_path / "1.png", ns=(1, 1))
    elif change == "order":
        posters = [posters[n] for n in (2, 0, 1)]
    elif change == "one less":
        posters = posters[1:]
    elif change == "size":
        size = 9
    else:
        monkeypatch.setattr(posters_module, "DECODER_VERSION", -1)
    after = open_cache([locate(file.path) for file in posters], tmp_path / "cache", size)
    assert after.folder != before.folder
    for row, file in zip(after.row, posters, strict=True):
        np.testing.assert_array_equal(after.images[row], decode_poster(file.path, size))


def test_posters_in_a_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "posters.zip", "w") as archive:
        for n in range(6):
            data = encoded(Image.new("RGB", (9, 9), (n, n, n)))
            archive.writestr(f"in/{n}.png", data if n != 4 else b"broken")
    with zipfile.ZipFile(tmp_path / "posters.zip") as archive:
        files = [
            PosterFile(tmp_path / "posters.zip", info.filename, info.file_size, info.CRC)
            for info in archive.infolist()
        ]
    cache = open_cache(files, tmp_path / "cache")
    assert cache.row.tolist() == [0, 1, 2, 3, -1, 4]
    assert cache.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 5]
    assert [name for name, _ in cache.unreadable] == [f"{tmp_path / 'posters.zip'}:in/4.png"]


@pytest.mark.parametrize(
    "damage", ["shorter", "longer", "no pixels", "meta cut", "no meta", "another meta"]
)
def test_a_damaged_cache_is_noticed_and_built_anew(tmp_path, caplog, damage):
    posters = make_posters(tmp_path, 4)
    folder = open_cache(posters, tmp_path / "cache").folder
    pixels, meta = folder / "images.u8", folder / "meta.json"
    if damage == "shorter":
        os.truncate(pixels, 100)
    elif damage == "longer":
        pixels.write_bytes(pixels.read_bytes() + b"x")
    elif damage == "no pixels":
        pixels.unlink()
    elif damage == "meta cut":
        os.truncate(meta, 5)
    elif damage == "no meta":
        meta.unlink()
    else:
        meta.write_text('{"count": 3, "masked": []}')
    with caplog.at_level(logging.WARNING):
        cache = open_cache(posters, tmp_path / "cache")
    assert "anew" in caplog.text and str(folder) in caplog.text
    assert cache.images[cache.row, 0, 0, 0].tolist() == [0, 10, 20, 30]
    assert caches(tmp_path / "cache") == [folder.name]


def test_a_poster_that_could_not_be_read_is_tried_again(tmp_path, decodes):
    posters = make_posters(tmp_path, 3)
    (tmp_path / "1.png").rename(tmp_path / "away")
    for _ in range(2):
        cache = open_cache(posters, tmp_path / "cache")
        assert cache.row.tolist() == [0, -1, 1]
    assert len(decodes) == 2  # while it is away, the others are not decoded again
    (tmp_path / "away").rename(tmp_path / "1.png")
    assert open_cache(posters, tmp_path / "cache").row.tolist() == [0, 1, 2]


def test_to_another_process_goes_the_way_to_the_pixels(tmp_path):
    posters = [*make_posters(tmp_path, 20), None]
    cache = open_cache(posters, tmp_path / "cache", size=64)
    sent = pickle.dumps(cache)
    assert len(sent) < 2000 < cache.images.nbytes
    received = pickle.loads(sent)
    np.testing.assert_array_equal(received.images, cache.images)
    np.testing.assert_array_equal(received.row, cache.row)


@pytest.mark.parametrize("wrong", [{"size": 0}, {"shrink": 9}, {"workers": 0}], ids=str)
def test_senseless_numbers_are_refused(tmp_path, wrong):
    with pytest.raises(ValueError, match=r"at least 1|between 1 and"):
        open_poster_cache([], cache_dir=tmp_path, **{"size": 8, **wrong})


def test_a_bar_is_shown_on_a_terminal_only(tmp_path, capfd):
    open_poster_cache(make_posters(tmp_path, 3), size=8, cache_dir=tmp_path / "cache")
    assert capfd.readouterr() == ("", "")


# Run by other processes: opens a cache of posters each of which tells that it is read, by one more
# byte in a file, and takes its time.
PROGRAM = """
import sys, time
from pathlib import Path
from genre_lightning.movies.movie import PosterFile
from genre_lightning.inputs.posters import open_poster_cache

folder, seconds = Path(sys.argv[1]), float(sys.argv[2])

class Slow(PosterFile):
    def read_bytes(self):
        with (folder / "reads").open("ab") as file:
            file.write(b"x")
        time.sleep(seconds)
        return super().read_bytes()

files = []
for n in range(8):
    path = folder / f"{n}.png"
    status = path.stat()
    files.append(Slow(path, None, status.st_size, status.st_mtime_ns))
cache = open_poster_cache(files, size=8, cache_dir=folder / "cache", workers=2)
print(cache.images[cache.row, 0, 0, 0].tolist())
"""


def start(folder: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, str(folder), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def wait_for_reads(folder: Path, num: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    reads = folder / "reads"
    while not (reads.exists() and reads.stat().st_size >= num):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


def test_of_two_processes_one_builds_and_both_use_it(tmp_path):
    make_posters(tmp_path, 8)
    first = start(tmp_path, 0.2)
    wait_for_reads(tmp_path, 1, first)
    second = start(tmp_path, 0.2)
    wanted = f"{[10 * n for n in range(8)]}\n"
    assert first.communicate(timeout=60)[0] == wanted
    assert second.communicate(timeout=60)[0] == wanted
    assert (tmp_path / "reads").stat().st_size == 8
    assert len(caches(tmp_path / "cache")) == 1


def test_a_killed_builder_leaves_no_half_cache(tmp_path):
    files = make_posters(tmp_path, 8)
    process = start(tmp_path, 0.3)
    wait_for_reads(tmp_path, 4, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (left,) = caches(tmp_path / "cache")
    assert ".tmp-" in left
    cache = open_cache(files, tmp_path / "cache")
    assert cache.images[cache.row, 0, 0, 0].tolist() == [10 * n for n in range(8)]
    assert caches(tmp_path / "cache") == [cache.folder.name]


@pytest.mark.skipif(sys.platform == "win32", reason="no resource limits")
def test_a_disk_that_takes_no_more_is_a_clear_error(tmp_path):
    import resource

    files = make_posters(tmp_path, 20)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(CacheError, match="cannot write the cache folder") as caught:
            open_cache(files, tmp_path / "cache", size=64)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(tmp_path / "cache") in str(caught.value)
    assert caches(tmp_path / "cache") == []


def test_memory_does_not_grow_with_the_number_of_posters(tmp_path):
    import tracemalloc

    def peak(num: int) -> int:
        files = make_posters(tmp_path / str(num), num)
        tracemalloc.start()
        open_cache(files, tmp_path / "cache", size=128, workers=1)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(2)  # what is only imported on first use
    more, less = peak(200), peak(20)
    assert more - less < 180 * 128 * 128 * 3 / 10


def test_real_posters(ml1m_root, tmp_path):
    if ml1m_root.is_file():
        with zipfile.ZipFile(ml1m_root) as archive:
            files = [
                PosterFile(ml1m_root, info.filename, info.file_size, info.CRC)
                for info in archive.infolist()
                if info.filename.endswith(".jpg") and "__MACOSX" not in info.filename
            ]
    else:
        files = [locate(path) for path in sorted(ml1m_root.rglob("*.jpg"))]
    cache = open_cache(files, tmp_path, size=32, workers=None)
    assert len(cache.images) == len(files) == 3256 and cache.unreadable == []
    colourless = 0
    for file, row in zip(files, cache.row, strict=True):
        gray = np.ptp(cache.images[row], axis=2).max() == 0
        with Image.open(io.BytesIO(file.read_bytes())) as image:
            if image.mode == "L":
                assert gray, file.name
                colourless += 1
    assert colourless == 2


def test_importing_is_light():
    program = "import sys, genre_lightning.inputs.posters; print(*sys.modules)"
    output = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    heavy = {"torch", "torchvision", "sklearn", "scipy", "rich", "pytorch_lightning"}
    assert not heavy & set(output.stdout.split())
