"""One batch of movies, gathered at once, and the order in which movies are drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from genre_lightning.inputs.posters import PosterCache
from genre_lightning.inputs.terms import SparseTitles


@dataclass
class MovieBatch:
    """B movies, of which P <= B have a poster.

    Attributes:
        title_indices: (L,) int64, non-zero TF-IDF columns of all titles, one title after another.
        title_offsets: (B,) int64, where each title starts in ``title_indices``.
        title_weights: (L,) float32.
        posters: (P, 3, H, W) uint8 as gathered, channels last in memory; float32 and normalised
            once the batch is on its device. Empty, (0, 3, H, W), while they wait in ``resident``.
        poster_places: (P,) int64, each poster's place in the cache.
        poster_rows: (P,) int64, the row of the batch that each poster belongs to.
        targets: (B, G) float32 multi-hot.
        rows: (B,) int64, each movie's place in the dataset.
        seed: of this batch's random augmentation.
        resident: all posters of the cache, (N, H, W, 3) uint8, on the device on which the batch
            will be: there, :meth:`to` takes its posters from it.
    """

    title_indices: Tensor
    title_offsets: Tensor
    title_weights: Tensor
    posters: Tensor
    poster_places: Tensor
    poster_rows: Tensor
    targets: Tensor
    rows: Tensor
    seed: int
    resident: Tensor | None = None

    def __len__(self) -> int:
        return self.targets.shape[0]

    def inputs(self) -> dict[str, Tensor]:
        """The arguments of :meth:`genre_lightning.models.Fusion.forward`."""
        names = ("title_indices", "title_offsets", "title_weights", "posters", "poster_rows")
        return {name: getattr(self, name) for name in names}

    def to(self, device: torch.device | str, non_blocking: bool = False) -> MovieBatch:
        """The batch with every tensor on ``device``.

        Raises:
            ValueError: its posters wait on another device.
        """
        if self.resident is None and self.rows.device == torch.device(device):
            return self
        moved = self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))
        if self.resident is None:
            return moved
        if moved.rows.device != self.resident.device:
            raise ValueError(f"posters are resident on {self.resident.device}, not on {device}")
        pixels = self.resident.index_select(0, moved.poster_places)
        return replace(moved, posters=pixels.permute(0, 3, 1, 2), resident=None)

    def pin_memory(self) -> MovieBatch:
        """The batch in page-locked memory, from where copies to the device needn't be awaited."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> MovieBatch:
        names = {field.name for field in fields(self)} - {"seed", "resident"}
        changed: dict[str, Any] = {name: change(getattr(self, name)) for name in names}
        return replace(self, **changed)

    def with_posters(self, posters: Tensor) -> MovieBatch:
        """The batch with other poster pixels."""
        return replace(self, posters=posters)


@dataclass
class BatchGroup:
    """K batches end to end, so that one gather, one copy and one augmentation serve all of them.

    Attributes:
        joined: all their movies, titles and posters in one, but for ``title_offsets`` and
            ``poster_rows``, which count from where each batch begins.
        sizes: of each batch, the number of its movies, title entries and posters.
        seeds: of each batch's random augmentation.
    """

    joined: MovieBatch
    sizes: list[tuple[int, int, int]]
    seeds: list[int]

    def batches(self) -> list[MovieBatch]:
        """The batches one by one, each a view of its part."""
        movies, entries, posters = (list(sizes) for sizes in zip(*self.sizes, strict=True))
        lengths = {
            "title_indices": entries,
            "title_offsets": movies,
            "title_weights": entries,
            # Those that wait in ``resident`` are none in each batch.
            "posters": posters if len(self.joined.posters) else [0] * len(posters),
            "poster_places": posters,
            "poster_rows": posters,
            "targets": movies,
            "rows": movies,
        }
        columns = {
            name: getattr(self.joined, name).split(length) for name, length in lengths.items()
        }
        return [
            MovieBatch(
                **{name: parts[number] for name, parts in columns.items()},
                seed=seed,
                resident=self.joined.resident if posters[number] else None,
            )
            for number, seed in enumerate(self.seeds)
        ]


class MovieBatches(Dataset[MovieBatch]):
    """Gathers the batch of given rows: no work per movie, no copy of what the batch doesn't need.

    Args:
        titles: TF-IDF rows of all N movies, or None to leave titles out (every title is empty).
        posters: the poster cache of all N movies, or None to leave posters out.
        labels: (N, G) uint8 multi-hot.

    Attributes:
        resident: the cache's pixels on the training device, (P, H, W, 3) uint8; None leaves it to
            each batch to carry its own there.
    """

    def __init__(
        self, titles: SparseTitles | None, posters: PosterCache | None, labels: np.ndarray
    ) -> None:
        self.titles = titles
        self.posters = posters
        self.labels = labels
        self.resident: Tensor | None = None

    def read_ahead(self, rows: np.ndarray) -> None:
        """Have the system begin to read the posters of these rows, without waiting for them."""
        if self.posters is not None and self.resident is None:
            places = self.posters.row[rows]
            self.posters.read_ahead(places[places >= 0])

    def __getitem__(self, item: tuple[np.ndarray, int]) -> MovieBatch:
        """The batch of ``(rows, seed)``: rows (B,) int64, seed for its augmentation."""
        (batch,) = self.gather([item]).batches()
        return batch

    def gather(self, items: Sequence[tuple[np.ndarray, int]]) -> BatchGroup:
        """The batches of several ``(rows, seed)``, as :meth:`__getitem__` gives each."""
        rows = np.concatenate([rows for rows, _ in items])
        counts = np.array([len(rows) for rows, _ in items])
        ends = np.cumsum(counts)
        begins = ends - counts
        if self.titles is None:
            indices = torch.zeros(0, dtype=torch.int64)
            offsets = torch.zeros(len(rows), dtype=torch.int64)
            weights = torch.zeros(0)
            entries = np.zeros_like(counts)
        else:
            taken = self.titles.take(rows)
            entries = taken.indptr[ends] - taken.indptr[begins]
            within = taken.indptr[:-1] - np.repeat(taken.indptr[begins], counts)
            indices = torch.from_numpy(taken.indices.astype(np.int64, copy=False))
            offsets = torch.from_numpy(within.astype(np.int64, copy=False))
            weights = torch.from_numpy(taken.weights)
        if self.posters is None:
            pixels = np.zeros((0, 1, 1, 3), dtype=np.uint8)
            places = poster_rows = np.zeros(0, dtype=np.int64)
            seen = np.zeros_like(counts)
        else:
            places = self.posters.row[rows]
            poster_rows = np.flatnonzero(places >= 0)
            places = places[poster_rows]
            seen = np.diff(np.searchsorted(poster_rows, ends), prepend=0)
            poster_rows -= np.repeat(begins, seen)
            taken_here = places if self.resident is None else places[:0]
            pixels = np.take(self.posters.images, taken_here, axis=0)
        joined = MovieBatch(
            title_indices=indices,
            title_offsets=offsets,
            title_weights=weights,
            posters=torch.from_numpy(pixels).permute(0, 3, 1, 2),
            poster_places=torch.from_numpy(places),
            poster_rows=torch.from_numpy(poster_rows),
            targets=torch.from_numpy(self.labels[rows].astype(np.float32)),
            rows=torch.from_numpy(rows),
            seed=items[0][1],
            resident=self.resident if len(places) else None,
        )
        sizes = [
            (int(movies), int(words), int(posters))
            for movies, words, posters in zip(counts, entries, seen, strict=True)
        ]
        return BatchGroup(joined, sizes, [seed for _, seed in items])


class BatchOrder(Sampler[tuple[np.ndarray, int]]):
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

    Raises:
        ValueError: if a rank would have a batch without a movie.
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
            raise ValueError(f"data.batch_size must be at least 1, not {batch_size}")
        if shuffle and len(rows) < 2 * world_size:
            raise ValueError(f"{len(rows)} movies are too few to train on {world_size} process(es)")
        self.rows = rows
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        if world_size > 1 and len(rows) // world_size < len(self):
            raise ValueError(
                f"{len(rows)} movies can't be shared out over {world_size} processes in batches of "
                f"{batch_size}: take fewer processes or a larger data.batch_size"
            )
        self.given = 0
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
        return iter(self.whole()[self.first :])

    def whole(self) -> list[tuple[np.ndarray, int]]:
        """Every batch of the epoch: its rows, (B,) int64, and the seed of its augmentation."""
        if not self.shuffle:
            own = self.rows[self.rank :: self.world_size]
            return [(rows, 0) for rows in np.array_split(own, len(self))] if len(self) else []
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.rows)
        own = order[self.rank :: self.world_size]
        # Without this, ranks of a world that doesn't divide the movies would differ in length.
        own = own[: len(order) // self.world_size]
        seeds = np.random.default_rng([self.seed, self.epoch, self.rank, 1])
        starts = range(0, len(self) * self.batch_size, self.batch_size)
        return [(own[at : at + self.batch_size], int(seeds.integers(2**62))) for at in starts]


class MovieLoader(DataLoader[MovieBatch]):
    """Batches in a :class:`BatchOrder`; Lightning can save it and go on with it in mid-epoch.

    Batches are gathered and prepared a few together, since most of that work takes as long for one
    as for several. Groups begin at the same batches wherever an epoch is taken up, so a resumed
    run computes each batch among the same others.

    Args:
        batches: of all movies.
        order: which of them, and when.
        prepare: what is done to each group; None for nothing.
        together: number of batches in a group.
    """

    def __init__(
        self,
        batches: MovieBatches,
        order: BatchOrder,
        prepare: Callable[[BatchGroup], BatchGroup] | None = None,
        together: int = 1,
    ) -> None:
        super().__init__(
            batches,
            sampler=order,
            batch_size=None,
            pin_memory=torch.cuda.is_available(),
            # Or a pass might draw from the global generator, and a resumed run makes more passes.
            generator=torch.Generator(),
        )
        self.batches = batches
        self.order = order
        self.prepare = prepare
        self.together = together

    def __iter__(self) -> Iterator[MovieBatch]:  # type: ignore[override]
        """The epoch's batches; while a group is in use, the posters of the next are asked for."""
        items, first = self.order.whole(), self.order.first
        groups = [items[at : at + self.together] for at in range(0, len(items), self.together)]
        for number, group in enumerate(groups):
            begin = number * self.together
            if begin + len(group) <= first:
                continue
            if self.order.shuffle and number + 1 < len(groups):
                self.batches.read_ahead(np.concatenate([rows for rows, _ in groups[number + 1]]))
            for place, batch in enumerate(self._ready(group), begin):
                if place >= first:
                    self.order.given = place + 1
                    yield batch

    def _ready(self, items: list[tuple[np.ndarray, int]]) -> list[MovieBatch]:
        group = self.batches.gather(items)
        if self.pin_memory:
            group = replace(group, joined=group.joined.pin_memory())
        return (group if self.prepare is None else self.prepare(group)).batches()

    def state_dict(self) -> dict[str, int]:
        return self.order.state_dict()

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.order.load_state_dict(state)
