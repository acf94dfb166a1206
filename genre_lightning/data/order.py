"""The order in which batches take their movies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from genre_lightning.errors import SettingError
from genre_lightning.wording import counted


class BatchOrder:
    """Which rows make up each batch of an epoch; a pure function of (seed, epoch, rank).

    Nothing is drawn from a global generator, so a resumed run gets the same order and augmentation
    seeds as an uninterrupted one.

    Args:
        rows: (n,) int64, the split's movies.
        batch_size: B on each rank.
        shuffle: use a new permutation each epoch and drop an incomplete last batch (its movies
            appear in other epochs); otherwise keep the order and drop nothing. Either way every
            rank gets the same number of batches, none of them empty, since ranks wait for each
            other at each batch.
        seed: seed of the permutations and of augmentation.
        rank: rank of this process.
        world_size: number of processes that share an epoch.

    Attributes:
        num_yielded: number of the epoch's batches handed out so far; the loader updates it.
        repeats: whether every epoch repeats the batches of the first, to check that a network can
            overfit a few of them.

    Raises:
        SettingError: ``batch_size`` is below 1, or there are too few movies for the processes.
    """

    def __init__(
        self,
        rows: np.ndarray,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1:
            raise SettingError(f"data.batch_size must be at least 1, not {batch_size}")
        if shuffle and len(rows) < 2 * world_size:
            several = world_size > 1
            raise SettingError(
                f"the training split has {counted(len(rows), 'movie')}, but training"
                f"{f' in {world_size} processes' if several else ''} needs at least "
                f"{2 * world_size}: add movies{', or use fewer processes' if several else ''}"
            )
        self.rows = rows
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        if world_size > 1 and len(rows) // world_size < len(self):
            raise SettingError(
                f"{counted(len(rows), 'movie')} can't be shared among {world_size} processes in "
                f"batches of {batch_size}: use fewer processes, or another data.batch_size in "
                "training"
            )
        self.num_yielded = 0
        self.repeats = False
        self._resume_from = (0, 0)

    def state_dict(self) -> dict[str, int]:
        """The epoch, and how many of its batches this process has been handed."""
        return {"epoch": self.epoch, "given": self.num_yielded}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Skip the batches of the saved epoch that were handed out before.

        Raises:
            ValueError: an epoch has fewer batches.
        """
        epoch, num_yielded = int(state["epoch"]), int(state["given"])
        if not 0 <= num_yielded <= len(self):
            raise ValueError(f"batch {num_yielded} of an epoch of {len(self)}")
        self._resume_from = (epoch, num_yielded)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; Lightning calls this as each epoch begins."""
        self.epoch = epoch

    def __len__(self) -> int:
        if self.shuffle:
            # A dataset smaller than one batch still makes one batch.
            return max(1, len(self.rows) // (self.batch_size * self.world_size))
        largest_shard = -(-len(self.rows) // self.world_size)
        return -(-largest_shard // self.batch_size)

    @property
    def first_batch(self) -> int:
        """Index of the batch that the epoch starts with."""
        epoch, num_yielded = self._resume_from
        return num_yielded if epoch == self.epoch else 0

    def __iter__(self) -> Iterator[tuple[np.ndarray, int]]:
        """Each batch of the epoch: its rows, (B,) int64, and its augmentation seed."""
        if not self.shuffle:
            shard = self.rows[self.rank :: self.world_size]
            if len(self):
                yield from ((rows, 0) for rows in np.array_split(shard, len(self)))
            return
        epoch = 0 if self.repeats else self.epoch
        order = np.random.default_rng([self.seed, epoch]).permutation(self.rows)
        shard = order[self.rank :: self.world_size]
        # Ranks would differ in length if world_size doesn't divide the number of movies.
        shard = shard[: len(order) // self.world_size]
        seeds = np.random.default_rng([self.seed, epoch, self.rank, 1])
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            yield shard[start : start + self.batch_size], int(seeds.integers(2**62))
