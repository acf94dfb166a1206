from __future__ import annotations

import numpy as np
import pytest
import torch

from genre_lightning.inputs.colours import IMAGENET, Colours, normalisation

OTHER = Colours((0.5, 0.25, 0.75), (0.1, 0.2, 0.5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("colours", [IMAGENET, OTHER], ids=["imagenet", "other"])
def test_normalisation_matches_its_formula(colours: Colours, dtype: torch.dtype) -> None:
    scale, bias = normalisation(colours, dtype=dtype)
    assert scale.dtype == bias.dtype == torch.float32
    mean, std = np.array(colours.mean), np.array(colours.std)
    for value in (0, 1, 128, 255):
        expected = (value / 255 - mean) / std
        np.testing.assert_allclose((value * scale + bias).numpy(), expected, atol=2e-6)


def test_normalisation_is_cached_and_usable_in_training() -> None:
    with torch.inference_mode():
        scale, _ = normalisation(Colours((0.1, 0.2, 0.3), (0.3, 0.2, 0.1)))
    assert not scale.is_inference()
    assert normalisation(Colours((0.1, 0.2, 0.3), (0.3, 0.2, 0.1)))[0] is scale
