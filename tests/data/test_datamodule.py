"""From files to batches: nothing leaks, nothing is done twice, nothing grows."""

from __future__ import annotations

import csv
import gc
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image

from genre_lightning.data.batch import MovieBatch
from genre_lightning.data.datamodule import MAX_GROUP_BATCHES, MovieDataModule
from genre_lightning.data.leakage import changed_data_notes, contains_training_movies
from genre_lightning.data.notes import dataset_summary, empty_branch_notes, random_split_notes
from genre_lightning.errors import InputError
from genre_lightning.inputs.augment import normalise_posters
from genre_lightning.inputs.embedding import EmbeddingInput
from genre_lightning.inputs.input import DenseFeatures, Input
from genre_lightning.inputs.pixels import PixelsInput
from genre_lightning.inputs.table import state_to_text
from genre_lightning.inputs.terms import TermsFeatures, TermsInput
from genre_lightning.inputs.vectors import VectorsInput
from genre_lightning.inputs.year import YearInput
from genre_lightning.movies.movie import DataError, Movie, PosterFile
from tests.pictures import readable_if_small

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


AUGMENT = {"flip": 0.5, "crop": 0.4, "aspect": 1.16}


def terms(**more: Any) -> TermsInput:
    return TermsInput("title", **{"vocabulary_size": 64, "decade": True, **more})


def pixels(**more: Any) -> PixelsInput:
    return PixelsInput(**{"size": 8, **more})


def module(
    path: Path, cache: Path, inputs: dict[str, Input] | None = None, **more: Any
) -> MovieDataModule:
    options: dict[str, Any] = {"batch_size": 4, "workers": 1, **more}
    chosen = {"title": terms(), "poster": pixels()} if inputs is None else inputs
    return MovieDataModule("manifest", chosen, cache_dir=cache, path=str(path), **options)


def titles_of(data: MovieDataModule, rows: np.ndarray) -> list[np.ndarray]:
    features = data.features["title"]
    assert isinstance(features, TermsFeatures)
    taken = features.rows.take(features.row_index[rows])
    return [taken.indptr, taken.indices, taken.weights]


def posters_of(data: MovieDataModule) -> DenseFeatures:
    features = data.features["poster"]
    assert isinstance(features, DenseFeatures)
    return features


def train_features(data: MovieDataModule) -> list[np.ndarray]:
    """Titles, posters and labels of the training movies in order."""
    rows = data.splits["train"]
    places = posters_of(data).row_index[rows]
    return [
        rows, *titles_of(data, rows), places >= 0,
        np.array(posters_of(data).dense[places[places >= 0]]), data.labels[rows],
    ]  # fmt: skip


def states(data: MovieDataModule) -> dict[str, str]:
    return {name: state_to_text(branch_input) for name, branch_input in data.inputs.items()}


def numbers(batch: MovieBatch, branch: str, name: str) -> torch.Tensor:
    return batch.parts[branch].numbers[name]


def test_held_out_movies_change_no_feature(write: Write, tmp_path: Path) -> None:
    one = module(write("one"), tmp_path / "cache")
    two = module(write("two", other=True), tmp_path / "cache")
    one.setup()
    two.setup()
    # The test is one: what is held out does differ.
    held = one.splits["test"]
    assert [m.title for m in one.movie_set.movies] != [m.title for m in two.movie_set.movies]
    assert not np.array_equal(titles_of(one, held)[2], titles_of(two, held)[2])
    assert states(one) == states(two)
    for mine, other in zip(train_features(one), train_features(two), strict=True):
        np.testing.assert_array_equal(mine, other)
    for batch, other_batch in zip(
        one.loader("train", True), two.loader("train", True), strict=True
    ):
        assert batch.seed == other_batch.seed
        for branch, name in (("poster", "pixels"), ("title", "weights")):
            assert torch.equal(numbers(batch, branch, name), numbers(other_batch, branch, name))


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
    assert states(second) == states(first)
    assert files(cache) == before
    with pytest.raises(ImportError):
        module(path, tmp_path / "cold").setup()


@pytest.mark.parametrize(
    ("change", "new"),
    [
        ({"inputs": {"title": terms(vocabulary_size=65), "poster": pixels()}}, {"terms"}),
        ({"inputs": {"title": terms(), "poster": pixels(size=9)}}, {"posters"}),
        ({"inputs": {"other": terms(), "name": pixels(augment=AUGMENT)}}, set()),
        ({"inputs": {"title": terms(), "again": terms()}}, set()),
        ({"batch_size": 2}, set()),
        ({"seed": 5}, set()),
        ({"val_fraction": 0.5}, {"split"}),
    ],
    ids=["vocabulary", "poster size", "names", "twice", "batch size", "seed", "fraction"],
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
    parts = (data.movie_set, *data.features.values(), data.batches, *data.inputs.values())
    data.setup("test")
    again = (data.movie_set, *data.features.values(), data.batches, *data.inputs.values())
    assert all(one is two for one, two in zip(parts, again, strict=True))


@pytest.mark.slow
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
    inputs: dict[str, Input] = {"title": terms(), "poster": pixels(size=side)}
    data = module(tmp_path / "movies.csv", tmp_path / "cache", inputs, batch_size=16)
    data.setup()
    assert len(posters_of(data).dense) == number

    def own_memory() -> int:
        gc.collect()
        status = Path("/proc/self/status").read_text()
        return int(status.partition("RssAnon:")[2].split()[0]) * 1024

    for _ in data.loader("val"):  # what the first batch needs is not the question
        pass
    before = own_memory()
    seen = sum(len(batch.parts["poster"]) for batch in data.loader("train", shuffle=True))
    assert seen * side * side * 3 > 10 * 2**20
    assert own_memory() - before < 3 * 2**20


def test_batches_prepared_together_are_those_prepared_alone(write: Write, tmp_path: Path) -> None:
    branch_input = pixels(augment=AUGMENT)
    inputs: dict[str, Input] = {"title": terms(), "poster": branch_input}
    data = module(write("movies"), tmp_path / "cache", inputs, batch_size=2)
    data.setup()
    for training in (True, False):
        split = "train" if training else "val"
        gathered = list(data.loader(split, training, batch_size=2))
        together = data.loader(split, training, batch_size=2, device="cpu")
        ready = list(together)
        assert together.group_size == MAX_GROUP_BATCHES
        assert len(gathered) > 1
        for alone, batch in zip(gathered, ready, strict=True):
            part = alone.parts["poster"]
            seeds = [(len(part), alone.seed)] if training else None
            wanted = branch_input.prepare(part.numbers, seeds)["pixels"]
            found = numbers(batch, "poster", "pixels")
            assert torch.equal(found, wanted) and found.dtype == torch.float32
            assert torch.equal(batch.parts["poster"].rows, part.rows)
            assert found.is_contiguous(memory_format=torch.channels_last)
            for name, value in alone.parts["title"].numbers.items():
                assert torch.equal(numbers(batch, "title", name), value)


def test_scoring_takes_batches_that_suit_the_inputs(write: Write, tmp_path: Path) -> None:
    path = write("movies")
    batches = {
        side: module(path, tmp_path / "cache", {"title": terms(), "poster": pixels(size=side)})
        for side in (64, 256, 1024)
    }
    # 64 posters of 384 x 256 in float32 and their like; no more than 1,024.
    assert {side: data.eval_batch_size() for side, data in batches.items()} == {
        64: 1024, 256: 64 * 384 // 256, 1024: 64 * 384 * 256 // 1024**2,
    }  # fmt: skip
    data = module(path, tmp_path / "cache", {"title": terms()}, batch_size=2)
    data.setup()
    assert [len(batch) for batch in data.loader("val")] == [len(data.splits["val"])]
    assert max(len(batch) for batch in data.loader("train", True)) == 2


@pytest.mark.parametrize(
    ("more", "sizes"),
    [
        ({}, [7]),
        ({"limit_val_batches": 1.0}, [7]),
        ({"limit_val_batches": 1}, [2]),
        ({"limit_val_batches": 0.5}, [2, 2]),
        ({"overfit_batches": 0.5}, [2, 2]),
    ],
    ids=str,
)
def test_a_part_of_validation_is_counted_in_batches_of_training(
    more: dict[str, Any], sizes: list[int], write: Write, tmp_path: Path
) -> None:
    data = module(write("movies"), tmp_path / "cache", {"title": terms()}, batch_size=2)
    data.setup()
    data.splits["val"] = np.arange(7)
    seen: list[int] = []

    class Model(pl.LightningModule):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            seen.append(len(batch))

    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, **more,
    )  # fmt: skip
    trainer.validate(Model(), datamodule=data, verbose=False)
    assert seen == sizes


@pytest.mark.parametrize("overfit_batches", [0.0, 2])
def test_batches_to_be_learnt_by_heart_are_the_same_in_each_epoch(
    overfit_batches: float, write: Write, tmp_path: Path
) -> None:
    data = module(write("movies"), tmp_path / "cache", {"poster": pixels(augment=AUGMENT)})
    seen: list[tuple[int, MovieBatch]] = []

    class Model(Seen):
        def training_step(self, batch: MovieBatch, batch_idx: int) -> torch.Tensor:
            seen.append((self.current_epoch, batch))
            return super().training_step(batch, batch_idx)

    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
        overfit_batches=overfit_batches,
    )  # fmt: skip
    trainer.fit(Model(), datamodule=data)
    epochs = [[numbers(batch, "poster", "pixels") for at, batch in seen if at == n] for n in (0, 1)]
    assert len(epochs[0]) == (overfit_batches or 3)
    assert all(torch.equal(*pair) for pair in zip(*epochs, strict=True)) is bool(overfit_batches)


def test_large_posters_are_prepared_by_the_batch(write: Write, tmp_path: Path) -> None:
    inputs: dict[str, Input] = {"title": terms(), "poster": pixels(size=512)}
    data = module(write("movies"), tmp_path / "cache", inputs, batch_size=2)
    data.setup()
    assert data.loader("train", True, device="cpu").group_size == 1
    assert data.loader("train", True, device="meta").group_size == 8


def test_training_alone_varies_posters_each_batch_by_its_seed(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = pixels(augment=AUGMENT)
    data = module(write("movies"), tmp_path / "cache", {"poster": given}, batch_size=2)
    data.setup()
    asked: list[Any] = []

    def prepare(numbers: Any, seeds: Any) -> Any:
        asked.append(seeds)
        return PixelsInput.prepare(given, numbers, seeds)

    monkeypatch.setattr(given, "prepare", prepare)
    stored = next(iter(data.loader("val"))).parts["poster"].numbers["pixels"]
    plain = next(iter(data.loader("val", device="cpu")))
    expected = normalise_posters(stored.permute(0, 3, 1, 2))
    torch.testing.assert_close(numbers(plain, "poster", "pixels"), expected)
    assert asked == [None]
    asked.clear()
    batches = list(data.loader("train", True, device="cpu"))
    assert asked == [[(len(batch.parts["poster"]), batch.seed) for batch in batches]]
    assert len({batch.seed for batch in batches}) == len(batches) == 6


@pytest.mark.parametrize("kept", [True, False])
def test_resident_posters_train_the_same(kept: bool, write: Write, tmp_path: Path) -> None:
    def trained(device_resident: bool | str) -> tuple[list[torch.Tensor], set[bool]]:
        data = module(
            write(f"movies-{device_resident}"), tmp_path / "cache",
            {"title": terms(), "poster": pixels(augment=AUGMENT)}, device_resident=device_resident,
        )  # fmt: skip
        network = Seen()
        trainer = pl.Trainer(
            max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
            num_sanity_val_steps=0,
        )  # fmt: skip
        trainer.fit(network, datamodule=data)
        assert data.batches.resident == {}  # given back
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
        self.resident.add(list(data.datamodule.batches.resident) == ["poster"])
        self.posters.append(numbers(batch, "poster", "pixels"))
        return self.weight * self.posters[-1].mean()

    def validation_step(self, batch: MovieBatch, batch_idx: int) -> None:
        self.posters.append(numbers(batch, "poster", "pixels"))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device_resident": "yes"}, "data.device_resident='yes' must be auto, true or false"),
        ({"device_resident": 0}, "data.device_resident=0 must be auto, true or false"),
        ({"resident_share": 1.5}, "data.resident_share=1.5 must lie between 0 and 1"),
    ],
)
def test_options_out_of_range(
    options: dict[str, Any], message: str, write: Write, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        module(write("movies"), tmp_path / "cache", **options)


@pytest.mark.parametrize("left_out", ["title", "poster"])
def test_what_is_not_used_is_not_opened(left_out: str, write: Write, tmp_path: Path) -> None:
    path = write("movies")
    if left_out == "poster":
        for poster in path.parent.glob("*.png"):
            poster.write_bytes(b"not an image")
    inputs: dict[str, Input] = {"title": terms(), "poster": pixels()}
    del inputs[left_out]
    data = module(path, tmp_path / "cache", inputs)
    data.setup()
    batch = next(iter(data.loader("train")))
    assert list(batch.parts) == [*inputs]
    assert bool(list((tmp_path / "cache").glob("posters-*"))) == (left_out == "title")
    assert bool(list((tmp_path / "cache").glob("terms-*"))) == (left_out == "poster")
    assert (data.states("poster") == "present").sum() == 17


# Further columns.


@pytest.fixture
def columns(tmp_path: Path) -> Path:
    """A CSV with a synopsis of each third movie, by id: the row's number."""
    path = tmp_path / "columns.csv"
    lines = [f"{number + 2},a ghost in {WORDS[number % 6]}" for number in range(0, 20, 3)]
    path.write_text("\n".join(["id,synopsis", *lines]) + "\n")
    return path


def synopsis(**more: Any) -> TermsInput:
    return TermsInput("synopsis", 64, "word", (1, 1), **more)


def test_joined_columns_reach_the_branches(write: Write, columns: Path, tmp_path: Path) -> None:
    inputs: dict[str, Input] = {"title": terms(), "plot": synopsis()}
    data = module(write("movies"), tmp_path / "cache", inputs, columns=str(columns))
    data.setup()
    assert (data.features["plot"].row_index >= 0).tolist() == [n % 3 == 0 for n in range(20)]
    assert (data.states("synopsis") == "present").sum() == 7
    (batch,) = data.batches.gather([(np.array([1, 3, 0]), 0)]).batches()
    assert batch.parts["plot"].rows.tolist() == [1, 2]
    assert batch.parts["title"].rows.tolist() == [0, 1, 2]
    # Learnt from train alone.
    vectorizer = data.inputs["plot"].state()
    learnt = {WORDS[number % 6].strip() for number in range(0, 12, 3)}
    assert set(vectorizer["terms"]) == {"a", "ghost", "in"} | learnt
    described = data.describe()["data"]
    assert described["columns"] == str(columns.resolve())
    same = MovieDataModule.from_description(
        described, inputs=data.inputs, cache_dir=tmp_path / "cache"
    )
    same.setup()
    np.testing.assert_array_equal(same.features["plot"].row_index, data.features["plot"].row_index)


def test_a_warm_start_of_a_column_does_nothing_again(
    write: Write, columns: Path, tmp_path: Path
) -> None:
    path = write("movies")

    def opened() -> MovieDataModule:
        data = module(path, tmp_path / "cache", {"plot": synopsis()}, columns=str(columns))
        data.setup()
        return data

    first = opened()
    before = files(tmp_path / "cache")
    assert states(opened()) == states(first) and files(tmp_path / "cache") == before


def test_a_column_that_no_movie_has_is_refused_with_what_there_is(
    write: Write, tmp_path: Path
) -> None:
    data = module(write("movies"), tmp_path / "cache", {"plot": synopsis()})
    with pytest.raises(
        DataError,
        match=r"branch plot looks at the column 'synopsis', which no movie .* are title, poster\. "
        r".*data\.columns=FILE\.csv",
    ):
        data.setup()


@pytest.mark.parametrize(
    ("branch_input", "message"),
    [
        (PixelsInput("title", 8), "pixels reads posters, but the column 'title' holds texts"),
        (TermsInput("poster"), "terms reads texts, but the column 'poster' holds posters"),
    ],
    ids=["posters", "texts"],
)
def test_a_column_of_another_kind_is_refused(
    branch_input: Input, message: str, write: Write, tmp_path: Path
) -> None:
    data = module(write("movies"), tmp_path / "cache", {"b": branch_input})
    with pytest.raises(
        DataError, match=rf"^model\.branches\.b\.input\.column: the input {message}$"
    ):
        data.setup()


def test_a_trained_branch_does_without_its_column(
    write: Write, columns: Path, tmp_path: Path
) -> None:
    path = write("movies")
    inputs: dict[str, Input] = {"title": terms(), "plot": synopsis()}
    trained = module(path, tmp_path / "cache", inputs, columns=str(columns))
    trained.setup()
    assert empty_branch_notes(trained) == []
    data = module(path, tmp_path / "cache", trained.inputs, genres=trained.genres)
    data.setup()
    assert empty_branch_notes(data) == [
        "the branch plot looks at the column 'synopsis', which no movie of the dataset has: it "
        "contributes nothing"
    ]
    batch = next(iter(data.loader("test", device="cpu")))
    assert len(batch.parts["plot"]) == 0 and len(batch) == 4
    assert set(data.states("synopsis")) == {"missing"}
    alone = module(path, tmp_path / "cache", {"plot": inputs["plot"]}, genres=trained.genres)
    with pytest.raises(DataError, match=r"any column that the model looks at: synopsis\. Add"):
        alone.setup()


@pytest.mark.parametrize("encoder", [None, "minilm"])
def test_a_text_that_no_movie_of_train_has_is_refused(
    encoder: str | None, write: Write, tmp_path: Path
) -> None:
    def branch(column: str) -> dict[str, Input]:
        text = EmbeddingInput(column, encoder) if encoder else TermsInput(column, 64)
        return {"title": terms(), "text": text}

    path = write("movies")
    with pytest.raises(DataError, match=r"the column 'synopsys', which no movie of the dataset"):
        module(path, tmp_path / "cache", branch("synopsys")).setup()
    # It is told before the branches that have their column compute anything.
    assert not list((tmp_path / "cache").glob("terms*"))
    data = module(path, tmp_path / "cache", {"title": terms()})
    data.setup()
    assert list((tmp_path / "cache").glob("terms*"))
    columns = tmp_path / "columns.csv"
    ids = [data.movie_set.movies[row].id for row in data.splits["test"]]
    columns.write_text("id,synopsis\n" + "".join(f"{name},words\n" for name in ids))
    with pytest.raises(
        DataError, match=r"'synopsis', which no movie of train has; there are title"
    ):
        module(path, tmp_path / "cache", branch("synopsis"), columns=str(columns)).setup()


def test_posters_that_are_not_there_are_told(tmp_path: Path) -> None:
    path = tmp_path / "movies.csv"
    rows = [f"T{n},p{n}.jpg,{'A' if n % 2 else 'B'},test" for n in range(4)]
    rows += [f"U{n},,{'A' if n % 2 else 'B'}," for n in range(20)]
    path.write_text("title,poster,genres,split\n" + "\n".join(rows) + "\n")
    data = MovieDataModule(
        "manifest", {"title": terms(), "poster": pixels()}, path=str(path),
        cache_dir=tmp_path / "cache",
    )  # fmt: skip
    data.setup()
    assert empty_branch_notes(data) == [
        "the branch poster looks at the column 'poster', which no movie of the dataset has: it "
        "learns nothing"
    ]
    lines = [part for part in dataset_summary(data) if isinstance(part, str)]
    # Not one is there: the first of them stands for all.
    assert sum("p0.jpg, nor any other of the 4" in line for line in lines) == 1
    assert not any("p3.jpg" in line for line in lines) and empty_branch_notes(data)[0] in lines


def test_movies_to_be_scored_may_be_all_of_a_dataset(tmp_path: Path) -> None:
    path = tmp_path / "movies.csv"
    rows = [f"T{n},,{'A' if n % 2 else 'B'}" for n in range(20)]

    def opened(split: str, **more: Any) -> MovieDataModule:
        path.write_text("title,poster,genres,split\n" + "".join(f"{row},{split}\n" for row in rows))
        inputs = more.pop("inputs", {"title": terms()})
        data = MovieDataModule(
            "manifest", inputs, path=str(path), cache_dir=tmp_path / "cache", **more
        )
        data.setup()
        return data

    trained = opened("")
    (note,) = random_split_notes(trained, "test")
    assert note.startswith("test: 4 of 20 movies, drawn with data.split_seed=0")
    given: dict[str, Any] = {"genres": trained.genres, "inputs": trained.inputs}
    for folds in (1, 5):
        scored = opened("test", **given, folds=folds)
        assert {name: len(rows) for name, rows in scored.splits.items()} == {
            "train": 0, "val": 0, "test": 20,
        }  # fmt: skip
        assert random_split_notes(scored, "test") == []
    with pytest.raises(DataError, match="the train split is empty"):
        opened("test")


@pytest.mark.parametrize("change", ["none", "a row", "a title", "a genre", "the seed", "synopsis"])
def test_movies_learnt_from_are_not_drawn_to_be_scored(change: str, tmp_path: Path) -> None:
    path = tmp_path / "movies.csv"
    rows = [[f"T{n}", "", "A" if n % 2 else "B", ""] for n in range(20)]

    def opened(place: Path, **more: Any) -> MovieDataModule:
        with place.open("w", newline="") as file:
            header = ["title", "poster", "genres", "synopsis"]
            csv.writer(file).writerows([header, *rows])
        inputs = more.pop("inputs", {"title": terms()})
        data = MovieDataModule(
            "manifest", inputs, path=str(place), cache_dir=tmp_path / "cache", **more
        )
        data.setup()
        return data

    trained = opened(path)
    card = trained.describe()
    given: dict[str, Any] = {"genres": trained.genres, "inputs": trained.inputs}
    if change == "a row":
        rows.append(["T20", "", "A", ""])
    elif change == "a title":
        rows[trained.splits["train"][0]][0] = "another one"
    elif change == "a genre":
        rows[trained.splits["train"][0]][2] = "A|B"
    elif change == "the seed":
        given["split_seed"] = 1
    elif change == "synopsis":
        rows[0][3] = "no matter"
    training_data = (card["data"], card["learnt_from"])
    elsewhere = opened(tmp_path / "other.csv", **given)
    assert changed_data_notes(elsewhere, "test", *training_data) == []
    scored = opened(path, **given)
    assert changed_data_notes(scored, "test", card["data"], None) == []  # of an older checkpoint
    if change in ("none", "synopsis"):
        assert changed_data_notes(scored, "test", *training_data) == []
        return
    with pytest.raises(DataError, match=r"split=test: drawn from .*movies\.csv, it would hold"):
        changed_data_notes(scored, "test", *training_data)


@pytest.mark.parametrize("changed", ["val_fraction", "split_seed", "folds", "nothing"])
@pytest.mark.parametrize("given", ["train", ""], ids=["split named", "no split"])
def test_validation_drawn_by_other_settings_than_in_training_is_refused(
    given: str, changed: str, tmp_path: Path
) -> None:
    path = tmp_path / "movies.csv"
    rows = [f"T{n},,{'A' if n % 2 else 'B'},{given if n else 'test'}" for n in range(20)]
    path.write_text("\n".join(["title,poster,genres,split", *rows]))
    had = {"val_fraction": 0.3, "split_seed": 4, "folds": 3}
    trained = module(path, tmp_path / "cache", {"title": terms()}, **had)
    trained.setup()
    card = trained.describe()
    kept = {name: value for name, value in had.items() if name != changed}
    if changed == "val_fraction":  # which folds have no use for
        trained = module(path, tmp_path / "cache", {"title": terms()}, **{**had, "folds": 1})
        trained.setup()
        card, kept = trained.describe(), {"split_seed": 4}
    scored = module(path, tmp_path / "cache", trained.inputs, genres=trained.genres, **kept)
    scored.setup()
    training_data = (card["data"], card["learnt_from"])
    assert changed_data_notes(scored, "test", *training_data) == []
    assert contains_training_movies(scored, "val", *training_data) is (changed != "nothing")
    if changed == "nothing":
        assert changed_data_notes(scored, "val", *training_data) == []
        return
    with pytest.raises(
        DataError, match=rf"^split=val: .* training \(.*data\.{changed}={card['data'][changed]}"
    ):
        changed_data_notes(scored, "val", *training_data)


def test_folds_that_a_named_validation_leaves_out_are_told(write: Write, tmp_path: Path) -> None:
    data = module(write("movies"), tmp_path / "cache", {"title": terms()}, folds=3)
    data.setup()
    assert {movie.split for movie in data.movie_set.movies} >= {"val"}
    assert "data.folds=3 is ignored: the dataset says which movies are val" in dataset_summary(data)


def test_a_share_of_validation_beside_folds_is_told(write: Write, tmp_path: Path) -> None:
    path = write("movies")
    path.write_text(path.read_text().replace(",val\n", ",train\n"))
    for folds, is_reported in ((3, True), (1, False)):
        options = {"folds": folds, "val_fraction": 0.3}
        data = module(path, tmp_path / "cache", {"title": terms()}, **options)
        data.setup()
        lines = [line for line in dataset_summary(data) if isinstance(line, str)]
        begin = "data.val_fraction=0.3 is ignored: validation uses folds"
        assert any(line.startswith(begin) for line in lines) is is_reported


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_share_of_a_named_split_is_told(split: str, write: Write, tmp_path: Path) -> None:
    share = {f"{split}_fraction": 0.3}
    named = module(write("movies"), tmp_path / "cache", {"title": terms()}, **share)
    named.setup()
    note = f"data.{split}_fraction=0.3 is ignored: the dataset says which movies are {split}"
    assert {movie.split for movie in named.movie_set.movies} >= {split}
    assert note in dataset_summary(named)
    path = write("drawn")
    rows = [row.rpartition(",")[0] for row in path.read_text().splitlines()]
    path.write_text("\n".join(rows))
    drawn = module(path, tmp_path / "cache", {"title": terms()}, **share)
    drawn.setup()
    assert note not in dataset_summary(drawn)


def test_of_a_split_that_is_given_changed_movies_are_told(write: Write, tmp_path: Path) -> None:
    path = write("movies")
    data = module(path, tmp_path / "cache", {"title": terms()})
    data.setup()
    card = data.describe()
    path.write_text(path.read_text().replace(",train", ",val", 1))
    moved = module(path, tmp_path / "cache", data.inputs, genres=data.genres)
    moved.setup()
    assert changed_data_notes(moved, "test", card["data"], card["learnt_from"]) == []
    path.write_text(path.read_text().replace(",train", ",test", 1))
    changed = module(path, tmp_path / "cache", data.inputs, genres=data.genres)
    changed.setup()
    (note,) = changed_data_notes(changed, "test", card["data"], card["learnt_from"])
    assert note.startswith(f"the movies of train and val in {path} are not those that")


def test_demo_movies_that_were_learnt_from_are_told(tmp_path: Path) -> None:
    """A demo of another size has the same posters at the same places."""

    def demo(number: int, **fixed: Any) -> MovieDataModule:
        data = MovieDataModule(
            "demo", fixed.pop("inputs", {"title": terms()}), cache_dir=tmp_path,
            root=str(tmp_path), num_movies=number, poster_height=32, workers=1, **fixed,
        )  # fmt: skip
        data.setup()
        return data

    trained = demo(60)
    card = trained.describe()
    training_data = card["data"], card["learnt_from"]
    fixed = {"inputs": trained.inputs, "genres": trained.genres}
    fewer, more = demo(30, **fixed), demo(90, **fixed)

    def posters(movies: Iterable[Movie]) -> set[bytes]:
        found = (movie.value("poster") for movie in movies)
        return {poster.read_bytes() for poster in found if isinstance(poster, PosterFile)}

    learnt = posters(movie for movie in trained.movie_set.movies if movie.split == "train")
    for data, split, leaks in (
        (fewer, "test", True), (more, "test", False), (more, "val", True), (trained, "val", False),
    ):  # fmt: skip
        movies = [data.movie_set.movies[row] for row in data.splits[split]]
        assert bool(posters(movies) & learnt) == leaks or data is trained
        notes = changed_data_notes(data, split, *training_data)
        begin = "demo movies are generated by their number"
        assert [note.startswith(begin) for note in notes] == [True] * leaks


def test_a_column_without_a_word_in_train_is_refused_by_name(write: Write, tmp_path: Path) -> None:
    path = tmp_path / "columns.csv"
    path.write_text("id,synopsis\n2,???\n21,held out\n")
    data = module(write("movies"), tmp_path / "cache", {"plot": synopsis()}, columns=str(path))
    with pytest.raises(InputError, match="column synopsis: no text of the 1 given has a term"):
        data.setup()


def test_two_branches_may_look_at_one_column(write: Write, tmp_path: Path) -> None:
    inputs: dict[str, Input] = {
        "letters": terms(),
        "words": terms(analyzer="word", ngram_range=(1, 1), decade=False),
        "small": pixels(),
        "large": pixels(size=16),
    }
    data = module(write("movies"), tmp_path / "cache", inputs)
    data.setup()
    (batch,) = data.batches.gather([(np.array([0, 1, 2, 3]), 0)]).batches()
    for one, two in (("letters", "words"), ("small", "large")):
        assert torch.equal(batch.parts[one].rows, batch.parts[two].rows)
    assert not torch.equal(numbers(batch, "letters", "offsets"), numbers(batch, "words", "offsets"))
    assert numbers(batch, "large", "pixels").shape[1] == 16
    lines = [line for line in dataset_summary(data) if isinstance(line, str)]
    assert len(lines) == len(set(lines))  # what can't be read is named once
    count = len(data.splits["train"])
    message = f"data.batch_size={data.batch_size} is more than the {count} movies of train"
    assert any(line.startswith(message) for line in lines) is (data.train_batch_size() > count)


@pytest.mark.parametrize("begin", [0, 1, 2])
def test_vectors_counted_by_the_user_are_not_joined_to_row_numbers(
    begin: int, write: Write, tmp_path: Path
) -> None:
    path = tmp_path / "answers.npz"
    ids = np.arange(begin, begin + len(SPLITS))
    np.savez(path, ids=ids, x=np.ones((len(SPLITS), 2)))
    data = module(write("movies"), tmp_path / "cache", {"asked": VectorsInput(str(path))})
    if begin == 2:  # the numbers of the rows, as genre-ask writes them
        data.setup()
        np.testing.assert_array_equal(data.features["asked"].row_index, np.arange(len(SPLITS)))
        return
    message = rf"answers\.npz, ids: the dataset has no column id, .*from 2 on, and {begin} is none"
    with pytest.raises(DataError, match=message):
        data.setup()


def test_an_input_that_does_not_keep_its_promise_is_named(
    write: Write, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(YearInput, "network_arguments", lambda self: {"width": 3})
    data = module(write("movies"), tmp_path / "cache", {"when": YearInput("title")})
    with pytest.raises(DataError, match=r"^model\.branches\.when: YearInput gives vectors \(1, "):
        data.setup()


# What a checkpoint says about the data.


def test_it_describes_itself(write: Write, tmp_path: Path, monkeypatch: Any) -> None:
    path = write("movies")
    monkeypatch.chdir(path.parent)
    # None, as in conf/data/manifest.yaml, is stored in no checkpoint.
    data = module(Path("movies.csv"), tmp_path / "cache", val_fraction=0.25, genre_separator=None)
    data.setup()
    described = data.describe()
    assert set(described) == {"genres", "inputs", "learnt_from", "content", "data"}
    assert described["genres"] == ["A", "B"] and described["inputs"] == states(data)
    assert described["data"] == {
        "reader": "manifest", "path": str(path.resolve()),
        "val_fraction": 0.25, "test_fraction": 0.2, "split_seed": 0, "folds": 1,
    }  # fmt: skip
    monkeypatch.chdir(tmp_path)
    same = MovieDataModule.from_description(
        described["data"], inputs=data.inputs, cache_dir=tmp_path / "cache"
    )
    same.setup()
    for mine, other in zip(train_features(data), train_features(same), strict=True):
        np.testing.assert_array_equal(mine, other)


def test_readers_options_are_described_and_downloads_are_not(tmp_path: Path) -> None:
    data = MovieDataModule(
        "demo", {"title": terms()}, cache_dir=tmp_path, root=str(tmp_path), num_movies=30,
        missing_posters=1.0,
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
        "demo", {"title": terms()}, cache_dir=home, root=home, num_movies=20, poster_height=32
    )
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
        ({"reader": "demo", "num_movies": 30, "val_fraction": -1.0}, "val_fraction"),
        ({"reader": "demo", "num_movies": 30, "split_seed": 0.5}, "split_seed"),
        ({"reader": "demo", "num_movies": 30, "split_seed": -1}, "split_seed"),
        ({"reader": "demo", "cache_dir": "/"}, "cache_dir"),
        ({"reader": "demo", "inputs": "x"}, "inputs"),
        ({"reader": "demo", "columns": "/dev/zero"}, "/dev/zero"),
        ({"reader": "demo", "columns": "/does/not/exist"}, "data.columns="),
        ({"reader": "demo", "columns": ["a"]}, "columns"),
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
def test_an_untrusted_description_reads_what_is_there_or_is_refused(
    description: dict[str, Any], message: str, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "fifo")
    if "{fifo}" in str(description.get("path")):
        description = {**description, "path": str(tmp_path / "fifo")}
    with pytest.raises(DataError, match=message):
        MovieDataModule.from_description(
            description, inputs={"title": terms()}, cache_dir=tmp_path
        ).setup()


def test_a_demo_is_made_in_the_cache_alone(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    MovieDataModule.from_description(
        {"reader": "demo", "num_movies": 20, "poster_height": 32, "root": str(elsewhere)},
        inputs={"title": terms()}, cache_dir=tmp_path / "cache",
    ).setup()  # fmt: skip
    assert not elsewhere.exists()


# A poster that one branch can read and another can't.


def test_a_poster_that_one_branch_cannot_read_is_left_out_by_all(
    write: Write, tmp_path: Path
) -> None:
    path = write("movies")
    (tmp_path / "movies" / "0.png").write_bytes(readable_if_small())
    small, large = pixels(), pixels(size=1024)
    both = module(path, tmp_path / "cache", {"small": small, "title": terms(), "large": large})
    both.setup()
    for branch in ("small", "large"):
        assert np.flatnonzero(both.features[branch].row_index < 0).tolist() == [0, 3, 10, 17]
    assert both.features["title"].row_index[0] >= 0
    assert both.states("poster")[[0, 1, 3]].tolist() == ["unreadable", "present", "missing"]
    assert sum("0.png (32000 x 1900 pixels" in str(line) for line in dataset_summary(both)) == 1
    # A job of a sweep without the other branch takes what was opened, with that poster.
    alone = module(path, tmp_path / "cache", {"small": small})
    alone.reuse(both)
    alone.setup()
    assert np.flatnonzero(alone.features["small"].row_index < 0).tolist() == [3, 10, 17]
    again = module(path, tmp_path / "cache", {"small": small, "large": large})
    again.reuse(both)
    again.setup()
    assert np.flatnonzero(again.features["small"].row_index < 0).tolist() == [0, 3, 10, 17]


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
    message = r"does not know the dataset's genre\(s\) A, first at movies\.csv:2; .*B, C"
    with pytest.raises(DataError, match=message):
        data.setup()
