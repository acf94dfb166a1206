"""The order of rows depends only on the seed, the epoch and the rank."""

from __future__ import annotations

import numpy as np
import pytest

from genre_lightning.data.order import BatchOrder


def test_a_shuffled_epoch_draws_each_movie_at_most_once_and_epochs_differ() -> None:
    order = BatchOrder(np.arange(100, 150), 8, shuffle=True, seed=3)
    epochs = []
    for epoch in (0, 1):
        order.set_epoch(epoch)
        drawn = np.concatenate([rows for rows, _ in order])
        assert len(drawn) == 48 == len(set(drawn.tolist()))
        epochs.append(drawn.tolist())
    assert epochs[0] != epochs[1]


def test_a_repeating_order_repeats_the_whole_first_epoch() -> None:
    order = BatchOrder(np.arange(50), 8, shuffle=True, seed=3)
    first = [(rows.tolist(), seed) for rows, seed in order]
    order.repeats = True
    order.load_state_dict({"epoch": 4, "given": 2})
    for epoch, first_batch in ((4, 2), (5, 0)):
        order.set_epoch(epoch)
        assert [(rows.tolist(), seed) for rows, seed in order] == first
        assert order.first_batch == first_batch


def test_rows_and_seeds_depend_only_on_seed_and_epoch() -> None:
    first, second = (BatchOrder(np.arange(50), 8, shuffle=True, seed=3) for _ in range(2))
    for _ in first:  # an earlier epoch, with draws from the global generator
        np.random.rand()
    first.set_epoch(5)
    second.set_epoch(5)
    for (rows, seed), (other_rows, other_seed) in zip(first, second, strict=True):
        assert seed == other_seed
        np.testing.assert_array_equal(rows, other_rows)
    seeds = [seed for _, seed in first]
    assert len(set(seeds)) == len(seeds)


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
        assert len({len(order) for order in ranks}) == 1  # otherwise a rank would wait forever
    else:
        assert sorted(drawn) == list(range(50))


def test_a_dataset_smaller_than_a_batch_is_one_batch() -> None:
    order = BatchOrder(np.arange(5), 64, shuffle=True)
    assert [sorted(rows.tolist()) for rows, _ in order] == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize(
    ("rows", "batch_size", "ranks", "message"),
    [
        (5, 0, 1, "batch_size"),
        (1, 8, 1, "has 1 movie, but training needs at least 2: add movies$"),
        (3, 8, 2, "has 3 movies, but training in 2 processes needs at least 4: .*, or use fewer"),
    ],
    ids=["batch size", "one movie", "too many processes"],
)
def test_invalid_training_orders_are_refused(
    rows: int, batch_size: int, ranks: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        BatchOrder(np.arange(rows), batch_size, shuffle=True, world_size=ranks)


@pytest.mark.parametrize("shuffle", [False, True], ids=["in-order", "shuffled"])
@pytest.mark.parametrize(
    ("movies", "size", "ranks"), [(24, 16, 1), (25, 4, 2), (17, 8, 2), (33, 8, 4), (7, 3, 3)]
)
def test_ranks_get_equally_many_batches(movies: int, size: int, ranks: int, shuffle: bool) -> None:
    rows = np.arange(movies) + 100
    orders = [
        BatchOrder(rows, size, shuffle=shuffle, rank=rank, world_size=ranks)
        for rank in range(ranks)
    ]
    shares = [[batch for batch, _ in order] for order in orders]
    assert {len(share) for share in shares} == {len(orders[0])}
    assert all(1 <= len(batch) <= size for share in shares for batch in share)
    drawn = np.concatenate([batch for share in shares for batch in share])
    assert len(set(drawn)) == len(drawn) and set(drawn) <= set(rows)
    if not shuffle:
        assert set(drawn) == set(rows)


@pytest.mark.parametrize(("movies", "size", "ranks"), [(1, 8, 2), (3, 1, 2), (5, 2, 8)])
def test_a_rank_without_movies_is_refused(movies: int, size: int, ranks: int) -> None:
    with pytest.raises(ValueError, match=rf"{movies} movies? .*{ranks} process"):
        BatchOrder(np.arange(movies), size, shuffle=False, rank=0, world_size=ranks)
