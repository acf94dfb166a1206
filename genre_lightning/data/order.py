"""The order in which movies are drawn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from genre_lightning.errors import SettingError


class BatchOrder:
    """Which rows make up each batch of an epoch; a pure function of (seed, epoch, rank).

    Nothing is drawn from a global generator, so that a resumed run sees the order, and the
    augmentation seeds, that an unbroken one would have seen.

    Args:
        rows: (n,) int64, the split's movies.
        batch_size: B on each rank.
        shuffle: another permutation each epoch, and a last batch that is not full is left out (its
            movies come in other epochs); otherwise in order, and nothing is left out. Either way
            every rank has the same number of batches, none of them empty, since each batch is a
            meeting of all ranks.
        seed: of the permutations and of the augmentation.
        rank: this process's number.
        world_size: number of processes that share an epoch.

    Attributes:
        given: how many of the epoch's batches were handed out; whoever does so counts them.
        repeats: every epoch has the batches of the first, to see whether a network learns a few of
            them by heart.

    Raises:
        SettingError: if a rank would have a batch without a movie.
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
            raise SettingError(
                f"{len(rows)} movies are too few to train on {world_size} process(es)"
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
                f"{len(rows)} movies can't be shared out over {world_size} processes in batches of "
                f"{batch_size}: take fewer processes, or another data.batch_size in training"
            )
        self.given = 0
        self.repeats = False
        self._given_before = (0, 0)

    def state_dict(self) -> dict[str, int]:
        """The epoch and how many of its batches were given, by one pass in one process."""
        return {"epoch": self.epoch, "given": self.given}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Leave out, in that epoch, the batches that were given before.

        Raises:
            ValueError: the epoch has fewer batches.
        """
        epoch, given = int(state["epoch"]), int(state["given"])
        if not 0 <= given <= len(self):
            raise ValueError(f"batch {given} of an epoch of {len(self)}")
        self._given_before = (epoch, given)

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning as each epoch begins."""
        self.epoch = epoch

    def __len__(self) -> int:
        if self.shuffle:
            # A dataset smaller than one batch is one batch.
            return max(1, len(self.rows) // (self.batch_size * self.world_size))
        largest_share = -(-len(self.rows) // self.world_size)
        return -(-largest_share // self.batch_size)

    @property
    def first(self) -> int:
        """The number of the epoch's batch to begin with."""
        epoch, given = self._given_before
        return given if epoch == self.epoch else 0

    def __iter__(self) -> Iterator[tuple[np.ndarray, int]]:
        """Every batch of the epoch: its rows, (B,) int64, and the seed of its augmentation."""
        if not self.shuffle:
            own = self.rows[self.rank :: self.world_size]
            if len(self):
                yield from ((rows, 0) for rows in np.array_split(own, len(self)))
            return
        epoch = 0 if self.repeats else self.epoch
        order = np.random.default_rng([self.seed, epoch]).permutation(self.rows)
        own = order[self.rank :: self.world_size]
        # Without this, ranks of a world that doesn't divide the movies would differ in length.
        own = own[: len(order) // self.world_size]
        seeds = np.random.default_rng([self.seed, epoch, self.rank, 1])
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            yield own[start : start + self.batch_size], int(seeds.integers(2**62))
