"""Damaged images give pixels or the reason why not, without taking much memory."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
from PIL import Image

from genre_lightning.inputs.decode import decode_poster
from genre_lightning.inputs.poster_limits import FORMATS, PosterError
from tests.fuzz.hostile import HONEST, POSTERS, jpeg
from tests.fuzz.mutations import mutated, seeds
from tests.memory import little_memory
from tests.pictures import NOISE, encoded

#: Left out: their damaged versions may be decoded, which takes a second each.
COSTLY = ("jpeg of 90 large scans", "progressive jpeg, large", "tiff of many strips")
exif = Image.Exif()
exif[0x0112] = 6
ORIGINALS = {
    **{form: encoded(NOISE, form) for form in FORMATS},
    "progressive": jpeg(progressive=True, exif=exif),
    "palette": encoded(NOISE.quantize(16)),
    "RGBA": encoded(NOISE.convert("RGBA"), "WEBP", lossless=True, exif=exif),
    "LZW": encoded(NOISE, "TIFF", compression="tiff_lzw"),
    **{name: make() for name, make in HONEST.items() if name != "png with a remark"},
    **{name: make() for name, (make, _) in POSTERS.items() if name not in COSTLY},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ORIGINALS)
def test_damaged_images_give_pixels_or_a_reason(name: str) -> None:
    for seed in seeds(12):
        data = mutated(ORIGINALS[name], seed)
        try:
            with little_memory(400), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                pixels = decode_poster(data, 16)
        except PosterError as error:
            reason = str(error)
            assert reason and len(reason) < 400, f"seed {seed}"
            assert "memory" not in reason, f"seed {seed}: {reason}"
        else:
            assert pixels.shape == (16, 16, 3) and pixels.dtype == np.uint8, f"seed {seed}"


def test_undamaged_images_have_their_format() -> None:
    for form in FORMATS:
        assert Image.open(io.BytesIO(ORIGINALS[form])).format == form
