from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import genre_lightning.inputs.augment as augment_module
from genre_lightning.inputs.augment import PosterAugment, normalise_posters
from genre_lightning.inputs.colours import POSTER_MEAN, POSTER_STD, Colours

OFF: dict[str, Any] = {"flip": 0.0, "crop": 1.0, "aspect": 1.0}
MEAN, STD = torch.tensor(POSTER_MEAN).view(3, 1, 1), torch.tensor(POSTER_STD).view(3, 1, 1)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(num: int = 8, height: int = 24, width: int = 16) -> Tensor:
    """(num, 3, height, width) uint8, channels last."""
    shape = (num, height, width, 3)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=seeded(7))
    return pixels.permute(0, 3, 1, 2)


def denormalise(normalised: Tensor) -> Tensor:
    """Undo the normalisation, back to 0..1."""
    return normalised * STD + MEAN


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=str)
@pytest.mark.parametrize("num", [0, 1, 5])
def test_normalisation_uses_mean_and_std(layout, num):
    posters = noise(num).contiguous(memory_format=layout)
    result = normalise_posters(posters)
    expected = (posters.numpy() / 255 - np.array(POSTER_MEAN).reshape(3, 1, 1)) / np.array(
        POSTER_STD
    ).reshape(3, 1, 1)
    assert result.dtype == torch.float32 and result.shape == posters.shape
    assert result.is_contiguous(memory_format=layout)
    np.testing.assert_allclose(result.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("pool", [2, 3, 4, 7, 12])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=str)
def test_pooling_is_the_mean_of_squares(layout, pool):
    # The sum of 12 x 12 white pixels overflows int16.
    posters = noise(3, 25, 38).clamp(min=200).contiguous(memory_format=layout)
    result = normalise_posters(posters, pool)
    height, width = 25 // pool, 38 // pool
    squares = posters[:, :, : height * pool, : width * pool].numpy().astype(float)
    means = squares.reshape(3, 3, height, pool, width, pool).mean((3, 5))
    assert result.dtype == torch.float32 and result.shape == (3, 3, height, width)
    np.testing.assert_allclose(denormalise(result).numpy() * 255, means, atol=1e-3)
    assert normalise_posters(posters[:0], pool).shape == (0, 3, height, width)
    assert normalise_posters(posters[:0, :, :1, :1], pool).shape == (0, 3, 0, 0)


@pytest.mark.parametrize("pool", [1, 2])
def test_augmentation_switched_off_only_normalises(pool):
    result = PosterAugment(**OFF)(noise(), seeded(), pool)
    torch.testing.assert_close(result, normalise_posters(noise(), pool), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=str)
@pytest.mark.parametrize("height_width", [(24, 16), (7, 9), (1, 1)], ids=str)
@pytest.mark.parametrize("num", [0, 1, 5])
def test_result_is_float32_and_channels_last(layout, height_width, num):
    posters = noise(num, *height_width).contiguous(memory_format=layout)
    before = posters.clone()
    result = PosterAugment()(posters, seeded())
    assert result.dtype == torch.float32 and result.shape == posters.shape
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(posters, before)


def test_equal_seeds_give_equal_results_without_the_global_generator():
    augment = PosterAugment()
    state = torch.random.get_rng_state()
    first = augment(noise(), seeded(3))
    assert torch.equal(first, augment(noise(), seeded(3)))
    assert not torch.equal(first, augment(noise(), seeded(4)))
    assert torch.equal(state, torch.random.get_rng_state())


def test_each_poster_has_its_own_draw():
    same = noise(1).expand(16, -1, -1, -1)
    results = PosterAugment()(same, seeded())
    assert len({row.numpy().tobytes() for row in results}) == 16


def test_a_poster_does_not_depend_on_the_others():
    posters = noise()
    changed = posters.clone()
    changed[[0, 1, 3, 4, 5, 6, 7]] = 255 - changed[[0, 1, 3, 4, 5, 6, 7]]
    augment = PosterAugment()
    assert torch.equal(augment(posters, seeded())[2], augment(changed, seeded())[2])


@pytest.mark.parametrize("off", sorted(OFF))
def test_switching_one_change_off_leaves_the_others(off):
    everything: dict[str, Any] = {"flip": 0.5, "crop": 0.5, "aspect": 1.3}
    full = PosterAugment(**everything).draw(noise(), seeded())
    less = PosterAugment(**{**everything, off: OFF[off]}).draw(noise(), seeded())
    other = "crop" if off == "flip" else "mirrored"
    assert torch.equal(getattr(full, other), getattr(less, other))


SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "flip": {**OFF, "flip": 0.5},
    "crop": {**OFF, "crop": 0.3, "aspect": 1.5},
    "off": OFF,
}


@pytest.mark.parametrize("pool", [1, 2])
@pytest.mark.parametrize("height_width", [(32, 32), (24, 16), (5, 7)], ids=str)
@pytest.mark.parametrize("setting", SETTINGS)
def test_each_poster_is_augmented_as_drawn(setting, height_width, pool, monkeypatch):
    monkeypatch.setattr(augment_module, "_CHUNK_PIXELS", 2000)  # a few posters at a time
    posters = noise(20, *height_width)
    augment = PosterAugment(**SETTINGS[setting])
    draws = augment.draw(posters, seeded())
    result = augment(posters, seeded(), pool)
    size = [side // pool for side in height_width]
    assert result.shape == (20, 3, *size)
    assert result.is_contiguous(memory_format=torch.channels_last)
    for n, poster in enumerate(posters.double()):
        part = poster
        if draws.crop is not None:
            top, left, crop_height, crop_width = draws.crop[n].tolist()
            part = poster[:, top : top + crop_height, left : left + crop_width]
            part = F.interpolate(part[None], size, mode="bilinear", align_corners=False)[0]
        elif pool > 1:
            part = F.avg_pool2d(part, pool)
        if draws.mirrored is not None and draws.mirrored[n]:
            part = part.flip(2)
        expected = (part / 255 - MEAN) / STD
        torch.testing.assert_close(result[n].double(), expected, atol=5e-4, rtol=0)


def test_nothing_is_read_back_from_the_device():
    # A tensor on "meta" has a shape but no numbers, so reading one back raises an error.
    posters = torch.empty(4, 3, 16, 16, dtype=torch.uint8, device="meta")
    for pool in (1, 2):
        shape = (4, 3, 16 // pool, 16 // pool)
        assert PosterAugment()(posters, pool=pool).shape == shape
        assert normalise_posters(posters, pool).shape == shape


def test_flip_mirrors_left_to_right():
    always = PosterAugment(**{**OFF, "flip": 1.0})(noise(), seeded())
    torch.testing.assert_close(always, normalise_posters(noise().flip(3)), atol=1e-5, rtol=1e-5)
    sometimes = PosterAugment(**{**OFF, "flip": 0.25}).draw(noise(1).expand(2000, -1, -1, -1))
    assert sometimes.mirrored is not None
    assert 0.2 < sometimes.mirrored.float().mean() < 0.3


def resize_bilinearly(part: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize (h, w, 3) bilinearly, pixel by pixel."""
    result = np.zeros((height, width, 3))
    for i in range(height):
        for j in range(width):
            y = min(max((i + 0.5) * part.shape[0] / height - 0.5, 0), part.shape[0] - 1)
            x = min(max((j + 0.5) * part.shape[1] / width - 0.5, 0), part.shape[1] - 1)
            y0, x0 = math.floor(y), math.floor(x)
            y1, x1 = min(y0 + 1, part.shape[0] - 1), min(x0 + 1, part.shape[1] - 1)
            top = part[y0, x0] * (1 - x + x0) + part[y0, x1] * (x - x0)
            bottom = part[y1, x0] * (1 - x + x0) + part[y1, x1] * (x - x0)
            result[i, j] = top * (1 - y + y0) + bottom * (y - y0)
    return result


@pytest.mark.parametrize(
    ("crop", "shape", "shrink"),
    [(0.2, (4, 13, 11), 1), (0.4, (6, 24, 36), 2)],
    ids=["full size", "half size"],
)
def test_crop_is_resized_bilinearly(crop: float, shape: tuple[int, int, int], shrink: int):
    augment = PosterAugment(**{**OFF, "crop": crop, "aspect": 1.5})
    posters = noise(*shape)
    boxes = augment.draw(posters, seeded()).crop
    result = denormalise(augment(posters, seeded(), shrink)) * 255
    count, height, width = shape[0], shape[1] // shrink, shape[2] // shrink
    assert boxes is not None and result.shape == (count, 3, height, width)
    for poster, (top, left, crop_height, crop_width), actual in zip(
        posters, boxes.tolist(), result, strict=True
    ):
        pixels = poster.permute(1, 2, 0).numpy().astype(float)
        part = pixels[top : top + crop_height, left : left + crop_width]
        expected = resize_bilinearly(part, height, width).transpose(2, 0, 1)
        np.testing.assert_allclose(actual.numpy(), expected, atol=0.02)


def test_crop_of_the_whole_poster_equals_pooling():
    posters = noise(5, 32, 24)
    whole = torch.tensor([[0, 0, 32, 24]]).expand(5, -1)
    augment = PosterAugment(**OFF)
    draws = augment.draw(posters, seeded())
    result = augment._apply_draws(posters, dataclasses.replace(draws, crop=whole), 2)
    torch.testing.assert_close(result, normalise_posters(posters, 2), atol=1e-4, rtol=0)


def test_augmentation_refuses_pool_above_2():
    with pytest.raises(ValueError, match="pool must be 1 or 2, not 4"):
        PosterAugment()(noise(), seeded(), 4)


def test_crops_lie_inside_and_keep_to_the_area_and_aspect_limits():
    posters = noise(1, 200, 200).expand(3000, -1, -1, -1)
    crop = PosterAugment(**{**OFF, "crop": 0.4, "aspect": 1.25}).draw(posters, seeded()).crop
    assert crop is not None
    top, left, crop_height, crop_width = crop.double().unbind(1)
    assert (top >= 0).all() and (left >= 0).all()
    assert (top + crop_height <= 200).all() and (left + crop_width <= 200).all()
    area, aspect = crop_height * crop_width / 200**2, crop_width / crop_height
    assert 0.38 < area.min() < 0.45 and 0.95 < area.max() <= 1.0
    assert 0.78 < aspect.min() < 0.85 and 1.2 < aspect.max() < 1.27
    # Crops reach all positions, including the edges.
    slack = 200 - crop_width
    assert (left[slack > 20] == 0).any() and (left == slack)[slack > 20].any()


def test_gray_posters_stay_gray():
    posters = noise()[:, :1].expand(-1, 3, -1, -1).contiguous()
    result = denormalise(PosterAugment()(posters, seeded()))
    torch.testing.assert_close(result[:, 0], result[:, 1], atol=1e-4, rtol=0)
    torch.testing.assert_close(result[:, 0], result[:, 2], atol=1e-4, rtol=0)


def test_joined_batches_equal_separate_batches():
    augment = PosterAugment()
    posters = noise(9)
    joined = augment(posters, [(2, seeded(1)), (0, seeded(2)), (7, seeded(3))])
    assert torch.equal(joined[:2], augment(posters[:2], seeded(1)))
    assert torch.equal(joined[2:], augment(posters[2:], seeded(3)))


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_normalisation_by_other_colours(training):
    colours = Colours((0.5, 0.25, 0.75), (0.1, 0.2, 0.5))
    if training:
        actual = PosterAugment(**OFF, colours=colours)(noise(), seeded())
    else:
        actual = normalise_posters(noise(), colours=colours)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (colours.mean, colours.std))
    torch.testing.assert_close(actual, (noise() / 255 - mean) / std, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [{"flip": 1.5}, {"crop": 0.0}, {"crop": 2}, {"aspect": 0.5}, {"flip": "0.5"}, {"crop": None}],
    ids=str,
)
def test_settings_out_of_range_are_refused_by_name(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        PosterAugment(**settings)


@pytest.mark.parametrize(
    "posters",
    [torch.zeros(2, 3, 4, 4), torch.zeros(3, 4, 4, dtype=torch.uint8)],
    ids=["float", "no batch"],
)
def test_tensors_of_another_dtype_or_shape_are_refused(posters):
    with pytest.raises(ValueError, match="uint8"):
        PosterAugment()(posters)
