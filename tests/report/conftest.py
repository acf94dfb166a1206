"""Small models with movies of their own, whose names try to inject HTML into a page."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from genre_lightning.checkpoint.model import TrainedModel
from genre_lightning.data.datamodule import MovieDataModule
from genre_lightning.inputs.input import Input
from genre_lightning.inputs.pixels import PixelsInput
from genre_lightning.inputs.terms import TermsInput
from genre_lightning.models.networks import build_network
from genre_lightning.report.evaluation import SplitScores, score_split
from genre_lightning.report.page import Origin

HOSTILE = '<script>window.hit=1</script><img src=x onerror="window.hit=1"> "Heat" & {{ 7 * 7 }}'
GENRES = ["Action", "Comedy", '<i onmouseover="window.hit=1">Dra"ma</i>', "Horror"]


@dataclass(frozen=True)
class Case:
    """Everything that a report is made from."""

    model: TrainedModel
    data: MovieDataModule
    scores: SplitScores
    validation: SplitScores
    origin: Origin
    manifest: Path


def text_input(column: str, texts: Sequence[str], decade: bool) -> TermsInput:
    branch_input = TermsInput(column, vocabulary_size=256, decade=decade)
    branch_input.vectorizer.fit(texts)
    return branch_input


def make_branches(names: Sequence[str]) -> dict[str, tuple[Input, dict[str, Any]]]:
    """Inputs and networks by branch: "name" reads titles, "picture" posters, "plot" synopses."""
    mlp: dict[str, Any] = {"name": "terms_mlp", "hidden": 8}
    resnet: dict[str, Any] = {"name": "poster_resnet", "widths": [4, 8], "blocks": [1, 1]}
    builders: dict[str, Callable[[], tuple[Input, dict[str, Any]]]] = {
        "name": lambda: (
            text_input("title", [HOSTILE, "Heat (1995)", "Alien (1979)"], decade=True),
            mlp,
        ),
        "picture": lambda: (PixelsInput(size=32), {**resnet, "stem_stride": 2}),
        "plot": lambda: (text_input("synopsis", [plot(n) for n in range(24)], decade=False), mlp),
    }
    return {name: builders[name]() for name in names}


@pytest.fixture(scope="session")
def make_case(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Case]:
    """`make_case(genres, branches)`: of several, the last genre never occurs in the test split.

    The branches are those of `make_branches`. Of the 24 movies of each split, four have no poster,
    one a damaged and one a missing file; six have no synopsis, and two of these no poster either.
    """

    def make(
        genres: Sequence[str], branches: Sequence[str] = ("name", "picture"), seed: int = 0
    ) -> Case:
        folder = tmp_path_factory.mktemp("case")
        manifest = write_movies(folder, genres, seed)
        parts = make_branches(branches)
        inputs = {name: branch_input for name, (branch_input, _) in parts.items()}
        torch.manual_seed(seed)
        network = build_network(
            len(genres), {name: net for name, (_, net) in parts.items()}, inputs
        )
        for branch in network.branches.values():
            torch.nn.init.normal_(branch.get_parameter("head.weight"), std=2.0)
        network.prior.copy_(torch.linspace(-1, 0.5, len(genres)))
        model = TrainedModel(
            network=network.eval(),
            activation="sigmoid",
            loss={"name": "bce"},
            genres=tuple(genres),
            thresholds=torch.full((len(genres),), 0.45),
            inputs=inputs,
            data={"reader": "manifest", "path": str(manifest)},
        )
        data = MovieDataModule(
            "manifest",
            inputs,
            path=str(manifest),
            genres=genres,
            workers=1,
            cache_dir=folder / "cache",
        )
        data.setup()
        checkpoint = folder / "best.ckpt"
        checkpoint.write_bytes(b"for its name and digest only")
        return Case(
            model=model,
            data=data,
            scores=score_split(model, data, "test"),
            validation=score_split(model, data, "val"),
            origin=Origin(
                checkpoint,
                "python evaluate.py ckpt_path=a.ckpt 'data.path=<my> files.csv'",
                datetime(2025, 3, 4, 5, 6, tzinfo=UTC),
            ),
            manifest=manifest,
        )

    return make


def plot(number: int) -> str:
    words = ["space", "crew", "cop", "beast", "wedding", "war", "song", "ghost", HOSTILE]
    return " ".join(words[(number * k) % len(words)] for k in range(1, 30)) + f" {number}."


def write_movies(folder: Path, genres: Sequence[str], seed: int) -> Path:
    generator = np.random.default_rng(seed)
    path = folder / "movies.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["id", "title", "poster", "synopsis", "genres", "split"])
        for split in ("train", "val", "test"):
            # every genre occurs in train, so that the dataset knows it
            for number in range(24):
                usable = max(len(genres) - (split == "test"), 1)
                chosen = {number % usable, int(generator.integers(usable))}
                name = f"{split}{number}.png"
                noise = generator.integers(256, size=(60, 40, 3), dtype=np.uint8)
                Image.fromarray(noise).save(folder / name)
                if number == 3:
                    (folder / name).write_bytes(b"no picture")
                if number == 4:
                    (folder / name).unlink()
                table.writerow(
                    [
                        f"{split}{number}",
                        f"{HOSTILE} {number} ({1950 + number})",
                        "" if number % 6 == 5 else name,
                        "" if number % 8 in (1, 5) else plot(number),
                        "|".join(genres[g] for g in sorted(chosen)),
                        split,
                    ]
                )
    return path


@pytest.fixture(scope="session")
def two_branches(make_case: Callable[..., Case]) -> Case:
    """A model of titles and posters; the name of a genre is hostile, too."""
    return make_case(GENRES)


@pytest.fixture(scope="session")
def three_branches(make_case: Callable[..., Case]) -> Case:
    """A model of titles, posters and synopses."""
    return make_case(GENRES, ["name", "picture", "plot"], seed=1)
