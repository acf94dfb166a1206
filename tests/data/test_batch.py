"""Batches hold what their rows say, one by one or gathered together."""

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

#: Place of each movie's title, of five, and poster, of four; -1 for none.
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


def gathered(batches: MovieBatches, rows: np.ndarray, seed: int) -> MovieBatch:
    (batch,) = batches.gather([(rows, seed)]).batches()
    return batch


def batches_of(dense: np.ndarray, pixels: np.ndarray, movies: np.ndarray) -> MovieBatches:
    """Six different movies, in this order and as often."""
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
    return batches_of(dense, pixels, np.arange(6))


@pytest.fixture
def many(dense: np.ndarray, pixels: np.ndarray) -> MovieBatches:
    """50 movies: each of the six, again and again."""
    return batches_of(dense, pixels, np.arange(50) % 6)


def same(one: MovieBatch, other: MovieBatch) -> bool:
    if one.seed != other.seed or list(one.parts) != list(other.parts):
        return False
    pairs = [(one.targets, other.targets), (one.rows, other.rows)]
    for mine, its in ((one.parts[name], other.parts[name]) for name in one.parts):
        assert list(mine.numbers) == list(its.numbers)
        pairs += [(mine.rows, its.rows)]
        pairs += [(mine.numbers[name], its.numbers[name]) for name in mine.numbers]
    return all(torch.equal(*pair) and pair[0].dtype == pair[1].dtype for pair in pairs)


def test_a_batch_holds_its_rows_titles_posters_and_labels(
    batches: MovieBatches, dense: np.ndarray, pixels: np.ndarray
) -> None:
    rows = np.array([5, 1, 4, 2, 0])
    batch = gathered(batches, rows, 7)
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


def test_the_batch_does_not_look_at_the_store(batches: MovieBatches) -> None:
    batch = gathered(batches, np.array([0, 2]), 0)
    batch.parts["poster_resnet"].numbers["pixels"].zero_()  # the file is read-only
    assert gathered(batches, np.array([0, 2]), 0).parts["poster_resnet"].numbers["pixels"].any()


def test_what_is_resident_is_named_by_its_place(batches: MovieBatches, pixels: np.ndarray) -> None:
    rows = np.array([5, 1, 2, 0])
    carried = gathered(batches, rows, 7)
    batches.resident = {"poster_resnet": to_device(pixels, torch.device("cpu"))}
    waiting = gathered(batches, rows, 7)
    assert list(waiting.parts["poster_resnet"].numbers) == [FEATURE_INDEX]
    assert waiting.parts["poster_resnet"].rows.tolist() == [0, 2, 3]
    taken = batches.resident["poster_resnet"][waiting.parts["poster_resnet"].numbers[FEATURE_INDEX]]
    assert torch.equal(taken, carried.parts["poster_resnet"].numbers["pixels"])
    without = gathered(batches, np.array([1, 4]), 7).parts["poster_resnet"]
    assert len(without) == 0 and len(without.numbers[FEATURE_INDEX]) == 0


def test_pixels_reach_a_device_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (7, 4, 4, 3), dtype=np.uint8)
    monkeypatch.setattr("genre_lightning.inputs.poster_cache._PART_BYTES", 100)  # two posters
    assert torch.equal(to_device(pixels, torch.device("cpu")), torch.from_numpy(pixels))
    assert len(to_device(pixels[:0], torch.device("cpu"))) == 0
    half = pixels.astype(np.float16)
    assert torch.equal(to_device(half, torch.device("cpu")), torch.from_numpy(half))


def test_absent_parts_are_empty(batches: MovieBatches) -> None:
    batch = gathered(batches, np.array([4]), 0)
    titles, posters = batch.parts["title_tfidf"], batch.parts["poster_resnet"]
    assert len(titles) == len(posters) == 0 and len(batch) == 1
    assert titles.numbers["offsets"].tolist() == titles.numbers["indices"].tolist() == []
    assert posters.numbers["pixels"].shape == (0, 5, 5, 3)


def test_a_batch_moves_whole(batches: MovieBatches) -> None:
    batch = gathered(batches, np.array([5, 1, 2, 0]), 7)
    assert batch.to("cpu") is batch  # nothing is copied for nothing
    moved = batch.to("meta")
    tensors = [moved.targets, moved.rows]
    for part in moved.parts.values():
        tensors += [part.rows, *part.numbers.values()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert moved.seed == 7 and list(moved.parts) == list(batch.parts)


@pytest.mark.parametrize("resident", [False, True])
@pytest.mark.parametrize("left_out", ["nothing", "title_tfidf", "poster_resnet"])
def test_batches_gathered_together_are_those_gathered_alone(
    left_out: str, resident: bool, many: MovieBatches, pixels: np.ndarray
) -> None:
    many.features.pop(left_out, None)
    if resident and left_out != "poster_resnet":
        many.resident = {"poster_resnet": to_device(pixels, torch.device("cpu"))}
    # The second has neither title nor poster, the last is smaller.
    items = [
        (np.array(rows), seed) for seed, rows in enumerate([[5, 1, 2], [4, 10], [0, 1, 3], [7]])
    ]
    group = many.gather(items)
    alone = [gathered(many, *item) for item in items]
    assert [batch.seed for batch in group.batches()] == [0, 1, 2, 3]
    assert all(same(*pair) for pair in zip(group.batches(), alone, strict=True))
    assert [len(batch) for batch in group.batches()] == [3, 2, 3, 1]
    if left_out != "title_tfidf":
        assert len(alone[1].parts["title_tfidf"]) == 0


@pytest.mark.parametrize("given", [0, 3, 4])
def test_a_group_is_announced_while_the_one_before_is_in_use(
    given: int, many: MovieBatches, monkeypatch: pytest.MonkeyPatch
) -> None:
    announced: list[list[int]] = []
    monkeypatch.setattr(many, "read_ahead", lambda rows: announced.append(rows.tolist()))
    loader = MovieLoader(many, BatchOrder(np.arange(50), 8, shuffle=True), group_size=2)
    loader.load_state_dict({"epoch": 0, "given": given})
    first = given // 2  # the group to begin with
    seen: dict[int, list[int]] = {}
    for number, batch in enumerate(loader, given):
        seen.setdefault(number // 2, []).extend(batch.rows.tolist())
        assert len(announced) == min(number // 2 - first + 1, 2 - first)
    assert announced == [seen[group] for group in range(first + 1, 3)]


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel what is in memory")
def test_posters_are_read_ahead(tmp_path: Path) -> None:
    side = 300  # no multiple of a page
    count = 1 + SMALL_BYTES // side**2 // 3
    images = np.memmap(tmp_path / "images", np.uint8, "w+", shape=(count, side, side, 3))
    images[:] = 7
    images.flush()
    images = np.memmap(tmp_path / "images", np.uint8, "r", shape=images.shape)
    posters = DenseFeatures("pixels", images, np.array([0, -1, 8, 5]))

    def in_memory(place: int) -> float:
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
    if in_memory(5) > 0.2:
        pytest.skip("this file system keeps its files in memory")
    batches = MovieBatches({"poster_resnet": posters}, np.zeros((4, 1), np.uint8))
    batches.read_ahead(np.array([1, 2, 3]))
    deadline = time.monotonic() + 30
    while min(in_memory(8), in_memory(5)) < 1:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert in_memory(2) < 0.2


@pytest.mark.parametrize("group_size", [1, 4])
@pytest.mark.parametrize("given", [0, 1, 4, 6])
def test_an_epoch_goes_on_where_it_stopped(given: int, group_size: int, many: MovieBatches) -> None:
    groups: list[list[int]] = []

    def prepare(group: BatchGroup) -> BatchGroup:
        groups.append(list(group.seeds))
        return group

    first, second = (
        MovieLoader(many, BatchOrder(np.arange(50), 8, shuffle=True, seed=3), prepare, group_size)
        for _ in range(2)
    )
    first.order.set_epoch(2)
    batches = iter(first)
    for _ in range(given):
        next(batches)
    state = first.state_dict()
    assert state == {"epoch": 2, "given": given}
    rest = list(batches)
    unbroken = list(groups)
    groups.clear()
    second.load_state_dict(state)
    second.order.set_epoch(2)
    assert len(second.order) - second.order.first_batch == len(rest) == 6 - given
    assert all(same(*pair) for pair in zip(second, rest, strict=True))
    # Each batch among the same others, since sums may differ in the last bit otherwise.
    assert groups == (unbroken[given // group_size :] if given < 6 else [])
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
