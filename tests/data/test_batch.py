"""Batches hold the data of their rows, gathered one at a time or as a group."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from genre_lightning.data.batch import (
    FEATURE_INDEX,
    BatchGroup,
    MovieBatch,
    MovieBatches,
    MovieLoader,
)
from genre_lightning.data.order import BatchOrder
from genre_lightning.inputs.input import DenseFeatures
from genre_lightning.inputs.poster_cache import to_device
from genre_lightning.inputs.terms import TermsFeatures
from genre_lightning.inputs.vectorizer import SparseRows
from genre_lightning.store import SMALL_BYTES

#: Index of each movie's title (of 5) and poster (of 4); -1 for none.
TITLES = np.array([0, 1, 2, 3, -1, 4])
POSTERS = np.array([2, -1, 0, 1, -1, 3])


@pytest.fixture
def dense() -> np.ndarray:
    generator = np.random.default_rng(0)
    dense = generator.random((5, 10)).astype(np.float32)
    dense[generator.random((5, 10)) < 0.6] = 0
    dense[2] = 0  # a title without any known term
    return dense


@pytest.fixture
def pixels(tmp_path: Path) -> np.ndarray:
    pixels = np.random.default_rng(1).integers(0, 256, (4, 5, 5, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", pixels)
    mapped: np.ndarray = np.load(tmp_path / "images.npy", mmap_mode="r")
    return mapped


def gather_one(batches: MovieBatches, rows: np.ndarray, seed: int) -> MovieBatch:
    (batch,) = batches.gather([(rows, seed)]).batches()
    return batch


def make_batches(dense: np.ndarray, pixels: np.ndarray, movies: np.ndarray) -> MovieBatches:
    """Batches over a dataset whose movies are copies of the six, chosen by index."""
    indptr = np.concatenate([[0], np.cumsum((dense > 0).sum(axis=1))])
    rows, columns = np.nonzero(dense)
    titles = SparseRows(indptr, columns.astype(np.int32), dense[rows, columns])
    return MovieBatches(
        {
            "title_tfidf": TermsFeatures(titles, TITLES[movies]),
            "poster_resnet": DenseFeatures("pixels", pixels, POSTERS[movies]),
        },
        np.eye(len(movies), dtype=np.uint8),
    )


@pytest.fixture
def batches(dense: np.ndarray, pixels: np.ndarray) -> MovieBatches:
    return make_batches(dense, pixels, np.arange(6))


@pytest.fixture
def batches_of_50(dense: np.ndarray, pixels: np.ndarray) -> MovieBatches:
    """50 movies: the six, repeated."""
    return make_batches(dense, pixels, np.arange(50) % 6)


def equal_batches(batch: MovieBatch, other: MovieBatch) -> bool:
    if batch.seed != other.seed or list(batch.parts) != list(other.parts):
        return False
    pairs = [(batch.targets, other.targets), (batch.rows, other.rows)]
    for part, other_part in ((batch.parts[name], other.parts[name]) for name in batch.parts):
        assert list(part.numbers) == list(other_part.numbers)
        pairs += [(part.rows, other_part.rows)]
        pairs += [(part.numbers[name], other_part.numbers[name]) for name in part.numbers]
    return all(torch.equal(*pair) and pair[0].dtype == pair[1].dtype for pair in pairs)


def test_a_batch_holds_its_rows_titles_posters_and_labels(
    batches: MovieBatches, dense: np.ndarray, pixels: np.ndarray
) -> None:
    rows = np.array([5, 1, 4, 2, 0])
    batch = gather_one(batches, rows, 7)
    titles, posters = batch.parts["title_tfidf"], batch.parts["poster_resnet"]
    assert titles.rows.tolist() == [0, 1, 3, 4] and len(titles) == 4
    indices, weights = titles.numbers["indices"], titles.numbers["weights"]
    starts = titles.numbers["offsets"].tolist()
    ends = [*starts[1:], len(indices)]
    for row, start, end in zip(titles.rows.tolist(), starts, ends, strict=True):
        vector = np.zeros(10, dtype=np.float32)
        vector[indices[start:end]] = weights[start:end]
        np.testing.assert_array_equal(vector, dense[TITLES[rows[row]]])
    assert indices.dtype == torch.int64 and weights.dtype == torch.float32
    assert posters.rows.tolist() == [0, 3, 4]
    np.testing.assert_array_equal(posters.numbers["pixels"].numpy(), pixels[[3, 0, 2]])
    assert batch.targets.argmax(1).tolist() == rows.tolist() == batch.rows.tolist()
    assert len(batch) == 5 and batch.seed == 7


def test_a_batch_is_a_copy_of_the_stored_data(batches: MovieBatches) -> None:
    batch = gather_one(batches, np.array([0, 2]), 0)
    batch.parts["poster_resnet"].numbers["pixels"].zero_()  # the stored file is read-only
    assert gather_one(batches, np.array([0, 2]), 0).parts["poster_resnet"].numbers["pixels"].any()


def test_resident_features_are_gathered_by_index(batches: MovieBatches, pixels: np.ndarray) -> None:
    rows = np.array([5, 1, 2, 0])
    expected = gather_one(batches, rows, 7)
    batches.resident = {"poster_resnet": to_device(pixels, torch.device("cpu"))}
    batch = gather_one(batches, rows, 7)
    assert list(batch.parts["poster_resnet"].numbers) == [FEATURE_INDEX]
    assert batch.parts["poster_resnet"].rows.tolist() == [0, 2, 3]
    actual = batches.resident["poster_resnet"][batch.parts["poster_resnet"].numbers[FEATURE_INDEX]]
    assert torch.equal(actual, expected.parts["poster_resnet"].numbers["pixels"])
    empty = gather_one(batches, np.array([1, 4]), 7).parts["poster_resnet"]
    assert len(empty) == 0 and len(empty.numbers[FEATURE_INDEX]) == 0


def test_pixels_are_copied_to_a_device_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (7, 4, 4, 3), dtype=np.uint8)
    monkeypatch.setattr("genre_lightning.inputs.poster_cache._PART_BYTES", 100)  # two posters
    assert torch.equal(to_device(pixels, torch.device("cpu")), torch.from_numpy(pixels))
    assert len(to_device(pixels[:0], torch.device("cpu"))) == 0
    half = pixels.astype(np.float16)
    assert torch.equal(to_device(half, torch.device("cpu")), torch.from_numpy(half))


def test_parts_without_any_movie_are_empty(batches: MovieBatches) -> None:
    batch = gather_one(batches, np.array([4]), 0)
    titles, posters = batch.parts["title_tfidf"], batch.parts["poster_resnet"]
    assert len(titles) == len(posters) == 0 and len(batch) == 1
    assert titles.numbers["offsets"].tolist() == titles.numbers["indices"].tolist() == []
    assert posters.numbers["pixels"].shape == (0, 5, 5, 3)


def test_to_device_moves_every_tensor(batches: MovieBatches) -> None:
    batch = gather_one(batches, np.array([5, 1, 2, 0]), 7)
    assert batch.to("cpu") is batch  # no copy if already there
    moved = batch.to("meta")
    tensors = [moved.targets, moved.rows]
    for part in moved.parts.values():
        tensors += [part.rows, *part.numbers.values()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert moved.seed == 7 and list(moved.parts) == list(batch.parts)


@pytest.mark.parametrize("resident", [False, True])
@pytest.mark.parametrize("left_out", ["nothing", "title_tfidf", "poster_resnet"])
def test_batches_gathered_in_a_group_equal_those_gathered_alone(
    left_out: str, resident: bool, batches_of_50: MovieBatches, pixels: np.ndarray
) -> None:
    batches_of_50.features.pop(left_out, None)
    if resident and left_out != "poster_resnet":
        batches_of_50.resident = {"poster_resnet": to_device(pixels, torch.device("cpu"))}
    # The second batch has no titles or posters, the last is smaller.
    items = [
        (np.array(rows), seed) for seed, rows in enumerate([[5, 1, 2], [4, 10], [0, 1, 3], [7]])
    ]
    group = batches_of_50.gather(items)
    alone = [gather_one(batches_of_50, *item) for item in items]
    assert [batch.seed for batch in group.batches()] == [0, 1, 2, 3]
    assert all(equal_batches(*pair) for pair in zip(group.batches(), alone, strict=True))
    assert [len(batch) for batch in group.batches()] == [3, 2, 3, 1]
    if left_out != "title_tfidf":
        assert len(alone[1].parts["title_tfidf"]) == 0


@pytest.mark.parametrize("num_yielded", [0, 3, 4])
def test_the_next_group_is_read_ahead(
    num_yielded: int, batches_of_50: MovieBatches, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_ahead: list[list[int]] = []
    monkeypatch.setattr(batches_of_50, "read_ahead", lambda rows: read_ahead.append(rows.tolist()))
    loader = MovieLoader(batches_of_50, BatchOrder(np.arange(50), 8, shuffle=True), group_size=2)
    loader.load_state_dict({"epoch": 0, "given": num_yielded})
    first = num_yielded // 2  # the group to start with
    seen: dict[int, list[int]] = {}
    for number, batch in enumerate(loader, num_yielded):
        seen.setdefault(number // 2, []).extend(batch.rows.tolist())
        assert len(read_ahead) == min(number // 2 - first + 1, 2 - first)
    assert read_ahead == [seen[group] for group in range(first + 1, 3)]


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel what is in memory")
def test_posters_are_read_ahead(tmp_path: Path) -> None:
    side = 300  # not a multiple of the page size
    count = 1 + SMALL_BYTES // side**2 // 3
    images = np.memmap(tmp_path / "images", np.uint8, "w+", shape=(count, side, side, 3))
    images[:] = 7
    images.flush()
    images = np.memmap(tmp_path / "images", np.uint8, "r", shape=images.shape)
    posters = DenseFeatures("pixels", images, np.array([0, -1, 8, 5]))

    def share_in_memory(place: int) -> float:
        size, page = images[0].nbytes, mmap.PAGESIZE
        start = images.ctypes.data + place * size
        begin, end = start // page * page, start + size
        pages = (ctypes.c_ubyte * -(-(end - begin) // page))()
        libc = ctypes.CDLL(None, use_errno=True)
        failed = libc.mincore(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), pages)
        assert failed == 0, os.strerror(ctypes.get_errno())
        return float(np.mean([value & 1 for value in pages]))

    with (tmp_path / "images").open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if share_in_memory(5) > 0.2:
        pytest.skip("this file system keeps its files in memory")
    batches = MovieBatches({"poster_resnet": posters}, np.zeros((4, 1), np.uint8))
    batches.read_ahead(np.array([1, 2, 3]))
    deadline = time.monotonic() + 30
    while min(share_in_memory(8), share_in_memory(5)) < 1:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert share_in_memory(2) < 0.2


@pytest.mark.parametrize("group_size", [1, 4])
@pytest.mark.parametrize("num_yielded", [0, 1, 4, 6])
def test_a_resumed_epoch_continues_where_it_stopped(
    num_yielded: int, group_size: int, batches_of_50: MovieBatches
) -> None:
    groups: list[list[int]] = []

    def prepare(group: BatchGroup) -> BatchGroup:
        groups.append(list(group.seeds))
        return group

    first, second = (
        MovieLoader(
            batches_of_50, BatchOrder(np.arange(50), 8, shuffle=True, seed=3), prepare, group_size
        )
        for _ in range(2)
    )
    first.order.set_epoch(2)
    iterator = iter(first)
    for _ in range(num_yielded):
        next(iterator)
    state = first.state_dict()
    assert state == {"epoch": 2, "given": num_yielded}
    rest = list(iterator)
    uninterrupted = list(groups)
    groups.clear()
    second.load_state_dict(state)
    second.order.set_epoch(2)
    assert len(second.order) - second.order.first_batch == len(rest) == 6 - num_yielded
    assert all(equal_batches(*pair) for pair in zip(second, rest, strict=True))
    # Each batch is grouped with the same others; sums could differ in the last bit otherwise.
    assert groups == (uninterrupted[num_yielded // group_size :] if num_yielded < 6 else [])
    second.order.set_epoch(3)
    assert len(list(second)) == len(second) == 6
    with pytest.raises(ValueError, match="batch 7 of an epoch of 6"):
        second.load_state_dict({"epoch": 2, "given": 7})


def test_a_loader_draws_nothing_from_the_global_generator(batches: MovieBatches) -> None:
    loader = MovieLoader(batches, BatchOrder(np.arange(6), 2, shuffle=True))
    before = torch.get_rng_state()
    assert [len(batch) for batch in loader] == [2, 2, 2]
    assert torch.equal(torch.get_rng_state(), before)
    assert loader.state_dict() == {"epoch": 0, "given": 3}
