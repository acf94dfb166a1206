from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from genre_lightning.checkpoint.model import TrainedModel
from genre_lightning.explain.explainer import ImageExplanation
from genre_lightning.explain.pictures import heat_pictures, overlay
from genre_lightning.explain.table import explain_branch
from tests.explain.conftest import POSTER, draw_poster


def test_an_overlay_is_hot_where_the_map_is():
    heat = np.zeros((32, 48), dtype=np.float32)
    heat[:, 24:] = 1.0
    image = overlay(np.full((32, 48, 3), 128, np.uint8), heat)
    assert (image.mode, image.size) == ("RGB", (48, 32))
    pixels = np.asarray(image).astype(int)
    assert pixels[:, 24:].mean() > 1.5 * pixels[:, :24].mean()
    with pytest.raises(ValueError, match="heat map of"):
        overlay(draw_poster(), heat)


def pictures(model: TrainedModel, image: Any) -> list[Image.Image]:
    found = explain_branch(model, POSTER, image)
    assert isinstance(found, ImageExplanation)
    return heat_pictures(found, [0, 3], side=120)


@pytest.mark.parametrize("kind", ["path", "name", "bytes", "image", "pixels"])
def test_heat_pictures_keep_the_posters_proportions(tiny: TrainedModel, tmp_path: Path, kind: str):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side: upright, it is 90 wide and 60 high
    path = tmp_path / "poster.png"
    Image.fromarray(draw_poster(size=(90, 60))).save(path, exif=exif)
    with Image.open(path) as image:
        upright = np.asarray(image.transpose(Image.Transpose.ROTATE_270))
        source = {
            "path": path,
            "name": str(path),
            "bytes": path.read_bytes(),
            "image": image,
            "pixels": upright,
        }[kind]
        found = pictures(tiny, source)
    assert [picture.size for picture in found] == [(120, 80), (120, 80)]
    assert {picture.mode for picture in found} == {"RGB"}
    for actual, expected in zip(found, pictures(tiny, upright), strict=True):
        # Nearly the same whether a poster is rotated before or after resizing.
        np.testing.assert_allclose(np.asarray(actual, float), np.asarray(expected, float), atol=16)


def test_a_stretched_picture_is_hot_where_the_map_is(tiny: TrainedModel):
    def corner(genres: Any) -> np.ndarray:
        heat = np.zeros((len(genres), 8, 8), dtype=np.float32)
        heat[:, 4:, :4] = 1.0
        return heat

    (picture,) = heat_pictures(
        ImageExplanation("by hand", np.full((30, 60, 3), 128, np.uint8), corner, 1), [0], side=80
    )
    assert picture.size == (80, 40)
    light = np.asarray(picture).astype(int).sum(axis=2)
    assert light[30:, :30].min() > light[:15].max() and light[30:, :30].min() > light[:, 50:].max()
