"""The half of a branch that turns a column into numbers."""

from __future__ import annotations

import hashlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar

import numpy as np
from torch import Tensor

from genre_lightning.inputs.part import Numbers

#: What a user hands in for a column: a text; or a poster's path, bytes or open image.
Value = Any
#: The most numbers of a movie's vector.
MAX_WIDTH = 65_536
Self = TypeVar("Self", bound="Input")


@dataclass(frozen=True)
class Store:
    """Where inputs keep what they have computed.

    Attributes:
        folder: of all caches; safe to share between processes.
        workers: threads that decode; None for one per core.
        progress: show bars on standard error, if that is a terminal.
    """

    folder: Path
    workers: int | None = None
    progress: bool = True


class Features(ABC):
    """An input's numbers of all N movies of a dataset.

    Attributes:
        place: (N,) int64, where each movie's numbers are; -1 for a movie without.
        unreadable: name and reason of each value that is there and could not be read.
        dense: the numbers as one array whose first dimension ``place`` counts, if they are such an
            array: it can then be kept on the device that trains. None for others.
        name: of the dense numbers.
        unknown: ids in a file of the user's that no movie has, and where each is, for messages.
    """

    place: np.ndarray
    unreadable: Sequence[tuple[str, str]]
    dense: np.ndarray | None
    name: str
    unknown: Mapping[str, str] = MappingProxyType({})

    @abstractmethod
    def gather(
        self, places: np.ndarray, counts: np.ndarray
    ) -> tuple[dict[str, Tensor], dict[str, list[int]]]:
        """The numbers of K batches, end to end.

        Args:
            places: (P,) int64 of the movies that have some, one batch after another.
            counts: (K,) int64, how many of them are each batch's.

        Returns:
            The numbers, and for each of them K lengths along its first dimension.
        """

    @abstractmethod
    def read_ahead(self, places: np.ndarray) -> None:
        """Have the system begin to read these places into memory, without waiting for it."""


class DenseFeatures(Features):
    """Numbers that are one array, maybe memory-mapped.

    Args:
        name: of the network's argument that they are for.
        dense: (M, ...), a row for each place.
        place: see :class:`Features`, as the last one.
    """

    dense: np.ndarray

    def __init__(
        self,
        name: str,
        dense: np.ndarray,
        place: np.ndarray,
        unreadable: Sequence[tuple[str, str]] = (),
    ) -> None:
        self.name = name
        self.dense = dense
        self.place = place
        self.unreadable = unreadable

    def gather(
        self, places: np.ndarray, counts: np.ndarray
    ) -> tuple[dict[str, Tensor], dict[str, list[int]]]:
        import torch

        taken = np.take(self.dense, places, axis=0)
        return {self.name: torch.from_numpy(taken)}, {self.name: counts.tolist()}

    def read_ahead(self, places: np.ndarray) -> None:
        from genre_lightning.store import advise

        advise(self.dense, places)


class Input(ABC):
    """Turns one column into numbers, the same in training, evaluation and prediction.

    What it learns it learns from train alone. What it has learnt is plain data, which a checkpoint
    carries; the checkpoint may be untrusted, so :meth:`from_state` checks all of it.

    To add one: a final class with these methods, and a line in ``inputs/table.py``.

    Attributes:
        kind: the short name by which configs and checkpoints call it.
        gives: what a network must take to fit: "terms", "pixels" or "vectors".
        of: "text", "poster" or "id", the kind of column it looks at.
        column: the column's name.
    """

    kind: ClassVar[str]
    gives: ClassVar[str]
    of: str
    column: str

    @property
    @abstractmethod
    def fitted(self) -> bool:
        """Whether it can encode: it has learnt from a dataset, or has nothing to learn."""

    @abstractmethod
    def network_arguments(self) -> dict[str, Any]:
        """Arguments of every network that takes these numbers, such as their width."""

    @abstractmethod
    def bytes_per_movie(self) -> int:
        """About how many bytes a movie's prepared numbers take."""

    @abstractmethod
    def open(self, values: Sequence[Value | None], train: np.ndarray, store: Store) -> Features:
        """The numbers of a whole dataset, from the store or computed into it.

        Args:
            values: of N movies, None for a movie that lacks the column.
            train: (n,) int64, the movies to learn from; an input that is fitted learns nothing.
            store: where to look and to write.
        """

    @abstractmethod
    def read(self, value: Value) -> Any:
        """One value of a movie never seen before, checked and decoded.

        None where the input finds nothing in it: the movie then counts as lacking the column.

        Raises:
            InputError: it can't be read; the message is the reason.
            TypeError: it is of a type that no such column has.
        """

    @abstractmethod
    def encode(self, items: Sequence[Any]) -> dict[str, Tensor]:
        """The numbers of P values, each from :meth:`read`, as a store would hold them."""

    @abstractmethod
    def prepare(self, numbers: Numbers, seeds: Sequence[tuple[int, int]] | None) -> Numbers:
        """The numbers as the network takes them, on the device where they are.

        Args:
            numbers: of P movies, as gathered or encoded.
            seeds: for training, where values are varied at random: (number of movies, seed) of one
                batch after another. None to vary nothing.
        """

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """All of it as plain data: numbers, strings, None, and lists and dicts of them."""

    @classmethod
    @abstractmethod
    def from_state(cls: type[Self], state: Mapping[str, Any]) -> Self:
        """What :meth:`state` gave, from data that may be untrusted.

        Raises:
            ValueError: naming the key that is missing, unknown, of a wrong type or out of range.
        """


def check_features(branch_input: Input, features: Features, num_movies: int) -> None:
    """Refuse numbers that are not what an input says it gives, before a network stumbles on them.

    One movie's numbers are looked at.

    Args:
        branch_input: the input.
        features: what its :meth:`Input.open` returned.
        num_movies: N, of the dataset.

    Raises:
        ValueError: naming the class and what it should have given.
    """
    name = type(branch_input).__name__
    place = features.place
    if place.shape != (num_movies,) or place.dtype != np.int64:
        raise ValueError(
            f"{name}.open gave a place of {place.dtype} and shape {place.shape}, not of int64 and "
            f"shape ({num_movies},): one for each movie, -1 for those without the column"
        )
    there = place[place >= 0]
    if features.dense is not None and len(there) and there.max() >= len(features.dense):
        raise ValueError(
            f"{name}.open gave places up to {there.max()}, and numbers for {len(features.dense)}"
        )
    if branch_input.gives != "vectors" or not len(there):
        return
    numbers, _ = features.gather(there[:1], np.array([1]))
    prepared = {
        key: (tuple(value.shape), str(value.dtype).removeprefix("torch."))
        for key, value in branch_input.prepare(numbers, None).items()
    }
    width = branch_input.network_arguments()["width"]
    if prepared != {"vectors": ((1, width), "float32")}:
        described = ", ".join(f"{key} {shape} {dtype}" for key, (shape, dtype) in prepared.items())
        raise ValueError(
            f"{name} gives {described} for one movie, not vectors (1, {width}) float32, as its "
            "network_arguments say"
        )


def seed_for(purpose: str, seed: int) -> int:
    """A seed for draws of one kind, as if independent of those of others by the same seed.

    Args:
        purpose: what is drawn.
        seed: of a batch.

    Returns: in 0 to 2**62 - 1.
    """
    digest = hashlib.blake2b(f"{purpose} {seed}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 2


def number_present(present: Sequence[bool]) -> np.ndarray:
    """The ``place`` of :class:`Features` where the numbers of a movie that has some come in order.

    Args:
        present: for each of N movies, whether it has any.

    Returns:
        (N,) int64: 0, 1, 2, ... for the movies that have some, -1 for the others.
    """
    has = np.array(present, dtype=bool)
    return np.where(has, np.cumsum(has) - 1, -1).astype(np.int64)


def check_arguments(
    made: type[Input], arguments: Collection[str], apart_from: Collection[str] = ()
) -> None:
    """Refuse arguments of a configuration that an input has not, or lacks.

    Args:
        made: class of the input.
        arguments: their names.
        apart_from: arguments of the class that the configuration has no say in.

    Raises:
        ValueError: naming the argument.
    """
    parameters = inspect.signature(made).parameters.items()
    known = {name: parameter for name, parameter in parameters if name not in apart_from}
    for name in arguments:
        if name not in known:
            raise ValueError(f"{name}: the input {made.kind} has {', '.join(known)}")
    for name, parameter in known.items():
        if parameter.default is parameter.empty and name not in arguments:
            raise ValueError(f"{name} has to be given: the input {made.kind} needs it")


def check_text(value: Value) -> str:
    """A value of a column of text, for :meth:`Input.read`.

    Raises:
        TypeError: it is no string.
    """
    if not isinstance(value, str):
        raise TypeError(f"of type {type(value).__name__}, not a string")
    return value


def check_keys(state: Mapping[str, Any], known: Sequence[str]) -> None:
    """Refuse a state that lacks a key, or has one that its input does not write.

    Raises:
        ValueError: naming the key.
    """
    for name in (*known, *state):
        if name not in state:
            raise ValueError(f"{name} is missing")
        if name not in known:
            raise ValueError(f"unknown key {name!r:.100}")
