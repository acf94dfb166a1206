"""One of each kind of input and network, small: what the contract tests run over.

A new entry of ``INPUTS`` or ``NETWORKS`` needs a line here, and is then tested as all others are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from genre_lightning.inputs.embedding import EmbeddingInput
from genre_lightning.inputs.encode import encode_items
from genre_lightning.inputs.input import Features, Input, Store
from genre_lightning.inputs.part import Part
from genre_lightning.inputs.pixels import PixelsInput
from genre_lightning.inputs.table import INPUTS
from genre_lightning.inputs.terms import TermsInput
from genre_lightning.inputs.vectors import VectorsInput
from genre_lightning.inputs.year import YearInput
from genre_lightning.models.networks import NETWORKS
from tests.pictures import locate

#: Of six movies, two lack the column.
NUM_MOVIES = 6
TRAIN = np.array([0, 1, 2, 4])


@dataclass(frozen=True)
class Kind:
    """An input of one kind.

    Attributes:
        make: it, not fitted yet, in the folder that ``values`` was given.
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


def _dated_titles(folder: Path) -> list[Any]:
    years = (1995, None, 1985, 1990, 2003, None)
    return [None if year is None else f"Heat ({year})" for year in years]


def _write_vectors(folder: Path) -> Path:
    path = folder / "vectors.npz"
    if not path.exists():
        x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
        np.savez(path, ids=np.array(["id 3", "id 0", "id 4", "id 2"]), x=x)
    return path


def _ids(folder: Path) -> list[Any]:
    return [f"id {n}" for n in range(NUM_MOVIES)]


def _vectors(folder: Path) -> list[Any]:
    with np.load(_write_vectors(folder)) as file:
        row = dict(zip(file["ids"].tolist(), file["x"], strict=True))
    return [row.get(one) for one in _ids(folder)]


KINDS: dict[str, Kind] = {
    "terms": Kind(
        lambda folder: TermsInput("title", 64, decade=True), _titles, _titles, (7, b"bytes", ["a"])
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
        lambda folder: EmbeddingInput("poster", "lite0", size=[32, 16]),
        _poster_files,
        _draw_posters,
        (7, b"no image", "/no/such/file.jpg", np.zeros((4, 4), np.uint8), ["a"]),
    ),
    "year": Kind(
        lambda folder: YearInput("title"), _dated_titles, _dated_titles, (7, b"bytes", ["a"])
    ),
    "vectors": Kind(
        lambda folder: VectorsInput(str(_write_vectors(folder))),
        _ids,
        _vectors,
        (7, "id 0", b"bytes", [1.0, 2.0], ["a", "b", "c"]),
    ),
}

#: Arguments that make each network small.
SMALL: dict[str, dict[str, Any]] = {
    "terms_mlp": {"hidden": 6, "skip": True},
    "terms_linear": {"members": 2},
    "poster_resnet": {"widths": [4, 6], "blocks": [1, 1]},
    "embedding_head": {"hidden": 6, "members": 2},
    "poster_encoder": {"encoder": "lite0"},
}


def fits(network: str) -> list[str]:
    """The kinds of input that a network can have."""
    return [kind for kind, one in INPUTS.items() if one.gives == NETWORKS[network].takes]


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


def drawn(network: torch.nn.Module, seed: int = 0) -> None:
    """Give every weight and statistic a value as after training: none is zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                noise = torch.randn(value.shape, generator=generator)
                value.copy_(0.5 + noise.abs() if name.endswith("running_var") else 0.3 * noise)
