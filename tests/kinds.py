"""A small example of each input and network, for the contract tests.

A new entry of ``INPUTS`` or ``NETWORKS`` needs a line here, and is then tested like all others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from genre_lightning.inputs import embedding, poster_text
from genre_lightning.inputs.colours import Colours
from genre_lightning.inputs.embedding import EmbeddingInput
from genre_lightning.inputs.encode import encode_items
from genre_lightning.inputs.input import Features, Input, Store
from genre_lightning.inputs.part import Part
from genre_lightning.inputs.pixels import PixelsInput
from genre_lightning.inputs.poster_text import PosterTextInput
from genre_lightning.inputs.table import INPUTS
from genre_lightning.inputs.terms import TermsInput
from genre_lightning.inputs.vectors import VectorsInput
from genre_lightning.inputs.year import YearInput
from genre_lightning.models import poster_encoder
from genre_lightning.models.networks import NETWORKS
from genre_lightning.models.poster_encoder import PosterEncoder
from tests.pictures import locate

#: Of six movies, two lack the column.
NUM_MOVIES = 6
TRAIN = np.array([0, 1, 2, 4])


@dataclass(frozen=True)
class Kind:
    """How to build one kind of input, and what to feed it.

    Attributes:
        make: builds the input, not fitted yet; its files go into the folder.
        values: values of the column for six movies, as a reader gives them; None for the second
            and the last movie.
        given: the same values in the form in which a user passes them to ``read``.
        unreadable: values that ``read`` refuses.
    """

    make: Callable[[Path], Input]
    values: Callable[[Path], list[Any]]
    given: Callable[[Path], list[Any]]
    unreadable: tuple[Any, ...]


def _titles(folder: Path) -> list[Any]:
    return ["Heat (1995)", None, "Night Heat (1985)", "Heat of the Sun (2003)", "Sunrise", None]


def _titles_with_years(folder: Path) -> list[Any]:
    titles = enumerate(_titles(folder))
    return [None if title is None else f"{title} ({1950 + 7 * n})" for n, title in titles]


def _draw_posters(folder: Path) -> list[Any]:
    paths: list[Any] = []
    for n in range(NUM_MOVIES):
        pixels = np.random.default_rng(n).integers(0, 256, (24, 16, 3), dtype=np.uint8)
        path = folder / f"{n}.png"
        if not path.exists():
            Image.fromarray(pixels).save(path)
        paths.append(None if n in (1, 5) else path)
    return paths


def _poster_files(folder: Path) -> list[Any]:
    return [None if path is None else locate(path) for path in _draw_posters(folder)]


WIDTH = 4
_VECTORS = np.random.default_rng(3).normal(size=(NUM_MOVIES, WIDTH)).astype(np.float32)


def _write_vectors(folder: Path) -> Input:
    ids = np.array([f"m{n}" for n in range(NUM_MOVIES)])
    np.savez(folder / "vectors.npz", ids=ids[[4, 3, 2, 0]], x=_VECTORS[[4, 3, 2, 0]])
    return VectorsInput(str(folder / "vectors.npz"))


KINDS: dict[str, Kind] = {
    "terms": Kind(
        lambda folder: TermsInput("title", 64, decade=True),
        _titles,
        _titles,
        (7, b"bytes", ["a"]),
    ),
    "pixels": Kind(
        lambda folder: PixelsInput(
            size=32, pool=2, augment={"flip": 0.5, "crop": 0.5, "aspect": 1.2}
        ),
        _poster_files,
        _draw_posters,
        (7, b"no image", "/no/such/file.jpg", np.zeros((4, 4), np.uint8), ["a"]),
    ),
    "embedding": Kind(
        lambda folder: EmbeddingInput("poster", "lite0", views=3, size=[32, 32]),
        _poster_files,
        _draw_posters,
        (7, b"no image", "/no/such/file.jpg", np.zeros((4, 4), np.uint8), ["a"]),
    ),
    "year": Kind(
        lambda folder: YearInput("title"),
        _titles_with_years,
        _titles_with_years,
        (7, b"bytes", ["a"]),
    ),
    "vectors": Kind(
        _write_vectors,
        lambda folder: ["m0", None, "m2", "m3", "m4", None],
        lambda folder: [None if n in (1, 5) else _VECTORS[n] for n in range(NUM_MOVIES)],
        ("m0", [1.0], np.zeros((4, 4)), np.full(WIDTH, np.nan), None),
    ),
}

KINDS["poster_text"] = Kind(
    lambda folder: PosterTextInput("poster", {"kind": "terms", "vocabulary_size": 64}),
    _poster_files,
    _draw_posters,
    KINDS["pixels"].unreadable,
)

#: Arguments that make each network small.
SMALL: dict[str, dict[str, Any]] = {
    "terms_mlp": {"hidden": 6, "skip": True},
    "terms_linear": {"members": 2},
    "poster_resnet": {"widths": [4, 6], "blocks": [1, 1]},
    "embedding_head": {"hidden": 5, "members": 2},
    "poster_encoder": {"encoder": "lite0"},
}


def fits(network: str) -> list[str]:
    """The kinds of input that fit a network."""
    # `poster_text` gives whatever its own text input gives, which is `terms` here.
    gives = {kind: getattr(cls, "gives", "terms") for kind, cls in INPUTS.items()}
    return [kind for kind in INPUTS if gives[kind] == NETWORKS[network].takes]


@dataclass
class Opened:
    """A fitted input and the features of its six movies.

    Attributes:
        input: the fitted input.
        features: features of the six movies.
        given: as in :class:`Kind`.
        store: the store of the features.
        values: as in :class:`Kind`.
    """

    input: Input
    features: Features
    given: list[Any]
    store: Store
    values: list[Any] = field(default_factory=list)

    @property
    def items(self) -> list[Any]:
        """What ``read`` gives for each movie; None for a movie without the column."""
        return [None if value is None else self.input.read(value) for value in self.given]

    def part(self, rows: list[int]) -> Part:
        """The prepared part of some of the movies."""
        chosen = [self.items[row] for row in rows]
        return encode_items({"b": self.input}, {"b": chosen})["b"]


def opened(kind: str, folder: Path) -> Opened:
    store = Store(folder / "cache", workers=1, progress=False)
    branch_input, values = KINDS[kind].make(folder), KINDS[kind].values(folder)
    features = branch_input.open(values, TRAIN, store)
    return Opened(branch_input, features, KINDS[kind].given(folder), store, values)


class _FakeEncoder:
    """A fake image encoder without weights: means of 8 x 8 pixels."""

    def __init__(self, spec: Any, *arguments: Any) -> None:
        self.name, self.sha256, self.width = spec.name, spec.sha256, spec.width
        self.colours = Colours(spec.mean, spec.std)
        self.device = torch.device("cpu")

    def embed(self, posters: np.ndarray) -> Tensor:
        pixels = torch.from_numpy(posters).permute(0, 3, 1, 2).float() / 255
        return self.embed_normalised(pixels)

    def embed_normalised(self, pixels: Tensor) -> Tensor:
        cells = nn.functional.avg_pool2d(pixels, 8).flatten(1).numpy()
        return torch.from_numpy(np.stack([np.resize(row, self.width) for row in cells]))


class _FakeImageModule(nn.Module):
    """A fake of an image encoder's network."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, stride=4)
        self.head_hidden_size = 5

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.relu(self.conv(pixels)).mean((2, 3))


def use_fake_encoders(patch: pytest.MonkeyPatch) -> None:
    """Replace pretrained encoders, whose weights may not be installed, with small fakes."""
    patch.setattr(embedding, "open_encoder", _FakeEncoder)
    patch.setattr(embedding, "ImageEncoder", _FakeEncoder)
    patch.setattr(poster_encoder, "build_image_module", _FakeImageModule)
    patch.setattr(PosterEncoder, "load_pretrained", lambda self: None)
    patch.setattr(poster_text, "ocr_sha256", lambda: "0" * 64)
    patch.setattr(poster_text, "read_words", lambda pixels: f"{pixels[0, 0]} {pixels[-1, -1]}")


def randomize_weights(network: torch.nn.Module, seed: int = 0) -> None:
    """Draw every weight and statistic at random: none is zero, as after training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                noise = torch.randn(value.shape, generator=generator)
                value.copy_(0.5 + noise.abs() if name.endswith("running_var") else 0.3 * noise)
