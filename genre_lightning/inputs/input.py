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

#: A user's value for a column: a text, or a poster as a path, bytes or an open image.
Value = Any
#: Maximum length of a movie's vector.
MAX_WIDTH = 65_536
Self = TypeVar("Self", bound="Input")


@dataclass(frozen=True)
class Store:
    """Where inputs store the numbers that they compute.

    Attributes:
        folder: holds all caches; safe to share between processes.
        workers: number of decoding threads; None for one per core.
        progress: show progress on standard error.
    """

    folder: Path
    workers: int | None = None
    progress: bool = True


class Features(ABC):
    """An input's numbers for all N movies of a dataset.

    Attributes:
        row_index: (N,) int64, the row of each movie's numbers; -1 for a movie without.
        unreadable: name and reason of each value that exists but could not be read.
        dense: the numbers as one array, indexed by ``row_index`` along its first dimension, which
            can then be kept on the training device; None for other kinds of numbers.
        name: the key of the dense numbers among the network's arguments.
        unknown: ids in a user's file that no movie has, each with its origin, for messages.
    """

    row_index: np.ndarray
    unreadable: Sequence[tuple[str, str]]
    dense: np.ndarray | None
    name: str
    unknown: Mapping[str, str] = MappingProxyType({})

    @abstractmethod
    def gather(
        self, rows: np.ndarray, counts: np.ndarray
    ) -> tuple[dict[str, Tensor], dict[str, list[int]]]:
        """Gather the numbers of K batches, concatenated.

        Args:
            rows: (P,) int64, rows of the movies that have numbers, batch after batch.
            counts: (K,) int64, number of rows in each batch.

        Returns:
            The tensors by name, and by the same names the K batches' lengths along the first
            dimension.
        """

    @abstractmethod
    def read_ahead(self, rows: np.ndarray) -> None:
        """Ask the operating system to start reading these rows into memory; do not wait."""


class DenseFeatures(Features):
    """Features stored as one array, which can be memory-mapped.

    Args:
        name: the network's argument that takes the numbers.
        dense: (M, ...), one row per movie that has numbers, or per file that movies share.
        row_index: see :class:`Features`.
        unreadable: see :class:`Features`.
    """

    dense: np.ndarray

    def __init__(
        self,
        name: str,
        dense: np.ndarray,
        row_index: np.ndarray,
        unreadable: Sequence[tuple[str, str]] = (),
    ) -> None:
        self.name = name
        self.dense = dense
        self.row_index = row_index
        self.unreadable = unreadable

    def gather(
        self, rows: np.ndarray, counts: np.ndarray
    ) -> tuple[dict[str, Tensor], dict[str, list[int]]]:
        import torch

        gathered = np.take(self.dense, rows, axis=0)
        return {self.name: torch.from_numpy(gathered)}, {self.name: counts.tolist()}

    def read_ahead(self, rows: np.ndarray) -> None:
        from genre_lightning.store import prefetch_rows

        prefetch_rows(self.dense, rows)


class Input(ABC):
    """Turns one column into numbers, in the same way for training, evaluation and prediction.

    An input learns only from train. A checkpoint stores the learnt state as plain data. The
    checkpoint can be untrusted, so :meth:`from_state` checks all of it.

    To add an input, write a final class with these methods and add a line to ``inputs/table.py``.

    Attributes:
        kind: short name in configs and checkpoints.
        gives: the kind of numbers, which the network must take: "terms", "pixels" or "vectors".
        of: the kind of column that the input reads: "text", "poster" or "id".
        column: the column's name.
    """

    kind: ClassVar[str]
    gives: ClassVar[str]
    of: str
    column: str

    @property
    @abstractmethod
    def fitted(self) -> bool:
        """Whether the input can encode: it has been fitted, or has nothing to learn."""

    @property
    def uses_year(self) -> bool:
        """Whether it reads the release year in a text, as in "Heat (1995)"."""
        return False

    @abstractmethod
    def network_arguments(self) -> dict[str, Any]:
        """Return the arguments that describe the numbers to any network, such as their width."""

    @abstractmethod
    def bytes_per_movie(self) -> int:
        """Return the approximate size of a movie's prepared numbers in bytes."""

    @abstractmethod
    def open(self, values: Sequence[Value | None], train: np.ndarray, store: Store) -> Features:
        """Return the numbers of a whole dataset, read from the store or computed and stored.

        Args:
            values: one per movie (N), None for a movie that lacks the column.
            train: (n,) int64, the movies to learn from; a fitted input ignores them.
            store: where stored numbers are read and written.
        """

    @abstractmethod
    def read(self, value: Value) -> Any:
        """Check and decode one value of a new movie.

        Return None if the value holds nothing for this input; the movie then counts as lacking the
        column.

        Raises:
            InputError: the value can't be read; the message is the reason.
            TypeError: the value has a type that no such column has.
        """

    @abstractmethod
    def encode(self, items: Sequence[Any]) -> dict[str, Tensor]:
        """Return the numbers of P values from :meth:`read`, in the form of stored ones."""

    @abstractmethod
    def prepare(self, numbers: Numbers, seeds: Sequence[tuple[int, int]] | None) -> Numbers:
        """Convert the numbers to the network's arguments, on the device they are on.

        Args:
            numbers: of P movies, as gathered or encoded.
            seeds: for random augmentation in training, (number of movies, seed) of one batch after
                another. None for no augmentation.
        """

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Return settings and learnt values as plain data.

        Plain data are numbers, strings, None, and lists and dicts of them.
        """

    @classmethod
    @abstractmethod
    def from_state(cls: type[Self], state: Mapping[str, Any]) -> Self:
        """Rebuild an input from its :meth:`state`, which can be untrusted.

        Raises:
            ValueError: naming the key that is missing, unknown, out of range or has a wrong type.
        """


def check_features(branch_input: Input, features: Features, num_movies: int) -> None:
    """Check that an input's numbers are as it declares them, before a network fails on them.

    All of ``row_index`` is checked, and for vectors also the numbers of one movie.

    Args:
        branch_input: the input.
        features: the result of its :meth:`Input.open`.
        num_movies: N, of the dataset.

    Raises:
        ValueError: naming the class and what it should have returned.
    """
    name = type(branch_input).__name__
    given: Any = features
    if not isinstance(given, Features):
        raise ValueError(f"{name}.open gave a {type(given).__name__}, not Features")
    row_index = features.row_index
    if row_index.shape != (num_movies,) or row_index.dtype != np.int64:
        raise ValueError(
            f"{name}.open gave a row_index of {row_index.dtype} and shape {row_index.shape}, not "
            f"of int64 and shape ({num_movies},): one row for each movie, -1 for those without the "
            "column"
        )
    rows = row_index[row_index >= 0]
    if features.dense is not None and len(rows) and rows.max() >= len(features.dense):
        raise ValueError(
            f"{name}.open gave rows up to {rows.max()}, and numbers for {len(features.dense)}"
        )
    if branch_input.gives == "vectors" and len(rows):
        numbers, _ = features.gather(rows[:1], np.array([1]))
        check_prepared(branch_input, branch_input.prepare(numbers, None), 1)


def check_prepared(branch_input: Input, prepared: Numbers, num_movies: int) -> None:
    """Check that an input's prepared numbers are as it declares them, if they are vectors.

    Args:
        branch_input: the input.
        prepared: the result of its :meth:`Input.prepare`.
        num_movies: P.

    Raises:
        ValueError: naming the class and what it should have returned.
    """
    if branch_input.gives != "vectors":
        return
    found = {
        key: (tuple(value.shape), str(value.dtype).removeprefix("torch."))
        for key, value in prepared.items()
    }
    shape = (num_movies, branch_input.network_arguments()["width"])
    if found != {"vectors": (shape, "float32")}:
        described = ", ".join(f"{key} {shape} {dtype}" for key, (shape, dtype) in found.items())
        movies = "one movie" if num_movies == 1 else f"{num_movies} movies"
        raise ValueError(
            f"{type(branch_input).__name__} gives {described} for {movies}, not vectors {shape} "
            "float32, as its network_arguments say"
        )
    if not bool(prepared["vectors"].isfinite().all()):
        raise ValueError(
            f"{type(branch_input).__name__} gives vectors with numbers that are not finite (NaN or "
            "infinite), which make every score NaN"
        )


def derive_seed(purpose: str, seed: int) -> int:
    """Derive a seed for one kind of random draws, independent of other kinds.

    Args:
        purpose: what is drawn.
        seed: of a batch.

    Returns: a number from 0 to 2**62 - 1.
    """
    digest = hashlib.blake2b(f"{purpose} {seed}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 2


def build_row_index(present: Sequence[bool]) -> np.ndarray:
    """Number the movies that have a value, for :attr:`Features.row_index`.

    Args:
        present: for each of N movies, whether it has a value.

    Returns:
        (N,) int64: 0, 1, 2, ... for the movies that have a value, -1 for the others.
    """
    mask = np.array(present, dtype=bool)
    return np.where(mask, np.cumsum(mask) - 1, -1).astype(np.int64)


def check_arguments(
    input_class: type[Input], arguments: Collection[str], exclude: Collection[str] = ()
) -> None:
    """Check a configuration's arguments for unknown and missing ones.

    Args:
        input_class: class of the input.
        arguments: names of the arguments in the configuration.
        exclude: arguments of the class that a configuration can't set.

    Raises:
        ValueError: naming the argument.
    """
    parameters = inspect.signature(input_class).parameters.items()
    known = {name: parameter for name, parameter in parameters if name not in exclude}
    for name in arguments:
        if name not in known:
            raise ValueError(f"{name}: the input {input_class.kind} has {', '.join(known)}")
    for name, parameter in known.items():
        if parameter.default is parameter.empty and name not in arguments:
            raise ValueError(f"{name} has to be given: the input {input_class.kind} needs it")


def check_text(value: Value) -> str:
    """Return a text column's value, checked for :meth:`Input.read`.

    Raises:
        TypeError: the value is not a string.
    """
    if not isinstance(value, str):
        raise TypeError(f"of type {type(value).__name__}, not a string")
    return value


def check_keys(state: Mapping[str, Any], known: Sequence[str]) -> None:
    """Check a state for missing and unknown keys.

    Raises:
        ValueError: naming the key.
    """
    for name in (*known, *state):
        if name not in state:
            raise ValueError(f"{name} is missing")
        if name not in known:
            raise ValueError(f"unknown key {name!r:.100}")
