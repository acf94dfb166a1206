"""Models to explain, and the logits of single branches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from genre_lightning.checkpoint.model import TrainedModel, load_model
from genre_lightning.inputs.pixels import PixelsInput
from genre_lightning.inputs.terms import TermsInput

#: The branches of `tiny_checkpoint`.
TITLE, POSTER = "title_tfidf", "poster_resnet"
SYNOPSIS = "A crew in deep space. A beast hunts the crew, one by one; space is silent (1979)."


@pytest.fixture(scope="session")
def tiny(tiny_checkpoint: Path) -> TrainedModel:
    """A model with branches on title and poster. Tests must not change it."""
    return load_model(tiny_checkpoint)


@pytest.fixture(scope="session")
def stacked(make_checkpoint: Callable[..., Path]) -> TrainedModel:
    """A model of title, synopsis and two poster branches, with stacking and label sets."""
    words = TermsInput("synopsis", vocabulary_size=64, analyzer="word", ngram_range=[1, 1])
    words.vectorizer.fit([SYNOPSIS, "Toys in space", "A cop hunts one thief."])
    more: dict[str, Any] = {
        "plot": (words, {"name": "terms_mlp", "hidden": 8}),
        "other_eye": (
            PixelsInput(size=32, pool=2),
            {"name": "poster_resnet", "widths": [4], "blocks": [1]},
        ),
    }
    return load_model(make_checkpoint(more=more, seed=2, stacking=True, label_sets=True))


def draw_poster(seed: int = 0, size: tuple[int, int] = (32, 32)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def text_logits(model: TrainedModel, branch: str, text: str) -> torch.Tensor:
    """(G,) logits of one branch, from its vectorizer and its network alone."""
    branch_input = model.inputs[branch]
    assert isinstance(branch_input, TermsInput)
    row = branch_input.vectorizer.transform([text])
    with torch.no_grad():
        logits: torch.Tensor = model.network.branches[branch](
            indices=torch.from_numpy(row.indices.astype(np.int64)),
            offsets=torch.zeros(1, dtype=torch.int64),
            weights=torch.from_numpy(row.weights),
        )[0]
    return logits


def normalised(pixels: np.ndarray) -> torch.Tensor:
    """(1, 3, H, W) float32, normalised by the definition of ImageNet."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return ((torch.from_numpy(pixels) / 255 - mean) / std).permute(2, 0, 1)[None]


def poster_logits(network: nn.Module, pixels: np.ndarray) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = network(normalised(pixels))[0]
    return logits
