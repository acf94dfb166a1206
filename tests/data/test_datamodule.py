"""From files to batches: nothing leaks, nothing is done twice, nothing grows."""

from __future__ import annotations

import csv
import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image

from genre_lightning.data.batch import MovieBatch
from genre_lightning.data.datamodule import TOGETHER, MovieDataModule
from genre_lightning.inputs.augment import PosterAugment, normalise_posters
from genre_lightning.inputs.terms import TitleVectorizer
from genre_lightning.movies.movie import DataError

SPLITS = ["train"] * 12 + ["val"] * 4 + ["test"] * 4
WORDS = ("love ", "war ", "space ", "ghost ", "train ", "river ")
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a manifest of 20 movies: `write("name", other=True)` differs in val and test."""

    def manifest(name: str, other: bool = False, genres: tuple[str, ...] = ("A", "B")) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        path = folder / "movies.csv"
        with path.open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["title", "poster", "genres", "split"])
            for number, split in enumerate(SPLITS):
                held_out = other and split != "train"
                title = WORDS[number % 6] + WORDS[number % 5] + f"({1950 + number})"
                shade = (number * 10, 100, 255 if held_out else 0)
                if held_out:
                    title = "Unheard-of Quixotic Zyzzyva (2020)"
                poster = "" if number % 7 == 3 else f"{number}.png"
                if poster:
                    Image.new("RGB", (8 + held_out, 8), shade).save(folder / poster)
                chosen = "|".join(genre for g, genre in enumerate(genres) if number >> g & 1)
                table.writerow([title, poster, chosen or genres[0], split])
        return path

    return manifest


def module(path: Path, cache: Path, **more: Any) -> MovieDataModule:
    options: dict[str, Any] = {"batch_size": 4, "poster_size": 8, "workers": 1, **more}
    titles = options.pop("titles", None) or TitleVectorizer(64)
    return MovieDataModule("manifest", titles, cache_dir=cache, path=str(path), **options)


def train_features(data: MovieDataModule) -> list[np.ndarray]:
    """Titles, posters and labels of the training movies in order."""
    assert data.posters is not None
    rows = data.splits["train"]
    taken = data.titles.take(rows)
    places = data.posters.row[rows]
    return [
        rows, taken.indptr, taken.indices, taken.weights, places >= 0,
        np.array(data.posters.images[places[places >= 0]]), data.labels[rows],
    ]  # fmt: skip


def test_held_out_movies_change_no_feature(write: Write, tmp_path: Path) -> None:
    one = module(write("one"), tmp_path / "cache")
    two = module(write("two", other=True), tmp_path / "cache")
    one.setup()
    two.setup()
    # The test is one: what is held out does differ.
    held = one.splits["test"]
    assert [m.title for m in one.movie_set.movies] != [m.title for m in two.movie_set.movies]
    assert not np.array_equal(one.titles.take(held).weights, two.titles.take(held).weights)
    assert one.vectorizer.state_dict() == two.vectorizer.state_dict()
    for mine, other in zip(train_features(one), train_features(two), strict=True):
        np.testing.assert_array_equal(mine, other)
    for batch, other_batch in zip(
        one.loader("train", True), two.loader("train", True), strict=True
    ):
        assert torch.equal(batch.posters, other_batch.posters) and batch.seed == other_batch.seed
        assert torch.equal(batch.title_weights, other_batch.title_weights)


def files(cache: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path.relative_to(cache)): (path.stat().st_mtime_ns, path.stat().st_size)
        for path in cache.rglob("*")
        if path.is_file() and not path.name.endswith(".lock")
    }


def test_a_warm_start_does_nothing_again(write: Write, tmp_path: Path, monkeypatch: Any) -> None:
    cache = tmp_path / "cache"
    path = write("movies")
    first = module(path, cache)
    first.setup()
    before = files(cache)
    assert len(before) >= 3 + 4 + 2  # splits, titles, posters
    # None makes an import fail: neither a split nor a vocabulary is made again.
    for name in ("sklearn.feature_extraction.text", "iterstrat.ml_stratifiers"):
        monkeypatch.setitem(sys.modules, name, None)
    second = module(path, cache)
    second.setup()
    for mine, other in zip(train_features(first), train_features(second), strict=True):
        np.testing.assert_array_equal(mine, other)
    assert second.vectorizer.state_dict() == first.vectorizer.state_dict()
    assert files(cache) == before
    with pytest.raises(ImportError):
        module(path, tmp_path / "cold").setup()


@pytest.mark.parametrize(
    ("change", "new"),
    [
        ({"titles": TitleVectorizer(65)}, {"titles"}),
        ({"poster_size": 9}, {"posters"}),
        ({"batch_size": 2}, set()),
        ({"seed": 5}, set()),
    ],
    ids=["vocabulary", "poster size", "batch size", "seed"],
)
def test_a_setting_remakes_what_depends_on_it(
    change: dict[str, Any], new: set[str], write: Write, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    path = write("movies")
    module(path, cache).setup()
    before = {folder.name for folder in cache.iterdir() if folder.is_dir()}
    module(path, cache, **change).setup()
    after = {folder.name for folder in cache.iterdir() if folder.is_dir()}
    assert before <= after and {name.partition("-")[0] for name in after - before} == new


def test_a_second_setup_does_nothing(write: Write, tmp_path: Path) -> None:
    data = module(write("movies"), tmp_path / "cache")
    with pytest.raises(RuntimeError, match="setup"):
        _ = data.movie_set
    data.setup("fit")
    parts = (data.movie_set, data.titles, data.posters, data.batches, data.vectorizer)
    data.setup("test")
    again = (data.movie_set, data.titles, data.posters, data.batches, data.vectorizer)
    assert all(one is two for one, two in zip(parts, again, strict=True))


def test_memory_does_not_grow_with_the_pixels(tmp_path: Path) -> None:
    # 2000 posters of 64 x 64 are 25 MB of pixels; an epoch over them maps them and keeps none.
    number, side = 2000, 64
    with (tmp_path / "movies.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["title", "poster", "genres", "split"])
        for n in range(number):
            Image.new("RGB", (1, 1), (n % 256, n // 256, 9)).save(tmp_path / f"{n}.bmp")
            table.writerow(
                [f"{WORDS[n % 6]}{n}", f"{n}.bmp", "AB"[n % 2], ["train", "val", "test"][n // 900]]
            )
    data = module(tmp_path / "movies.csv", tmp_path / "cache", poster_size=side, batch_size=16)
    data.setup()
    assert data.posters is not None and len(data.posters.images) == number

    def own_memory() -> int:
        gc.collect()
        status = Path("/proc/self/status").read_text()
        return int(status.partition("RssAnon:")[2].split()[0]) * 1024

    for _ in data.loader("val"):  # what the first batch needs is not the question
        pass
    before = own_memory()
    seen = sum(batch.posters.shape[0] for batch in data.loader("train", shuffle=True))
    assert seen * side * side * 3 > 10 * 2**20
    assert own_memory() - before < 3 * 2**20


def test_batches_prepared_together_are_those_prepared_alone(write: Write, tmp_path: Path) -> None:
    augment = PosterAugment(crop=0.4, erase=0.5)
    data = module(write("movies"), tmp_path / "cache", augment=augment, batch_size=2)
    data.setup()
    for training in (True, False):
        split = "train" if training else "val"
        gathered = list(data.loader(split, training))
        ready = list(data.loader(split, training, device="cpu"))
        assert data.loader(split, training, device="cpu").together == TOGETHER
        assert len(gathered) > 1
        for alone, batch in zip(gathered, ready, strict=True):
            wanted = data.prepare_posters(alone.posters, alone.seed, training)
            assert torch.equal(batch.posters, wanted)
            assert torch.equal(batch.title_offsets, alone.title_offsets)
            assert torch.equal(batch.poster_rows, alone.poster_rows)
            assert batch.posters.is_contiguous(memory_format=torch.channels_last)


def test_large_posters_are_prepared_by_the_batch(write: Write, tmp_path: Path) -> None:
    data = module(write("movies"), tmp_path / "cache", poster_size=512, batch_size=2)
    data.setup()
    assert data.loader("train", True, device="cpu").together == 1
    assert data.loader("train", True, device="meta").together == 8


def test_preparing_posters_leaves_the_rest(write: Write, tmp_path: Path) -> None:
    data = module(write("movies"), tmp_path / "cache", augment=PosterAugment())
    data.setup()
    batch = next(iter(data.loader("train", shuffle=True)))
    plain = data.prepare_posters(batch.posters, batch.seed, training=False)
    torch.testing.assert_close(plain, normalise_posters(batch.posters))
    changed = data.prepare_posters(batch.posters, batch.seed, training=True)
    assert changed.dtype == plain.dtype == torch.float32 and not torch.equal(changed, plain)
    again = data.prepare_posters(batch.posters, batch.seed, training=True)
    assert torch.equal(changed, again)
    prepared = batch.with_posters(plain)
    for name in ("title_indices", "title_weights", "poster_rows", "targets", "rows"):
        assert getattr(prepared, name) is getattr(batch, name)
    nothing = data.prepare_posters(batch.posters[:0], 1, training=True)
    assert nothing.shape == (0, *batch.posters.shape[1:])


@pytest.mark.parametrize("kept", [True, False])
def test_resident_posters_train_the_same(kept: bool, write: Write, tmp_path: Path) -> None:
    def trained(device_resident: bool | str) -> tuple[list[torch.Tensor], set[bool]]:
        data = module(
            write(f"movies-{device_resident}"), tmp_path / "cache",
            augment=PosterAugment(), device_resident=device_resident,
        )  # fmt: skip
        network = Seen()
        trainer = pl.Trainer(
            max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
            num_sanity_val_steps=0,
        )  # fmt: skip
        trainer.fit(network, datamodule=data)
        assert data.batches.resident is None  # given back
        return network.posters, network.resident

    expected, resident = trained(False)
    assert resident == {False}
    found, resident = trained(True if kept else "auto")  # without a GPU they stay where they are
    assert resident == {kept}
    assert len(found) == len(expected) == 8  # two epochs of three batches and a validation's
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


class Seen(pl.LightningModule):
    """Keeps the posters of every batch, and whether the cache was resident in training."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.posters: list[torch.Tensor] = []
        self.resident: set[bool] = set()

    def training_step(self, batch: MovieBatch, batch_idx: int) -> torch.Tensor:
        data: Any = self.trainer
        self.resident.add(data.datamodule.batches.resident is not None)
        self.posters.append(batch.posters)
        return self.weight * batch.posters.mean()

    def validation_step(self, batch: MovieBatch, batch_idx: int) -> None:
        self.posters.append(batch.posters)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device_resident": "yes"}, "data.device_resident='yes' must be auto, true or false"),
        ({"poster_pool": 10}, "data.poster_pool=10 must be 1 or an even number up to .*, 8"),
        ({"poster_pool": 3}, "data.poster_pool=3 must be 1 or an even number"),
        ({"resident_share": 1.5}, "data.resident_share=1.5 must lie between 0 and 1"),
    ],
)
def test_options_out_of_range(
    options: dict[str, Any], message: str, write: Write, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        module(write("movies"), tmp_path / "cache", **options)


@pytest.mark.parametrize("left_out", ["titles", "posters"])
def test_what_is_not_used_is_not_opened(left_out: str, write: Write, tmp_path: Path) -> None:
    path = write("movies")
    if left_out == "posters":
        for poster in path.parent.glob("*.png"):
            poster.write_bytes(b"not an image")
    data = module(path, tmp_path / "cache", **{f"use_{left_out}": False})
    data.setup()
    batch = next(iter(data.loader("train")))
    assert len(batch.title_indices if left_out == "titles" else batch.posters) == 0
    assert len(batch.title_offsets) == len(batch)
    assert bool(list((tmp_path / "cache").glob("posters-*"))) == (left_out == "titles")
    assert (data.poster_states() == "present").sum() == 17


# What a checkpoint says about the data.


def test_it_describes_itself(write: Write, tmp_path: Path, monkeypatch: Any) -> None:
    path = write("movies")
    monkeypatch.chdir(path.parent)
    data = module(Path("movies.csv"), tmp_path / "cache", val_fraction=0.25)
    data.setup()
    described = data.describe()
    assert described["genres"] == ["A", "B"] and described["poster_size"] == 8
    assert described["titles"] == data.vectorizer.state_dict()
    assert described["data"] == {
        "reader": "manifest", "path": str(path.resolve()),
        "val_fraction": 0.25, "test_fraction": 0.2, "split_seed": 0,
    }  # fmt: skip
    monkeypatch.chdir(tmp_path)
    same = MovieDataModule.from_description(
        described["data"], titles=data.vectorizer, cache_dir=tmp_path / "cache", poster_size=8
    )
    same.setup()
    for mine, other in zip(train_features(data), train_features(same), strict=True):
        np.testing.assert_array_equal(mine, other)


def test_readers_options_are_described_and_downloads_are_not(tmp_path: Path) -> None:
    data = MovieDataModule(
        "demo", TitleVectorizer(64), cache_dir=tmp_path, root=str(tmp_path), num_movies=30,
        missing_posters=1.0, poster_size=8,
    )  # fmt: skip
    data.setup()
    described = data.describe()["data"]
    assert described["num_movies"] == 30 and described["missing_posters"] == 1.0
    data.options["download"] = True
    assert "download" not in data.describe()["data"]


@pytest.mark.parametrize("home", ["~", "~/there"])
def test_a_home_folder_is_meant_by_its_sign(home: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    data = MovieDataModule(
        "demo", TitleVectorizer(64), cache_dir=home, root=home, num_movies=20, poster_size=8,
        poster_height=32,
    )  # fmt: skip
    data.setup()
    assert not (tmp_path / "~").exists()
    assert list(Path(home).expanduser().glob("demo-*"))


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({}, "unknown kind"),
        ({"reader": "os.system"}, "unknown kind"),
        ({"reader": "demo", "num_movies": 10**9}, "num_movies"),
        ({"reader": "demo", "num_movies": "1"}, "num_movies"),
        ({"reader": "demo", "num_movies": True}, "num_movies"),
        ({"reader": "demo", "poster_height": 10**6}, "poster_height"),
        ({"reader": "demo", "val_fraction": -1.0}, "val_fraction"),
        ({"reader": "demo", "split_seed": 0.5}, "split_seed"),
        ({"reader": "demo", "split_seed": -1}, "split_seed"),
        ({"reader": "demo", "cache_dir": "/"}, "cache_dir"),
        ({"reader": "demo", "titles": "x"}, "titles"),
        ({"reader": "demo", "_target_": "os.system"}, "_target_"),
        ({"reader": "ml1m", "root": "/", "download": True}, "download"),
        ({"reader": "ml1m", "root": "/does/not/exist"}, "/does/not/exist.*data=ml1m data.root"),
        ({"reader": "manifest", "path": "/dev/zero"}, "/dev/zero"),
        ({"reader": "manifest", "path": "{fifo}"}, "fifo"),
        ({"reader": "manifest", "path": "x" * 10**5}, "where there are none"),
        ({"reader": "manifest", "path": "\0"}, "where there are none"),
        ({"reader": "manifest", "path": None}, "path"),
        ({"reader": "manifest"}, "path"),
        ({"reader": "manifest", "path": "/etc/passwd"}, "header"),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, dict) else "",
)
def test_a_strangers_description_reads_what_is_there_or_is_refused(
    description: dict[str, Any], message: str, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "fifo")
    if "{fifo}" in str(description.get("path")):
        description = {**description, "path": str(tmp_path / "fifo")}
    with pytest.raises(DataError, match=message):
        MovieDataModule.from_description(
            description, titles=TitleVectorizer(64), cache_dir=tmp_path, poster_size=8
        ).setup()


def test_a_demo_is_made_in_the_cache_alone(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    MovieDataModule.from_description(
        {"reader": "demo", "num_movies": 20, "poster_height": 32, "root": str(elsewhere)},
        titles=TitleVectorizer(64), cache_dir=tmp_path / "cache", poster_size=8,
    ).setup()  # fmt: skip
    assert not elsewhere.exists()


# Genres of a model.


def test_labels_follow_the_models_genres(write: Write, tmp_path: Path) -> None:
    path = write("movies")
    own = module(path, tmp_path / "cache")
    other = module(path, tmp_path / "cache", genres=["B", "C", "A"])
    own.setup()
    other.setup()
    np.testing.assert_array_equal(other.labels[:, [2, 0]], own.labels)
    assert not other.labels[:, 1].any() and other.genres == ("B", "C", "A")


def test_a_genre_that_the_model_does_not_know_is_named(write: Write, tmp_path: Path) -> None:
    data = module(write("movies"), tmp_path / "cache", genres=["B", "C"])
    with pytest.raises(DataError, match=r"does not know the dataset's genre\(s\) A;.*B, C"):
        data.setup()
