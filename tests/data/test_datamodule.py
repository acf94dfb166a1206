"""The data module: no leaks from held-out movies, no repeated work, no growing memory."""

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
from genre_lightning.data.description import same_source
from genre_lightning.data.leakage import changed_data_notes, contains_training_movies
from genre_lightning.data.notes import (
    dataset_summary,
    empty_branch_notes,
    poster_notes,
    random_split_notes,
)
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
    """Writes a manifest of 20 movies; `changed=True` alters those of val and test."""

    def write_manifest(
        name: str, changed: bool = False, genres: tuple[str, ...] = ("A", "B")
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        path = folder / "movies.csv"
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["title", "poster", "genres", "split"])
            for n, split in enumerate(SPLITS):
                is_changed = changed and split != "train"
                title = WORDS[n % 6] + WORDS[n % 5] + f"({1950 + n})"
                shade = (n * 10, 100, 255 if is_changed else 0)
                if is_changed:
                    title = "Unheard-of Quixotic Zyzzyva (2020)"
                poster = "" if n % 7 == 3 else f"{n}.png"
                if poster:
                    Image.new("RGB", (8 + is_changed, 8), shade).save(folder / poster)
                chosen = "|".join(genre for g, genre in enumerate(genres) if n >> g & 1)
                writer.writerow([title, poster, chosen or genres[0], split])
        return path

    return write_manifest


AUGMENT = {"flip": 0.5, "crop": 0.4, "aspect": 1.16}


def terms(**kwargs: Any) -> TermsInput:
    return TermsInput("title", **{"vocabulary_size": 64, "decade": True, **kwargs})


def pixels(**kwargs: Any) -> PixelsInput:
    return PixelsInput(**{"size": 8, **kwargs})


def make_data(
    path: Path, cache: Path, inputs: dict[str, Input] | None = None, **kwargs: Any
) -> MovieDataModule:
    options: dict[str, Any] = {"batch_size": 4, "workers": 1, **kwargs}
    branch_inputs = {"title": terms(), "poster": pixels()} if inputs is None else inputs
    return MovieDataModule("manifest", branch_inputs, cache_dir=cache, path=str(path), **options)


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
    one = make_data(write("one"), tmp_path / "cache")
    two = make_data(write("two", changed=True), tmp_path / "cache")
    one.setup()
    two.setup()
    # The held-out movies do differ; otherwise this test would prove nothing.
    test_rows = one.splits["test"]
    assert [m.title for m in one.movie_set.movies] != [m.title for m in two.movie_set.movies]
    assert not np.array_equal(titles_of(one, test_rows)[2], titles_of(two, test_rows)[2])
    assert states(one) == states(two)
    for expected, actual in zip(train_features(one), train_features(two), strict=True):
        np.testing.assert_array_equal(expected, actual)
    for batch, other_batch in zip(
        one.loader("train", True), two.loader("train", True), strict=True
    ):
        assert batch.seed == other_batch.seed
        for branch, name in (("poster", "pixels"), ("title", "weights")):
            assert torch.equal(numbers(batch, branch, name), numbers(other_batch, branch, name))


def cache_files(cache: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path.relative_to(cache)): (path.stat().st_mtime_ns, path.stat().st_size)
        for path in cache.rglob("*")
        if path.is_file() and not path.name.endswith(".lock")
    }


def test_a_warm_start_recomputes_nothing(write: Write, tmp_path: Path, monkeypatch: Any) -> None:
    cache = tmp_path / "cache"
    path = write("movies")
    first = make_data(path, cache)
    first.setup()
    before = cache_files(cache)
    assert len(before) >= 3 + 4 + 2  # splits, titles, posters
    # None makes these imports fail, so drawing a split or fitting a vocabulary would raise.
    for name in ("sklearn.feature_extraction.text", "iterstrat.ml_stratifiers"):
        monkeypatch.setitem(sys.modules, name, None)
    second = make_data(path, cache)
    second.setup()
    for expected, actual in zip(train_features(first), train_features(second), strict=True):
        np.testing.assert_array_equal(expected, actual)
    assert states(second) == states(first)
    assert cache_files(cache) == before
    with pytest.raises(ImportError):
        make_data(path, tmp_path / "cold").setup()


@pytest.mark.parametrize(
    ("changes", "expected"),
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
def test_a_changed_setting_recomputes_only_what_depends_on_it(
    changes: dict[str, Any], expected: set[str], write: Write, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    path = write("movies")
    make_data(path, cache).setup()
    before = {folder.name for folder in cache.iterdir() if folder.is_dir()}
    make_data(path, cache, **changes).setup()
    after = {folder.name for folder in cache.iterdir() if folder.is_dir()}
    assert before <= after and {name.partition("-")[0] for name in after - before} == expected


def test_a_second_setup_does_nothing(write: Write, tmp_path: Path) -> None:
    data = make_data(write("movies"), tmp_path / "cache")
    with pytest.raises(RuntimeError, match="setup"):
        _ = data.movie_set
    data.setup("fit")
    before = (data.movie_set, *data.features.values(), data.batches, *data.inputs.values())
    data.setup("test")
    after = (data.movie_set, *data.features.values(), data.batches, *data.inputs.values())
    assert all(old is new for old, new in zip(before, after, strict=True))


@pytest.mark.slow
def test_an_epoch_does_not_load_all_pixels_into_memory(tmp_path: Path) -> None:
    # 2000 posters of 64 x 64 are 25 MB of pixels. An epoch memory-maps them and keeps none.
    number, side = 2000, 64
    with (tmp_path / "movies.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["title", "poster", "genres", "split"])
        for n in range(number):
            Image.new("RGB", (1, 1), (n % 256, n // 256, 9)).save(tmp_path / f"{n}.bmp")
            writer.writerow(
                [f"{WORDS[n % 6]}{n}", f"{n}.bmp", "AB"[n % 2], ["train", "val", "test"][n // 900]]
            )
    inputs: dict[str, Input] = {"title": terms(), "poster": pixels(size=side)}
    data = make_data(tmp_path / "movies.csv", tmp_path / "cache", inputs, batch_size=16)
    data.setup()
    assert len(posters_of(data).dense) == number

    def anonymous_memory() -> int:
        gc.collect()
        status = Path("/proc/self/status").read_text()
        return int(status.partition("RssAnon:")[2].split()[0]) * 1024

    for _ in data.loader("val"):  # one-time allocations of a first batch
        pass
    before = anonymous_memory()
    seen = sum(len(batch.parts["poster"]) for batch in data.loader("train", shuffle=True))
    assert seen * side * side * 3 > 10 * 2**20
    assert anonymous_memory() - before < 3 * 2**20


def test_batches_prepared_in_a_group_equal_those_prepared_alone(
    write: Write, tmp_path: Path
) -> None:
    branch_input = pixels(augment=AUGMENT)
    inputs: dict[str, Input] = {"title": terms(), "poster": branch_input}
    data = make_data(write("movies"), tmp_path / "cache", inputs, batch_size=2)
    data.setup()
    for training in (True, False):
        split = "train" if training else "val"
        gathered = list(data.loader(split, training, batch_size=2))
        loader = data.loader(split, training, batch_size=2, device="cpu")
        prepared = list(loader)
        assert loader.group_size == MAX_GROUP_BATCHES
        assert len(gathered) > 1
        for alone, batch in zip(gathered, prepared, strict=True):
            part = alone.parts["poster"]
            seeds = [(len(part), alone.seed)] if training else None
            expected = branch_input.prepare(part.numbers, seeds)["pixels"]
            actual = numbers(batch, "poster", "pixels")
            assert torch.equal(actual, expected) and actual.dtype == torch.float32
            assert torch.equal(batch.parts["poster"].rows, part.rows)
            assert actual.is_contiguous(memory_format=torch.channels_last)
            for name, value in alone.parts["title"].numbers.items():
                assert torch.equal(numbers(batch, "title", name), value)


def test_eval_batch_size_depends_on_input_size(write: Write, tmp_path: Path) -> None:
    path = write("movies")
    modules = {
        side: make_data(path, tmp_path / "cache", {"title": terms(), "poster": pixels(size=side)})
        for side in (64, 256, 1024)
    }
    # As many as take the memory of 64 float32 posters of 384 x 256, but at most 1,024.
    assert {side: data.eval_batch_size() for side, data in modules.items()} == {
        64: 1024, 256: 64 * 384 // 256, 1024: 64 * 384 * 256 // 1024**2,
    }  # fmt: skip
    data = make_data(path, tmp_path / "cache", {"title": terms()}, batch_size=2)
    data.setup()
    assert [len(batch) for batch in data.loader("val")] == [len(data.splits["val"])]
    assert max(len(batch) for batch in data.loader("train", True)) == 2


@pytest.mark.parametrize(
    ("trainer_options", "expected"),
    [
        ({}, [7]),
        ({"limit_val_batches": 1.0}, [7]),
        ({"limit_val_batches": 1}, [2]),
        ({"limit_val_batches": 0.5}, [2, 2]),
        ({"overfit_batches": 0.5}, [2, 2]),
    ],
    ids=str,
)
def test_a_limited_validation_uses_the_training_batch_size(
    trainer_options: dict[str, Any], expected: list[int], write: Write, tmp_path: Path
) -> None:
    data = make_data(write("movies"), tmp_path / "cache", {"title": terms()}, batch_size=2)
    data.setup()
    data.splits["val"] = np.arange(7)
    batch_sizes: list[int] = []

    class Model(pl.LightningModule):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            batch_sizes.append(len(batch))

    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, **trainer_options,
    )  # fmt: skip
    trainer.validate(Model(), datamodule=data, verbose=False)
    assert batch_sizes == expected


@pytest.mark.parametrize("overfit_batches", [0.0, 2])
def test_overfit_batches_are_the_same_in_each_epoch(
    overfit_batches: float, write: Write, tmp_path: Path
) -> None:
    data = make_data(write("movies"), tmp_path / "cache", {"poster": pixels(augment=AUGMENT)})
    seen: list[tuple[int, MovieBatch]] = []

    class EpochRecorder(RecordingModel):
        def training_step(self, batch: MovieBatch, batch_idx: int) -> torch.Tensor:
            seen.append((self.current_epoch, batch))
            return super().training_step(batch, batch_idx)

    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
        overfit_batches=overfit_batches,
    )  # fmt: skip
    trainer.fit(EpochRecorder(), datamodule=data)
    epochs = [[numbers(batch, "poster", "pixels") for at, batch in seen if at == n] for n in (0, 1)]
    assert len(epochs[0]) == (overfit_batches or 3)
    assert all(torch.equal(*pair) for pair in zip(*epochs, strict=True)) is bool(overfit_batches)


def test_large_posters_are_prepared_in_small_groups(write: Write, tmp_path: Path) -> None:
    inputs: dict[str, Input] = {"title": terms(), "poster": pixels(size=512)}
    data = make_data(write("movies"), tmp_path / "cache", inputs, batch_size=2)
    data.setup()
    assert data.loader("train", True, device="cpu").group_size == 1
    assert data.loader("train", True, device="meta").group_size == 8


def test_only_training_augments_posters_by_batch_seed(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    branch_input = pixels(augment=AUGMENT)
    data = make_data(write("movies"), tmp_path / "cache", {"poster": branch_input}, batch_size=2)
    data.setup()
    calls: list[Any] = []

    def prepare(numbers: Any, seeds: Any) -> Any:
        calls.append(seeds)
        return PixelsInput.prepare(branch_input, numbers, seeds)

    monkeypatch.setattr(branch_input, "prepare", prepare)
    stored = next(iter(data.loader("val"))).parts["poster"].numbers["pixels"]
    plain = next(iter(data.loader("val", device="cpu")))
    expected = normalise_posters(stored.permute(0, 3, 1, 2))
    torch.testing.assert_close(numbers(plain, "poster", "pixels"), expected)
    assert calls == [None]
    calls.clear()
    batches = list(data.loader("train", True, device="cpu"))
    assert calls == [[(len(batch.parts["poster"]), batch.seed) for batch in batches]]
    assert len({batch.seed for batch in batches}) == len(batches) == 6


@pytest.mark.parametrize("is_resident", [True, False])
def test_resident_posters_give_the_same_batches(
    is_resident: bool, write: Write, tmp_path: Path
) -> None:
    def train(device_resident: bool | str) -> tuple[list[torch.Tensor], set[bool]]:
        data = make_data(
            write(f"movies-{device_resident}"), tmp_path / "cache",
            {"title": terms(), "poster": pixels(augment=AUGMENT)}, device_resident=device_resident,
        )  # fmt: skip
        model = RecordingModel()
        trainer = pl.Trainer(
            max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
            num_sanity_val_steps=0,
        )  # fmt: skip
        trainer.fit(model, datamodule=data)
        assert data.batches.resident == {}  # freed after fitting
        return model.posters, model.resident

    expected, resident = train(False)
    assert resident == {False}
    actual, resident = train(True if is_resident else "auto")  # auto does nothing on a CPU
    assert resident == {is_resident}
    assert len(actual) == len(expected) == 8  # two epochs of 3 + 1 batches
    assert all(torch.equal(*pair) for pair in zip(actual, expected, strict=True))


class RecordingModel(pl.LightningModule):
    """Records the posters of every batch, and whether they were resident in training."""

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
def test_invalid_residency_options_are_refused(
    options: dict[str, Any], message: str, write: Write, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        make_data(write("movies"), tmp_path / "cache", **options)


@pytest.mark.parametrize("left_out", ["title", "poster"])
def test_unused_columns_are_not_opened(left_out: str, write: Write, tmp_path: Path) -> None:
    path = write("movies")
    if left_out == "poster":
        for poster in path.parent.glob("*.png"):
            poster.write_bytes(b"not an image")
    inputs: dict[str, Input] = {"title": terms(), "poster": pixels()}
    del inputs[left_out]
    data = make_data(path, tmp_path / "cache", inputs)
    data.setup()
    batch = next(iter(data.loader("train")))
    assert list(batch.parts) == [*inputs]
    assert bool(list((tmp_path / "cache").glob("posters-*"))) == (left_out == "title")
    assert bool(list((tmp_path / "cache").glob("terms-*"))) == (left_out == "poster")
    assert (data.states("poster") == "present").sum() == 17


# Joined columns.


@pytest.fixture
def columns(tmp_path: Path) -> Path:
    """A CSV with a synopsis of every third movie; its id is the row's number in the manifest."""
    path = tmp_path / "columns.csv"
    lines = [f"{number + 2},a ghost in {WORDS[number % 6]}" for number in range(0, 20, 3)]
    path.write_text("\n".join(["id,synopsis", *lines]) + "\n")
    return path


def synopsis(**kwargs: Any) -> TermsInput:
    return TermsInput("synopsis", 64, "word", (1, 1), **kwargs)


def test_joined_columns_reach_the_branches(write: Write, columns: Path, tmp_path: Path) -> None:
    inputs: dict[str, Input] = {"title": terms(), "plot": synopsis()}
    data = make_data(write("movies"), tmp_path / "cache", inputs, columns=str(columns))
    data.setup()
    assert (data.features["plot"].row_index >= 0).tolist() == [n % 3 == 0 for n in range(20)]
    assert (data.states("synopsis") == "present").sum() == 7
    (batch,) = data.batches.gather([(np.array([1, 3, 0]), 0)]).batches()
    assert batch.parts["plot"].rows.tolist() == [1, 2]
    assert batch.parts["title"].rows.tolist() == [0, 1, 2]
    # The vocabulary is fitted on train only.
    vectorizer = data.inputs["plot"].state()
    learnt = {WORDS[number % 6].strip() for number in range(0, 12, 3)}
    assert set(vectorizer["terms"]) == {"a", "ghost", "in"} | learnt
    source = data.describe()["data"]
    assert source["columns"] == str(columns.resolve())
    rebuilt = MovieDataModule.from_description(
        source, inputs=data.inputs, cache_dir=tmp_path / "cache"
    )
    rebuilt.setup()
    np.testing.assert_array_equal(
        rebuilt.features["plot"].row_index, data.features["plot"].row_index
    )


def test_a_warm_start_with_a_joined_column_recomputes_nothing(
    write: Write, columns: Path, tmp_path: Path
) -> None:
    path = write("movies")

    def open_data() -> MovieDataModule:
        data = make_data(path, tmp_path / "cache", {"plot": synopsis()}, columns=str(columns))
        data.setup()
        return data

    first = open_data()
    before = cache_files(tmp_path / "cache")
    assert states(open_data()) == states(first) and cache_files(tmp_path / "cache") == before


def test_an_unknown_column_is_refused_and_the_known_ones_are_listed(
    write: Write, tmp_path: Path
) -> None:
    data = make_data(write("movies"), tmp_path / "cache", {"plot": synopsis()})
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
def test_a_column_of_the_wrong_kind_is_refused(
    branch_input: Input, message: str, write: Write, tmp_path: Path
) -> None:
    data = make_data(write("movies"), tmp_path / "cache", {"b": branch_input})
    with pytest.raises(
        DataError, match=rf"^model\.branches\.b\.input\.column: the input {message}$"
    ):
        data.setup()


def test_a_trained_branch_may_lack_its_column(write: Write, columns: Path, tmp_path: Path) -> None:
    path = write("movies")
    inputs: dict[str, Input] = {"title": terms(), "plot": synopsis()}
    trained = make_data(path, tmp_path / "cache", inputs, columns=str(columns))
    trained.setup()
    assert empty_branch_notes(trained) == []
    data = make_data(path, tmp_path / "cache", trained.inputs, genres=trained.genres)
    data.setup()
    assert empty_branch_notes(data) == [
        "the branch plot looks at the column 'synopsis', which no movie of the dataset has: it "
        "contributes nothing"
    ]
    batch = next(iter(data.loader("test", device="cpu")))
    assert len(batch.parts["plot"]) == 0 and len(batch) == 4
    assert set(data.states("synopsis")) == {"missing"}
    alone = make_data(path, tmp_path / "cache", {"plot": inputs["plot"]}, genres=trained.genres)
    with pytest.raises(DataError, match=r"any column that the model looks at: synopsis\. Add"):
        alone.setup()


@pytest.mark.parametrize("encoder", [None, "minilm"])
def test_a_text_column_that_is_empty_in_train_is_refused(
    encoder: str | None, write: Write, tmp_path: Path
) -> None:
    def make_inputs(column: str) -> dict[str, Input]:
        text = EmbeddingInput(column, encoder) if encoder else TermsInput(column, 64)
        return {"title": terms(), "text": text}

    path = write("movies")
    with pytest.raises(DataError, match=r"'synopsys', which .* rename it to synopsys in its CSV"):
        make_data(path, tmp_path / "cache", make_inputs("synopsys")).setup()
    # The error comes before the other branches compute anything.
    assert not list((tmp_path / "cache").glob("terms*"))
    data = make_data(path, tmp_path / "cache", {"title": terms()})
    data.setup()
    assert list((tmp_path / "cache").glob("terms*"))
    columns = tmp_path / "columns.csv"
    ids = [data.movie_set.movies[row].id for row in data.splits["test"]]
    columns.write_text("id,synopsis\n" + "".join(f"{name},words\n" for name in ids))
    with pytest.raises(
        DataError, match=r"'synopsis', which no movie of train has; there are title"
    ):
        make_data(path, tmp_path / "cache", make_inputs("synopsis"), columns=str(columns)).setup()


def test_posters_that_do_not_exist_are_reported(tmp_path: Path) -> None:
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
    # None of the 4 posters exists, so the first stands for all of them.
    assert sum("p0.jpg, nor any other of the 4" in line for line in lines) == 1
    assert not any("p3.jpg" in line for line in lines) and empty_branch_notes(data)[0] in lines
    (note,) = poster_notes(data, "test")
    assert note.startswith("poster: 4 of the 4 movies of test name a file that is not there")
    assert (
        note.endswith("p0.jpg")
        and "first movies.csv:2: " in note
        and poster_notes(data, "train") == []
    )


def test_a_linked_csv_keeps_its_posters(write: Write, tmp_path: Path) -> None:
    path = write("movies")
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    csv_path = path.rename(folder / "movies.csv")
    path.symlink_to(csv_path)  # as tools for data versions do; the posters stay beside the link
    data = make_data(path, tmp_path / "cache", {"poster": pixels()})
    data.setup()
    described = data.describe()["data"]
    again = MovieDataModule.from_description(
        described, cache_dir=tmp_path / "cache", inputs=data.inputs, genres=data.genres
    )
    again.setup()
    assert (again.states("poster") == data.states("poster")).all()
    assert "present" in data.states("poster")
    assert same_source(described, {**described, "path": str(csv_path)})


def test_training_movies_are_found_with_other_columns(tmp_path: Path) -> None:
    path = tmp_path / "movies.csv"
    rows = [f"{n},T{n},,{'A' if n % 2 else 'B'}" for n in range(20)]
    path.write_text("\n".join(["id,title,poster,genres", *rows]))
    for name in ("one", "two"):
        (tmp_path / f"{name}.csv").write_text(f"id,{name}\n3,a\n")
    settings: dict[str, Any] = {"path": str(path), "cache_dir": tmp_path / "cache"}
    trained = MovieDataModule(
        "manifest", {"title": terms()}, columns=str(tmp_path / "one.csv"), **settings
    )
    trained.setup()
    card = trained.describe()
    scored = MovieDataModule(
        "manifest", trained.inputs, columns=str(tmp_path / "two.csv"), genres=trained.genres,
        split_seed=1, **settings,
    )  # fmt: skip
    scored.setup()
    with pytest.raises(DataError, match="it would hold movies that the checkpoint has learnt from"):
        changed_data_notes(scored, "test", card["data"], card["learnt_from"])


def test_a_trained_model_can_score_all_movies_of_a_dataset(tmp_path: Path) -> None:
    path = tmp_path / "movies.csv"
    rows = [f"T{n},,{'A' if n % 2 else 'B'}" for n in range(20)]

    def open_data(split: str, **kwargs: Any) -> MovieDataModule:
        path.write_text("title,poster,genres,split\n" + "".join(f"{row},{split}\n" for row in rows))
        inputs = kwargs.pop("inputs", {"title": terms()})
        data = MovieDataModule(
            "manifest", inputs, path=str(path), cache_dir=tmp_path / "cache", **kwargs
        )
        data.setup()
        return data

    trained = open_data("")
    (note,) = random_split_notes(trained, "test")
    assert note.startswith("test: 4 of 20 movies, drawn with data.split_seed=0")
    model_kwargs: dict[str, Any] = {"genres": trained.genres, "inputs": trained.inputs}
    for folds in (1, 5):
        scored = open_data("test", **model_kwargs, folds=folds)
        assert {name: len(rows) for name, rows in scored.splits.items()} == {
            "train": 0, "val": 0, "test": 20,
        }  # fmt: skip
        assert random_split_notes(scored, "test") == []
    with pytest.raises(DataError, match="the train split is empty"):
        open_data("test")


@pytest.mark.parametrize("change", ["none", "a row", "a title", "a genre", "the seed", "synopsis"])
def test_a_drawn_test_split_with_training_movies_is_refused(change: str, tmp_path: Path) -> None:
    path = tmp_path / "movies.csv"
    rows = [[f"T{n}", "", "A" if n % 2 else "B", ""] for n in range(20)]

    def open_data(csv_path: Path, **kwargs: Any) -> MovieDataModule:
        with csv_path.open("w", newline="") as file:
            header = ["title", "poster", "genres", "synopsis"]
            csv.writer(file).writerows([header, *rows])
        inputs = kwargs.pop("inputs", {"title": terms()})
        data = MovieDataModule(
            "manifest", inputs, path=str(csv_path), cache_dir=tmp_path / "cache", **kwargs
        )
        data.setup()
        return data

    trained = open_data(path)
    card = trained.describe()
    model_kwargs: dict[str, Any] = {"genres": trained.genres, "inputs": trained.inputs}
    if change == "a row":
        rows.append(["T20", "", "A", ""])
    elif change == "a title":
        rows[trained.splits["train"][0]][0] = "another one"
    elif change == "a genre":
        rows[trained.splits["train"][0]][2] = "A|B"
    elif change == "the seed":
        model_kwargs["split_seed"] = 1
    elif change == "synopsis":
        rows[0][3] = "no matter"
    training_data = (card["data"], card["learnt_from"], card["learnt_movies"])
    scored = open_data(path, **model_kwargs)
    assert changed_data_notes(scored, "test", card["data"], None) == []  # an older checkpoint
    copied = open_data(tmp_path / "copy.csv", **model_kwargs)
    # Without the hashes, as in an older checkpoint, other files count as other movies.
    assert changed_data_notes(copied, "test", *training_data[:2]) == []
    if change in ("none", "synopsis"):
        for data in (scored, copied):
            assert changed_data_notes(data, "test", *training_data) == []
        return
    with pytest.raises(DataError, match=r"split=test: drawn from .*movies\.csv, it would hold"):
        changed_data_notes(scored, "test", *training_data)
    if change == "a title":  # the split is the same, so no movie of test was learnt
        assert changed_data_notes(copied, "test", *training_data) == []
        return
    with pytest.raises(DataError, match=r"split=test: drawn from .*copy\.csv, it would hold"):
        changed_data_notes(copied, "test", *training_data)


@pytest.mark.parametrize(("num_known", "is_refused"), [(20, False), (45, True)])
def test_a_drawn_split_is_refused_if_most_of_it_was_learnt(
    num_known: int, is_refused: bool, tmp_path: Path
) -> None:
    path = tmp_path / "movies.csv"
    rows = [f"T{n},{'A' if n % 2 else 'B'}" for n in range(60)]
    train = [f"{row},train" for row in rows]
    path.write_text("\n".join(["title,genres,split", *train, "V,A,test"]))
    trained = make_data(path, tmp_path / "cache", {"title": terms()})
    trained.setup()
    other = tmp_path / "other.csv"
    new = [f"U{n},{'A' if n % 2 else 'B'}" for n in range(60 - num_known)]
    other.write_text("\n".join(["title,genres", *rows[:num_known], *new]))
    scored = make_data(
        other, tmp_path / "cache", trained.inputs, genres=trained.genres, test_fraction=0.8
    )
    scored.setup()
    training_data = (trained.source(), trained.learnt_from, trained.learnt_movies())
    if is_refused:
        with pytest.raises(DataError, match="it would hold movies that the checkpoint has learnt"):
            changed_data_notes(scored, "test", *training_data)
        return
    (note,) = changed_data_notes(scored, "test", *training_data)
    titles = [scored.movie_set.movies[row].title for row in scored.splits["test"]]
    learnt = sum(title.startswith("T") for title in titles)
    assert note.startswith(f"{learnt} of the 48 movies of test have the title and genres of a")


@pytest.mark.parametrize(("num_learnt", "is_reported"), [(0, False), (1, False), (2, True)])
def test_named_movies_of_training_are_counted(
    num_learnt: int, is_reported: bool, tmp_path: Path
) -> None:
    path = tmp_path / "movies.csv"
    rows = [f"T{n},{'A' if n % 2 else 'B|A'},{'test' if n < 5 else 'train'}" for n in range(20)]
    path.write_text("\n".join(["title,genres,split", *rows]))
    trained = make_data(path, tmp_path / "cache", {"title": terms()})
    trained.setup()
    # The movies of test, and a remake with other genres, were not learnt.
    known = ["t5 ,A,test", "T6,A|B,test"][:num_learnt]
    new = [f"U{n},B,test" for n in range(192)]
    path.write_text("\n".join(["title,genres,split", *known, *rows[:4], "T7,B,test", *new]))
    scored = make_data(path, tmp_path / "cache", trained.inputs, genres=trained.genres)
    scored.setup()
    learnt_movies = trained.learnt_movies()
    assert learnt_movies is not None and len(learnt_movies) == 15 * 16
    notes = changed_data_notes(
        scored, "test", {"reader": "elsewhere"}, trained.learnt_from, learnt_movies
    )
    expected = f"2 of the {len(new) + 7} movies of test have the title and genres of a movie that"
    assert [note.startswith(expected) for note in notes] == [True] * is_reported


@pytest.mark.parametrize("changed", ["val_fraction", "split_seed", "folds", "nothing"])
@pytest.mark.parametrize("train_name", ["train", ""], ids=["named train", "no named train"])
def test_validation_drawn_with_other_settings_than_in_training_is_refused(
    train_name: str, changed: str, tmp_path: Path
) -> None:
    path = tmp_path / "movies.csv"
    rows = [f"T{n},,{'A' if n % 2 else 'B'},{train_name if n else 'test'}" for n in range(20)]
    path.write_text("\n".join(["title,poster,genres,split", *rows]))
    settings = {"val_fraction": 0.3, "split_seed": 4, "folds": 3}
    trained = make_data(path, tmp_path / "cache", {"title": terms()}, **settings)
    trained.setup()
    card = trained.describe()
    scoring_settings = {name: value for name, value in settings.items() if name != changed}
    if changed == "val_fraction":  # has no effect with folds
        trained = make_data(
            path, tmp_path / "cache", {"title": terms()}, **{**settings, "folds": 1}
        )
        trained.setup()
        card, scoring_settings = trained.describe(), {"split_seed": 4}
    scored = make_data(
        path, tmp_path / "cache", trained.inputs, genres=trained.genres, **scoring_settings
    )
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


def test_folds_ignored_for_a_named_val_split_are_reported(write: Write, tmp_path: Path) -> None:
    data = make_data(write("movies"), tmp_path / "cache", {"title": terms()}, folds=3)
    data.setup()
    assert {movie.split for movie in data.movie_set.movies} >= {"val"}
    assert "data.folds=3 is ignored: the dataset says which movies are val" in dataset_summary(data)


def test_a_val_fraction_ignored_because_of_folds_is_reported(write: Write, tmp_path: Path) -> None:
    path = write("movies")
    path.write_text(path.read_text().replace(",val\n", ",train\n"))
    for folds, is_reported in ((3, True), (1, False)):
        options = {"folds": folds, "val_fraction": 0.3}
        data = make_data(path, tmp_path / "cache", {"title": terms()}, **options)
        data.setup()
        lines = [line for line in dataset_summary(data) if isinstance(line, str)]
        begin = "data.val_fraction=0.3 is ignored: validation uses folds"
        assert any(line.startswith(begin) for line in lines) is is_reported


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_fraction_ignored_for_a_named_split_is_reported(
    split: str, write: Write, tmp_path: Path
) -> None:
    share = {f"{split}_fraction": 0.3}
    named = make_data(write("movies"), tmp_path / "cache", {"title": terms()}, **share)
    named.setup()
    note = f"data.{split}_fraction=0.3 is ignored: the dataset says which movies are {split}"
    assert {movie.split for movie in named.movie_set.movies} >= {split}
    assert note in dataset_summary(named)
    path = write("drawn")
    rows = [row.rpartition(",")[0] for row in path.read_text().splitlines()]
    path.write_text("\n".join(rows))
    drawn = make_data(path, tmp_path / "cache", {"title": terms()}, **share)
    drawn.setup()
    assert note not in dataset_summary(drawn)


def test_changed_movies_of_named_splits_are_reported(write: Write, tmp_path: Path) -> None:
    path = write("movies")
    data = make_data(path, tmp_path / "cache", {"title": terms()})
    data.setup()
    card = data.describe()
    path.write_text(path.read_text().replace(",train", ",val", 1))
    moved = make_data(path, tmp_path / "cache", data.inputs, genres=data.genres)
    moved.setup()
    assert changed_data_notes(moved, "test", card["data"], card["learnt_from"]) == []
    path.write_text(path.read_text().replace(",train", ",test", 1))
    changed = make_data(path, tmp_path / "cache", data.inputs, genres=data.genres)
    changed.setup()
    (note,) = changed_data_notes(changed, "test", card["data"], card["learnt_from"])
    assert note.startswith(f"the movies of train and val in {path} are not those that")


def test_scoring_demo_movies_of_the_training_set_is_reported(tmp_path: Path) -> None:
    """Demos of different sizes have the same poster at the same index."""

    def open_demo(number: int, **kwargs: Any) -> MovieDataModule:
        data = MovieDataModule(
            "demo", kwargs.pop("inputs", {"title": terms()}), cache_dir=tmp_path,
            root=str(tmp_path), num_movies=number, poster_height=32, workers=1, **kwargs,
        )  # fmt: skip
        data.setup()
        return data

    trained = open_demo(60)
    card = trained.describe()
    training_data = card["data"], card["learnt_from"]
    kwargs = {"inputs": trained.inputs, "genres": trained.genres}
    fewer, more = open_demo(30, **kwargs), open_demo(90, **kwargs)

    def posters(movies: Iterable[Movie]) -> set[bytes]:
        found = (movie.value("poster") for movie in movies)
        return {poster.read_bytes() for poster in found if isinstance(poster, PosterFile)}

    train_posters = posters(movie for movie in trained.movie_set.movies if movie.split == "train")
    for data, split, leaks in (
        (fewer, "test", True), (more, "test", False), (more, "val", True), (trained, "val", False),
    ):  # fmt: skip
        movies = [data.movie_set.movies[row] for row in data.splits[split]]
        assert bool(posters(movies) & train_posters) == leaks or data is trained
        notes = changed_data_notes(data, split, *training_data)
        begin = "demo movies are generated by their number"
        assert [note.startswith(begin) for note in notes] == [True] * leaks


def test_a_column_without_words_in_train_is_refused(write: Write, tmp_path: Path) -> None:
    path = tmp_path / "columns.csv"
    path.write_text("id,synopsis\n2,???\n21,held out\n")
    data = make_data(write("movies"), tmp_path / "cache", {"plot": synopsis()}, columns=str(path))
    with pytest.raises(InputError, match="column synopsis: no text of the 1 given has a term"):
        data.setup()


def test_two_branches_may_read_one_column(write: Write, tmp_path: Path) -> None:
    inputs: dict[str, Input] = {
        "letters": terms(),
        "words": terms(analyzer="word", ngram_range=(1, 1), decade=False),
        "small": pixels(),
        "large": pixels(size=16),
    }
    data = make_data(write("movies"), tmp_path / "cache", inputs)
    data.setup()
    (batch,) = data.batches.gather([(np.array([0, 1, 2, 3]), 0)]).batches()
    for one, two in (("letters", "words"), ("small", "large")):
        assert torch.equal(batch.parts[one].rows, batch.parts[two].rows)
    assert not torch.equal(numbers(batch, "letters", "offsets"), numbers(batch, "words", "offsets"))
    assert numbers(batch, "large", "pixels").shape[1] == 16
    lines = [line for line in dataset_summary(data) if isinstance(line, str)]
    assert len(lines) == len(set(lines))  # an unreadable poster is reported once
    count = len(data.splits["train"])
    message = f"data.batch_size={data.batch_size} is more than the {count} movies of train"
    assert any(line.startswith(message) for line in lines) is (data.train_batch_size() > count)


@pytest.mark.parametrize("begin", [0, 1, 2])
def test_vector_ids_that_do_not_count_from_two_are_refused(
    begin: int, write: Write, tmp_path: Path
) -> None:
    path = tmp_path / "answers.npz"
    ids = np.arange(begin, begin + len(SPLITS))
    np.savez(path, ids=ids, x=np.ones((len(SPLITS), 2)))
    data = make_data(write("movies"), tmp_path / "cache", {"asked": VectorsInput(str(path))})
    if begin == 2:  # row numbers as genre-ask writes them
        data.setup()
        np.testing.assert_array_equal(data.features["asked"].row_index, np.arange(len(SPLITS)))
        return
    message = rf"answers\.npz, ids: the dataset has no column id, .*from 2 on, and {begin} is none"
    with pytest.raises(DataError, match=message):
        data.setup()


def test_an_input_whose_features_have_the_wrong_shape_is_refused(
    write: Write, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(YearInput, "network_arguments", lambda self: {"width": 3})
    data = make_data(write("movies"), tmp_path / "cache", {"when": YearInput("title")})
    with pytest.raises(DataError, match=r"^model\.branches\.when: YearInput gives vectors \(1, "):
        data.setup()


# Descriptions of the data in checkpoints.


def test_a_data_module_is_rebuilt_from_its_description(
    write: Write, tmp_path: Path, monkeypatch: Any
) -> None:
    path = write("movies")
    monkeypatch.chdir(path.parent)
    # An option that is None, as in conf/data/manifest.yaml, is not described.
    data = make_data(
        Path("movies.csv"), tmp_path / "cache", val_fraction=0.25, genre_separator=None
    )
    data.setup()
    description = data.describe()
    assert set(description) == {
        "genres", "inputs", "learnt_from", "learnt_movies", "content", "data",
    }  # fmt: skip
    assert description["genres"] == ["A", "B"] and description["inputs"] == states(data)
    assert description["data"] == {
        "reader": "manifest", "path": str(path.resolve()),
        "val_fraction": 0.25, "test_fraction": 0.2, "split_seed": 0, "folds": 1,
    }  # fmt: skip
    monkeypatch.chdir(tmp_path)
    rebuilt = MovieDataModule.from_description(
        description["data"], inputs=data.inputs, cache_dir=tmp_path / "cache"
    )
    rebuilt.setup()
    for expected, actual in zip(train_features(data), train_features(rebuilt), strict=True):
        np.testing.assert_array_equal(expected, actual)


def test_the_description_holds_reader_options_but_not_download(tmp_path: Path) -> None:
    data = MovieDataModule(
        "demo", {"title": terms()}, cache_dir=tmp_path, root=str(tmp_path), num_movies=30,
        missing_posters=1.0,
    )  # fmt: skip
    data.setup()
    source = data.describe()["data"]
    assert source["num_movies"] == 30 and source["missing_posters"] == 1.0
    data.options["download"] = True
    assert "download" not in data.describe()["data"]


@pytest.mark.parametrize("home", ["~", "~/there"])
def test_a_tilde_means_the_home_folder(home: str, tmp_path: Path, monkeypatch: Any) -> None:
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
def test_an_invalid_untrusted_description_is_refused(
    description: dict[str, Any], message: str, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "fifo")
    if "{fifo}" in str(description.get("path")):
        description = {**description, "path": str(tmp_path / "fifo")}
    with pytest.raises(DataError, match=message):
        MovieDataModule.from_description(
            description, inputs={"title": terms()}, cache_dir=tmp_path
        ).setup()


def test_a_described_demo_is_generated_only_in_the_cache(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    MovieDataModule.from_description(
        {"reader": "demo", "num_movies": 20, "poster_height": 32, "root": str(elsewhere)},
        inputs={"title": terms()}, cache_dir=tmp_path / "cache",
    ).setup()  # fmt: skip
    assert not elsewhere.exists()


# Posters that only some branches can read.


def test_a_poster_that_one_branch_cannot_read_is_masked_in_all_branches(
    write: Write, tmp_path: Path
) -> None:
    path = write("movies")
    (tmp_path / "movies" / "0.png").write_bytes(readable_if_small())
    small, large = pixels(), pixels(size=1024)
    both = make_data(path, tmp_path / "cache", {"small": small, "title": terms(), "large": large})
    both.setup()
    for branch in ("small", "large"):
        assert np.flatnonzero(both.features[branch].row_index < 0).tolist() == [0, 3, 10, 17]
    assert both.features["title"].row_index[0] >= 0
    assert both.states("poster")[[0, 1, 3]].tolist() == ["unreadable", "present", "missing"]
    assert sum("0.png (32000 x 1900 pixels" in str(line) for line in dataset_summary(both)) == 1
    # A sweep's job without the other branch reuses the features, including this poster.
    alone = make_data(path, tmp_path / "cache", {"small": small})
    alone.reuse(both)
    alone.setup()
    assert np.flatnonzero(alone.features["small"].row_index < 0).tolist() == [3, 10, 17]
    again = make_data(path, tmp_path / "cache", {"small": small, "large": large})
    again.reuse(both)
    again.setup()
    assert np.flatnonzero(again.features["small"].row_index < 0).tolist() == [0, 3, 10, 17]


# The genres of a trained model.


def test_labels_follow_the_models_genre_order(write: Write, tmp_path: Path) -> None:
    path = write("movies")
    own = make_data(path, tmp_path / "cache")
    other = make_data(path, tmp_path / "cache", genres=["B", "C", "A"])
    own.setup()
    other.setup()
    np.testing.assert_array_equal(other.labels[:, [2, 0]], own.labels)
    assert not other.labels[:, 1].any() and other.genres == ("B", "C", "A")


def test_a_genre_unknown_to_the_model_is_refused(write: Write, tmp_path: Path) -> None:
    data = make_data(write("movies"), tmp_path / "cache", genres=["B", "C"])
    message = r"that the model does not know: A, first at movies\.csv:2; .*B, C"
    with pytest.raises(DataError, match=message):
        data.setup()
