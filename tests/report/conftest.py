"""A model of any genres with movies of its own, whose names try to break out of a page."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from genre_lightning.checkpoint.model import TrainedModel
from genre_lightning.data.datamodule import MovieDataModule
from genre_lightning.inputs.terms import TitleVectorizer
from genre_lightning.models.networks import build_network
from genre_lightning.report.evaluation import SplitScores, score_split
from genre_lightning.report.page import Origin

HOSTILE = '<script>window.hit=1</script><img src=x onerror="window.hit=1"> "Heat" & {{ 7 * 7 }}'


@dataclass(frozen=True)
class Case:
    """All that a report is made of."""

    model: TrainedModel
    data: MovieDataModule
    scores: SplitScores
    validation: SplitScores
    origin: Origin
    manifest: Path


@pytest.fixture(scope="session")
def make_case(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Case]:
    """`make_case(genres, title=True, poster=True)`: the last genre never occurs in the test split.

    Of the 24 movies of each split some have no poster, one a damaged and one an absent file.
    """

    def make(genres: Sequence[str], title: bool = True, poster: bool = True, seed: int = 0) -> Case:
        folder = tmp_path_factory.mktemp("case")
        manifest = write_movies(folder, genres, seed)
        titles = TitleVectorizer(vocabulary_size=256).fit([HOSTILE, "Heat (1995)", "Alien (1979)"])
        torch.manual_seed(seed)
        network = build_network(
            len(genres),
            {"name": "title_mlp", "vocabulary_size": titles.vocabulary_size, "hidden": 8}
            if title
            else None,
            {"name": "poster_resnet", "widths": [4, 8], "blocks": [1, 1], "stem_stride": 2}
            if poster
            else None,
        )
        for head in (network.title, network.poster):
            if head is not None:
                torch.nn.init.normal_(head.get_parameter("head.weight"), std=2.0)
        model = TrainedModel(
            network=network.eval(),
            activation="sigmoid",
            loss={"name": "bce"},
            genres=tuple(genres),
            thresholds=torch.full((len(genres),), 0.45),
            titles=titles,
            poster_size=32,
            poster_pool=1,
            data={"reader": "manifest", "path": str(manifest)},
        )
        data = MovieDataModule(
            "manifest",
            titles,
            path=str(manifest),
            genres=genres,
            poster_size=32,
            workers=1,
            use_titles=title,
            use_posters=poster,
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


def write_movies(folder: Path, genres: Sequence[str], seed: int) -> Path:
    generator = np.random.default_rng(seed)
    path = folder / "movies.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["id", "title", "poster", "genres", "split"])
        for split in ("train", "val", "test"):
            # every genre occurs in train, so that the dataset knows it
            for number in range(24):
                usable = len(genres) - (split == "test")
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
                        "|".join(genres[g] for g in sorted(chosen)),
                        split,
                    ]
                )
    return path


@pytest.fixture(scope="session")
def case(make_case: Callable[..., Case]) -> Case:
    """Both branches; a genre's name is hostile as well."""
    return make_case(["Action", "Comedy", '<i onmouseover="window.hit=1">Dra"ma</i>', "Horror"])
