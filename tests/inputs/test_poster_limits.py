"""Limits on the cost of decoding: checked before decoding, and measured in a separate process."""

from __future__ import annotations

import json
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from genre_lightning.inputs import poster_limits
from genre_lightning.inputs.decode import decode_poster
from genre_lightning.inputs.input import Store
from genre_lightning.inputs.pixels import PixelsInput
from genre_lightning.inputs.poster_limits import PosterError
from tests.fuzz.hostile import HONEST, POSTERS, bmp_in_runs, jpeg_with_scans, png_with_text
from tests.pictures import encoded, locate

#: Decodes files. Prints for each the reason for refusing it, or None, and the additional memory,
#: and writes the decoded pixels beside it.
PROGRAM = """
import json, sys
import numpy as np
from genre_lightning.inputs.decode import decode_poster
from genre_lightning.inputs.poster_limits import PosterError
from PIL import Image

def memory(name):
    for line in open("/proc/self/status"):
        if line.startswith(name):
            return int(line.split()[1]) * 1024

Image.init()
before = memory("VmRSS")
results = {}
for path in sys.argv[1:]:
    open("/proc/self/clear_refs", "w").write("5")
    try:
        decoded, reason = decode_poster(path, 256), None
    except PosterError as error:
        decoded, reason = None, str(error)
    results[path] = reason, memory("VmHWM") - before
    if decoded is not None:
        np.save(path + ".npy", decoded)
print(json.dumps(results))
"""


def measure_decoding(files: dict[str, Path]) -> dict[str, tuple[str | None, int]]:
    """Return for each file why it is refused, or None, and the bytes that decoding it took."""
    command = [sys.executable, "-c", PROGRAM, *map(str, files.values())]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    results = json.loads(done.stdout)
    return {name: tuple(results[str(path)]) for name, path in files.items()}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", POSTERS)
def test_costly_posters_are_refused_before_they_are_decoded(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(self: ImageFile.ImageFile) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    make, reason = POSTERS[name]
    with pytest.raises(PosterError, match=reason) as caught:
        decode_poster(make(), 32)
    assert "decoded" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", HONEST)
def test_unusual_valid_files_are_decoded(name: str) -> None:
    assert decode_poster(HONEST[name](), 32).shape == (32, 32, 3)


def test_slow_decoding_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(poster_limits, "MAX_SECONDS", 0.05)
    with pytest.raises(PosterError, match="takes more than"):
        decode_poster(bmp_in_runs(1500, 1500), 32)
    assert decode_poster(bmp_in_runs(4, 4), 32).shape == (32, 32, 3)


def test_refused_posters_are_masked_counted_and_named(tmp_path: Path) -> None:
    hostile = ["jpeg of 1000 scans", "png, RGBA, 8000 x 8000", "avif"]
    paths = []
    for number, name in enumerate(hostile):
        paths.append(tmp_path / f"hostile{number}")
        paths[-1].write_bytes(POSTERS[name][0]())
    paths.append(tmp_path / "honest.jpg")
    paths[-1].write_bytes(jpeg_with_scans(12))
    store = Store(tmp_path / "cache", workers=2, progress=False)
    values = [locate(path) for path in paths]
    features = PixelsInput(size=32).open(values, np.arange(4), store)
    assert features.row_index.tolist() == [-1, -1, -1, 0]
    assert [name for name, _ in features.unreadable] == [str(path) for path in paths[:3]]


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from /proc"
)
def test_no_hostile_file_takes_much_memory(tmp_path: Path) -> None:
    files = {}
    for number, (name, (make, _)) in enumerate(POSTERS.items()):
        files[name] = tmp_path / f"{number}"
        files[name].write_bytes(make())
    files["png of text"] = tmp_path / "text.png"
    files["png of text"].write_bytes(png_with_text(100_000_000))
    for name, (reason, num_bytes) in measure_decoding(files).items():
        assert reason is not None or name == "png of text"
        assert num_bytes < 300e6, name


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from /proc"
)
def test_a_photo_of_24_million_pixels_is_decoded_in_little_memory(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (500, 750, 3), dtype=np.uint8)
    photo = Image.fromarray(noise).resize((6000, 4000), Image.Resampling.BILINEAR)
    transparent = photo.convert("RGBA")
    transparent.putalpha(128)
    saved = {
        "progressive": (photo, "JPEG", {"quality": 90, "progressive": True, "subsampling": 0}),
        "baseline": (photo, "JPEG", {"quality": 90}),
        # PNGs are compressed fast or not at all, to save time.
        "png": (photo, "PNG", {"compress_type": zlib.Z_HUFFMAN_ONLY}),
        "transparent png": (transparent, "PNG", {"compress_level": 0}),
        "16 bits": (Image.new("I;16", (6000, 4000), 30_000), "PNG", {"compress_level": 1}),
    }
    files = {}
    for name, (image, form, options) in saved.items():
        files[name] = tmp_path / name
        files[name].write_bytes(encoded(image, form, **options))
    small = np.asarray(photo.resize((256, 256), Image.Resampling.BICUBIC)).astype(int)
    for name, (reason, num_bytes) in measure_decoding(files).items():
        assert reason is None, name
        assert num_bytes < 300e6, name
    for name in ("progressive", "baseline", "png"):
        assert np.abs(np.load(f"{files[name]}.npy") - small).mean() < 3, name


@pytest.mark.parametrize("size", [16, 150], ids=["averaged", "stretched"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "CMYK", "I;16"])
def test_bands_are_seamless(mode: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    if mode == "I;16":
        image = Image.fromarray(rng.integers(0, 65536, (501, 343), dtype=np.uint16))
    else:
        image = Image.fromarray(rng.integers(0, 256, (501, 343, 4), dtype=np.uint8), "RGBA")
        image = image.convert("RGB").convert(mode) if mode in ("P", "CMYK") else image.convert(mode)
    whole = decode_poster(image, size)
    monkeypatch.setattr("genre_lightning.inputs.decode._BAND_PIXELS", 343 * 20)
    np.testing.assert_array_equal(decode_poster(image, size), whole)
