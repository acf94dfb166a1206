"""One of each kind of input and network, small: what the contract tests run over.

A new entry of ``INPUTS`` or ``NETWORKS`` needs a line here, and is then tested as all others are.
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
    """An input of one kind.

    Attributes:
        make: it, not fitted yet, with its files in the folder.
        values: what the column of six movies holds, as a reader gives it; None for the second and
            the last.
        given: the same, as a user hands it in.
        unreadable: values that ``read`` refuses.
    """

    make: Callable[[Path], Input]
    values: Callable[[Path], list[Any]]
    given: Callable[[Path], list[Any]]
    unreadable: tuple[Any, ...]


def _titles(folder: Path) -> list[Any]:
    return ["Heat (1995)", None, "Night Heat (1985)", "Heat of the Sun (2003)", "Sunrise", None]


def _dated(folder: Path) -> list[Any]:
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
        _dated,
        _dated,
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
    """The kinds of input that a network can have."""
    # The words on posters are given as the input of texts gives them: here as terms.
    gives = {kind: getattr(one, "gives", "terms") for kind, one in INPUTS.items()}
    return [kind for kind in INPUTS if gives[kind] == NETWORKS[network].takes]


@dataclass
class Opened:
    """An input that has seen its six movies.

    Attributes:
        input: fitted.
        features: of the six movies.
        given: as :class:`Kind`.
        store: where they are kept.
    """

    input: Input
    features: Features
    given: list[Any]
    store: Store
    values: list[Any] = field(default_factory=list)

    @property
    def items(self) -> list[Any]:
        """What was read of each movie, None for one that lacks the column."""
        return [None if value is None else self.input.read(value) for value in self.given]

    def part(self, rows: list[int]) -> Part:
        """The prepared part of some of the movies."""
        chosen = [self.items[row] for row in rows]
        return encode_items({"b": self.input}, {"b": chosen})["b"]


def opened(kind: str, folder: Path) -> Opened:
    store = Store(folder / "cache", workers=1, progress=False)
    one, values = KINDS[kind].make(folder), KINDS[kind].values(folder)
    features = one.open(values, TRAIN, store)
    return Opened(one, features, KINDS[kind].given(folder), store, values)


class _Encoder:
    """In place of an image encoder's weights: means of 8 x 8 pixels, a movie at a time."""

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


class _Module(nn.Module):
    """In place of the network of an image encoder."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, stride=4)
        self.head_hidden_size = 5

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.relu(self.conv(pixels)).mean((2, 3))


def without_weights(patch: pytest.MonkeyPatch) -> None:
    """Put something small in the place of pretrained encoders, whose weights may not be there."""
    patch.setattr(embedding, "open_encoder", _Encoder)
    patch.setattr(embedding, "ImageEncoder", _Encoder)
    patch.setattr(poster_encoder, "build_image_module", _Module)
    patch.setattr(PosterEncoder, "load_pretrained", lambda self: None)
    patch.setattr(poster_text, "ocr_sha256", lambda: "0" * 64)
    patch.setattr(poster_text, "read_words", lambda pixels: f"{pixels[0, 0]} {pixels[-1, -1]}")


def drawn(network: torch.nn.Module, seed: int = 0) -> None:
    """Give every weight and statistic a value as after training: none is zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                noise = torch.randn(value.shape, generator=generator)
                value.copy_(0.5 + noise.abs() if name.endswith("running_var") else 0.3 * noise)
