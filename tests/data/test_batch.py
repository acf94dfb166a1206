"""Batches hold what their rows say, and the order of rows is a function of seed, epoch and rank."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from genre_lightning.data.batch import BatchGroup, BatchOrder, MovieBatch, MovieBatches, MovieLoader
from genre_lightning.inputs.posters import PosterCache, to_device
from genre_lightning.inputs.terms import SparseTitles


@pytest.fixture
def dense() -> np.ndarray:
    generator = np.random.default_rng(0)
    dense = generator.random((6, 10)).astype(np.float32)
    dense[generator.random((6, 10)) < 0.6] = 0
    dense[2] = 0
    return dense


@pytest.fixture
def batches(dense: np.ndarray, tmp_path: Path) -> MovieBatches:
    pixels = np.random.default_rng(1).integers(0, 256, (4, 5, 5, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", pixels)
    cache = PosterCache(
        images=np.load(tmp_path / "images.npy", mmap_mode="r"),
        row=np.array([2, -1, 0, 1, -1, 3]),
        unreadable=[],
        folder=tmp_path,
    )
    indptr = np.concatenate([[0], np.cumsum((dense > 0).sum(axis=1))])
    rows, columns = np.nonzero(dense)
    titles = SparseTitles(indptr, columns.astype(np.int32), dense[rows, columns])
    labels = np.eye(6, dtype=np.uint8)
    return MovieBatches(titles, cache, labels)


def test_a_batch_holds_its_rows_titles_posters_and_labels(
    batches: MovieBatches, dense: np.ndarray
) -> None:
    rows = np.array([5, 1, 2, 0])
    batch = batches[rows, 7]
    ends = [*batch.title_offsets.tolist()[1:], len(batch.title_indices)]
    for place, (row, start, end) in enumerate(
        zip(rows, batch.title_offsets.tolist(), ends, strict=True)
    ):
        vector = np.zeros(10, dtype=np.float32)
        vector[batch.title_indices[start:end]] = batch.title_weights[start:end]
        np.testing.assert_array_equal(vector, dense[row])
        assert batch.targets[place].argmax() == row
    assert batch.poster_rows.tolist() == [0, 2, 3]
    assert batches.posters is not None
    expected = batches.posters.images[[3, 0, 2]].transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(batch.posters.numpy(), expected)
    assert batch.posters.is_contiguous(memory_format=torch.channels_last)
    assert len(batch) == 4 and batch.seed == 7 and batch.rows.tolist() == rows.tolist()


def test_posters_that_are_resident_are_taken_where_the_batch_goes(batches: MovieBatches) -> None:
    assert batches.posters is not None
    rows = np.array([5, 1, 2, 0])
    carried = batches[rows, 7].to("cpu")
    batches.resident = to_device(batches.posters.images, torch.device("cpu"))
    waiting = batches[rows, 7]
    assert len(waiting.posters) == 0 and waiting.poster_rows.tolist() == [0, 2, 3]
    taken = waiting.to("cpu")
    assert taken.resident is None
    for field in fields(carried):
        one, other = (getattr(batch, field.name) for batch in (carried, taken))
        same = torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
        assert same, field.name
    assert taken.posters.is_contiguous(memory_format=torch.channels_last)
    without = batches[np.array([1, 4]), 7].to("cpu")
    assert without.posters.shape == (0, 3, 5, 5)
    with pytest.raises(ValueError, match="resident on cpu, not on meta"):
        waiting.to("meta")


def test_pixels_reach_a_device_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (7, 4, 4, 3), dtype=np.uint8)
    monkeypatch.setattr("genre_lightning.inputs.posters._PART_BYTES", 100)  # two posters
    assert torch.equal(to_device(pixels, torch.device("cpu")), torch.from_numpy(pixels))
    assert len(to_device(pixels[:0], torch.device("cpu"))) == 0


def test_absent_parts_are_empty(batches: MovieBatches) -> None:
    batch = MovieBatches(None, None, batches.labels)[np.array([0, 3]), 0]
    assert batch.title_offsets.tolist() == [0, 0] and len(batch.title_indices) == 0
    assert len(batch.posters) == 0 and len(batch.poster_rows) == 0


def test_a_shuffled_epoch_draws_each_movie_at_most_once_and_epochs_differ() -> None:
    order = BatchOrder(np.arange(100, 150), 8, shuffle=True, seed=3)
    epochs = []
    for epoch in (0, 1):
        order.set_epoch(epoch)
        drawn = np.concatenate([rows for rows, _ in order])
        assert len(drawn) == 48 == len(set(drawn.tolist()))
        epochs.append(drawn.tolist())
    assert epochs[0] != epochs[1]


def test_order_and_seeds_depend_on_nothing_but_seed_and_epoch() -> None:
    first, second = (BatchOrder(np.arange(50), 8, shuffle=True, seed=3) for _ in range(2))
    for _ in first:  # one has run an epoch before, with global generators in another state
        np.random.rand()
    first.set_epoch(5)
    second.set_epoch(5)
    for (rows, seed), (other_rows, other_seed) in zip(first, second, strict=True):
        assert seed == other_seed
        np.testing.assert_array_equal(rows, other_rows)
    seeds = [seed for _, seed in first]
    assert len(set(seeds)) == len(seeds)


@pytest.fixture
def many(dense: np.ndarray, batches: MovieBatches) -> MovieBatches:
    """50 movies: each of the six, again and again."""
    assert batches.posters is not None and batches.titles is not None
    rows = np.arange(50) % 6
    cache = replace(batches.posters, row=batches.posters.row[rows])
    return MovieBatches(batches.titles.take(rows), cache, np.eye(50, dtype=np.uint8))


def same(one: MovieBatch, other: MovieBatch) -> bool:
    pairs = [(getattr(one, field.name), getattr(other, field.name)) for field in fields(one)]
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


@pytest.mark.parametrize("resident", [False, True])
@pytest.mark.parametrize("left_out", ["nothing", "titles", "posters"])
def test_batches_gathered_together_are_those_gathered_alone(
    left_out: str, resident: bool, many: MovieBatches
) -> None:
    if left_out == "titles":
        many.titles = None
    elif left_out == "posters":
        many.posters = None
    elif resident:
        assert many.posters is not None
        many.resident = to_device(many.posters.images, torch.device("cpu"))
    # The second has neither title nor poster, the last is smaller.
    items = [
        (np.array(rows), seed) for seed, rows in enumerate([[5, 1, 2], [4, 10], [0, 1, 3], [7]])
    ]
    group = many.gather(items)
    for moved in (False, True):
        found = replace(group, joined=group.joined.to("cpu")) if moved else group
        alone = [many[item].to("cpu") if moved else many[item] for item in items]
        assert [batch.seed for batch in found.batches()] == [0, 1, 2, 3]
        assert all(same(*pair) for pair in zip(found.batches(), alone, strict=True))


@pytest.mark.parametrize("given", [0, 3, 4])
def test_a_group_is_announced_while_the_one_before_is_in_use(
    given: int, many: MovieBatches, monkeypatch: pytest.MonkeyPatch
) -> None:
    announced: list[list[int]] = []
    monkeypatch.setattr(many, "read_ahead", lambda rows: announced.append(rows.tolist()))
    loader = MovieLoader(many, BatchOrder(np.arange(50), 8, shuffle=True), together=2)
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
    images = np.memmap(tmp_path / "images", np.uint8, "w+", shape=(9, side, side, 3))
    images[:] = 7
    images.flush()
    images = np.memmap(tmp_path / "images", np.uint8, "r", shape=images.shape)
    cache = PosterCache(images, np.array([0, -1, 8, 5]), [], tmp_path)

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
    batches = MovieBatches(None, cache, np.zeros((4, 1), np.uint8))
    batches.read_ahead(np.array([1, 2, 3]))
    deadline = time.monotonic() + 30
    while min(in_memory(8), in_memory(5)) < 1:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert in_memory(2) < 0.2


@pytest.mark.parametrize("together", [1, 4])
@pytest.mark.parametrize("given", [0, 1, 4, 6])
def test_an_epoch_goes_on_where_it_stopped(given: int, together: int, many: MovieBatches) -> None:
    groups: list[list[int]] = []

    def prepare(group: BatchGroup) -> BatchGroup:
        groups.append(group.seeds)
        return group

    first, second = (
        MovieLoader(many, BatchOrder(np.arange(50), 8, shuffle=True, seed=3), prepare, together)
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
    assert len(list(second.order)) == len(rest) == 6 - given
    assert all(same(*pair) for pair in zip(second, rest, strict=True))
    # Each batch among the same others, since sums may differ in the last bit otherwise.
    assert groups == (unbroken[given // together :] if given < 6 else [])
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


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("shuffle", [True, False], ids=["train", "val"])
def test_ranks_share_an_epoch_without_overlap(world_size: int, shuffle: bool) -> None:
    ranks = [
        BatchOrder(np.arange(50), 7, shuffle=shuffle, seed=1, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    drawn = [row for order in ranks for rows, _ in order for row in rows.tolist()]
    assert len(drawn) == len(set(drawn))
    for order in ranks:
        assert len(list(order)) == len(order)
    if shuffle:
        assert len({len(order) for order in ranks}) == 1  # or a rank would wait for ever
    else:
        assert sorted(drawn) == list(range(50))


def test_fewer_movies_than_a_batch_are_one_batch() -> None:
    order = BatchOrder(np.arange(5), 64, shuffle=True)
    assert [sorted(rows.tolist()) for rows, _ in order] == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize(
    ("rows", "batch_size", "message"), [(5, 0, "batch_size"), (1, 8, "too few")]
)
def test_orders_that_cannot_train_are_refused(rows: int, batch_size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BatchOrder(np.arange(rows), batch_size, shuffle=True)
