"""Batches of movies, gathered at once for every branch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from genre_lightning.data.order import BatchOrder
from genre_lightning.inputs.input import Features
from genre_lightning.inputs.part import JoinedPart, Part

#: Name of the indices that stand in for dense features already on the device.
FEATURE_INDEX = "feature_index"


@dataclass(frozen=True)
class MovieBatch:
    """B movies.

    Attributes:
        parts: the input of each branch, by branch.
        targets: (B, G) float32 multi-hot.
        rows: (B,) int64, each movie's row in the dataset.
        folds: (B,) int64, each movie's fold of train; -1 for none.
        seed: seed of this batch's augmentation.
    """

    parts: Mapping[str, Part]
    targets: Tensor
    rows: Tensor
    folds: Tensor
    seed: int

    def __len__(self) -> int:
        return self.targets.shape[0]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> MovieBatch:
        """The batch with every tensor on ``device``."""
        if self.rows.device == torch.device(device):
            return self
        return map_tensors(self, lambda tensor: tensor.to(device, non_blocking=non_blocking))


@dataclass(frozen=True)
class BatchGroup:
    """K batches concatenated, so that one gather, one copy and one preparation serve all of them.

    Attributes:
        parts: the concatenated input of each branch, by branch.
        targets: (N, G) float32, for the N movies of all K batches.
        rows: (N,) int64.
        folds: (N,) int64.
        sizes: number of movies in each batch.
        seeds: augmentation seed of each batch.
    """

    parts: Mapping[str, JoinedPart]
    targets: Tensor
    rows: Tensor
    folds: Tensor
    sizes: Sequence[int]
    seeds: Sequence[int]

    def batches(self) -> list[MovieBatch]:
        """The single batches, each a view into this group."""
        parts = {name: joined.parts() for name, joined in self.parts.items()}
        sizes = list(self.sizes)
        targets, rows, folds = (
            tensor.split(sizes) for tensor in (self.targets, self.rows, self.folds)
        )
        return [
            MovieBatch(
                {name: batch_parts[k] for name, batch_parts in parts.items()},
                targets[k],
                rows[k],
                folds[k],
                seed,
            )
            for k, seed in enumerate(self.seeds)
        ]


_Movies = TypeVar("_Movies", MovieBatch, BatchGroup)


def map_tensors(movies: _Movies, change: Callable[[Tensor], Tensor]) -> _Movies:
    """Apply ``change`` to every tensor of a batch or group, e.g. to move it to a device."""
    return replace(
        movies,
        parts={name: part.map_tensors(change) for name, part in movies.parts.items()},
        targets=change(movies.targets),
        rows=change(movies.rows),
        folds=change(movies.folds),
    )


class MovieBatches:
    """Gathers batches by row: no work per movie, and no copy of data the batch does not need.

    Args:
        features: features of all N movies, by branch.
        labels: (N, G) uint8 multi-hot.
        folds: (N,) int64, each movie's fold of train; None for no folds.

    Attributes:
        resident: dense features kept whole on the training device, by branch. Batches then hold
            ``feature_index``, indices into these features, instead of the numbers.
    """

    def __init__(
        self,
        features: Mapping[str, Features],
        labels: np.ndarray,
        folds: np.ndarray | None = None,
    ) -> None:
        self.features = dict(features)
        self.labels = labels
        self.folds = np.full(len(labels), -1, dtype=np.int64) if folds is None else folds
        self.resident: dict[str, Tensor] = {}

    def read_ahead(self, rows: np.ndarray) -> None:
        """Ask the system to start reading what these rows need, without waiting for it."""
        for name, features in self.features.items():
            if name not in self.resident:
                indices = features.place[rows]
                features.read_ahead(indices[indices >= 0])

    def gather(self, rows_and_seeds: Sequence[tuple[np.ndarray, int]]) -> BatchGroup:
        """Gather batches from ``(rows, seed)`` pairs: rows (B,) int64 and an augmentation seed."""
        rows = np.concatenate([rows for rows, _ in rows_and_seeds])
        sizes = np.array([len(rows) for rows, _ in rows_and_seeds])
        ends = np.cumsum(sizes)
        return BatchGroup(
            {name: self._part(name, rows, ends, ends - sizes) for name in self.features},
            targets=torch.from_numpy(self.labels[rows].astype(np.float32)),
            rows=torch.from_numpy(rows),
            folds=torch.from_numpy(self.folds[rows]),
            sizes=sizes.tolist(),
            seeds=[seed for _, seed in rows_and_seeds],
        )

    def _part(
        self, name: str, rows: np.ndarray, ends: np.ndarray, starts: np.ndarray
    ) -> JoinedPart:
        """The input of one branch for K batches.

        Args:
            name: name of the branch.
            rows: (n,) int64, the movies of all batches, one batch after another.
            ends: (K,) int64, where each batch ends in ``rows``.
            starts: (K,) int64, where each batch begins in ``rows``.
        """
        features = self.features[name]
        indices = features.place[rows]
        present = np.flatnonzero(indices >= 0)
        indices = indices[present]
        counts = np.diff(np.searchsorted(present, ends), prepend=0)
        rows_in_batch = present - np.repeat(starts, counts)
        if name in self.resident:
            numbers = {FEATURE_INDEX: torch.from_numpy(indices)}
            lengths = {FEATURE_INDEX: counts.tolist()}
        else:
            numbers, lengths = features.gather(indices, counts)
        return JoinedPart(Part(torch.from_numpy(rows_in_batch), numbers), counts.tolist(), lengths)


class MovieLoader:
    """Yields batches in a :class:`BatchOrder`; Lightning can save and resume it mid-epoch.

    It is not a PyTorch ``DataLoader``, whose workers and samplers would have nothing to do here.
    Batches are gathered and prepared in groups, since most of that work takes as long for one
    batch as for several. Groups start at the same batches wherever an epoch is resumed, so a
    resumed run prepares each batch together with the same others.

    Args:
        batches: gathers the batches.
        order: the rows of each batch.
        prepare: called on each group; None for no preparation.
        group_size: number of batches in a group.
    """

    def __init__(
        self,
        batches: MovieBatches,
        order: BatchOrder,
        prepare: Callable[[BatchGroup], BatchGroup] | None = None,
        group_size: int = 1,
    ) -> None:
        self.batches = batches
        self.order = order
        self.prepare = prepare
        self.group_size = group_size
        # Lightning calls set_epoch on an attribute of this name, and then also expects a
        # batch_sampler.
        self.sampler = order
        self.batch_sampler = None

    def __len__(self) -> int:
        """Number of batches in an epoch."""
        return len(self.order)

    def __iter__(self) -> Iterator[MovieBatch]:
        """The epoch's batches; while one group is in use, the data of the next is read ahead."""
        items, first_batch = list(self.order), self.order.first_batch
        groups = [
            items[start : start + self.group_size]
            for start in range(0, len(items), self.group_size)
        ]
        for group_number, group in enumerate(groups):
            first_index = group_number * self.group_size
            if first_index + len(group) <= first_batch:
                continue
            if self.order.shuffle and group_number + 1 < len(groups):
                self.batches.read_ahead(
                    np.concatenate([rows for rows, _ in groups[group_number + 1]])
                )
            for index, batch in enumerate(self.prepare_group(group), first_index):
                if index >= first_batch:
                    self.order.num_yielded = index + 1
                    yield batch

    def prepare_group(self, rows_and_seeds: Sequence[tuple[np.ndarray, int]]) -> list[MovieBatch]:
        """Gather and prepare several items of the order together."""
        group = self.batches.gather(rows_and_seeds)
        return (group if self.prepare is None else self.prepare(group)).batches()

    def state_dict(self) -> dict[str, int]:
        return self.order.state_dict()

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.order.load_state_dict(state)
