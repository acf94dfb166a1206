"""Numbers from a user's file, by movie id."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np
import torch
from torch import Tensor

from genre_lightning.cells import unguard
from genre_lightning.errors import InputError
from genre_lightning.inputs.input import (
    MAX_WIDTH,
    DenseFeatures,
    Features,
    Input,
    Store,
    check_keys,
)
from genre_lightning.inputs.part import Numbers
from genre_lightning.inputs.plain_text import is_plain_text
from genre_lightning.movies.movie import DAMAGED_ZIP

#: Maximum number of opening brackets in a path; names of sweep folders contain lists, as in
#: show=[title,poster].
MAX_BRACKETS = 8
#: Probabilities are clipped to this distance from 0 and 1 before taking log-odds.
MIN_PROBABILITY = 0.005

#: Errors that reading a damaged .npz, or a file that is not one, can raise.
_NPZ_ERRORS = (*DAMAGED_ZIP, TypeError, AttributeError, MemoryError, SyntaxError, LookupError)


def read_vectors(path: Path) -> tuple[list[str], np.ndarray]:
    """Read the ids and vectors of a file.

    Args:
        path: ``.npz`` with ``ids``, (N,) strings or integers, and ``x``, (N, D) numbers; or
            ``.csv`` with a header, a column ``id`` and D columns of numbers.

    Returns:
        N unique ids, and (N, D) float32.

    Raises:
        InputError: naming the file, and the row if there is one.
    """
    # An untrusted checkpoint could also name a device that never ends.
    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    try:
        ids, x = _read_csv(path) if path.suffix.lower() == ".csv" else _read_npz(path)
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror or error})") from error
    if x.ndim != 2 or len(x) != len(ids) or not 1 <= x.shape[1] <= MAX_WIDTH:
        raise InputError(
            f"{path}: x is {x.shape} for {len(ids)} ids; it must be (N, D), D up to {MAX_WIDTH}"
        )
    with np.errstate(over="ignore"):
        x = x.astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(x).all(axis=1))
    if len(bad):
        raise InputError(
            f"{path}: the vector of id {ids[bad[0]]!r:.200} has a number that is not finite, or "
            "too large for float32"
        )
    counts = Counter(ids)
    if len(counts) < len(ids):
        ((duplicate, _),) = counts.most_common(1)
        raise InputError(f"{path}: the id {duplicate!r:.200} comes more than once")
    return ids, x


def _read_npz(path: Path) -> tuple[list[str], np.ndarray]:
    """Read the ids and the array of an ``.npz``; errors as in :func:`read_vectors`."""
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [name for name in ("ids", "x") if name not in file]
            if missing:
                raise InputError(f"{path}: it has no {missing[0]!r}; ids and x are needed")
            ids, x = file["ids"], file["x"]
        if ids.ndim != 1 or ids.dtype.kind not in "USiu" or x.dtype.kind not in "fiu":
            raise InputError(f"{path}: ids must be strings or integers, and x numbers")
        names = [
            value.decode() if isinstance(value, bytes) else str(value) for value in ids.tolist()
        ]
    except InputError:
        raise
    except _NPZ_ERRORS as error:
        raise InputError(f"{path}: not an .npz of plain arrays ({error!s:.300})") from error
    return names, x


def _read_csv(path: Path) -> tuple[list[str], np.ndarray]:
    """Read the ids and the array of a CSV; errors as in :func:`read_vectors`."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8") from error
    ids: list[str] = []
    rows: list[list[float]] = []
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [cell.strip().lower() for cell in next(reader, [])]
        if header.count("id") != 1 or len(header) < 2:
            raise InputError(f"{path}:1: one column id and columns of numbers are needed")
        id_column = header.index("id")
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                problem = f"{len(cells)} cells, but the header has {len(header)}"
                raise InputError(f"{path}:{reader.line_num}: {problem}")
            ids.append(unguard(cells.pop(id_column).strip()))
            rows.append([float(cell) for cell in cells])
    except InputError:
        raise
    except (csv.Error, ValueError) as error:
        raise InputError(f"{path}:{reader.line_num}: {error}") from error
    return ids, np.array(rows, dtype=np.float64).reshape(len(rows), len(header) - 1)


def _log_odds(x: np.ndarray) -> np.ndarray:
    """Convert probabilities in 0..1 to log-odds, as float32."""
    clipped = x.astype(np.float64).clip(MIN_PROBABILITY, 1 - MIN_PROBABILITY)
    odds: np.ndarray = (np.log(clipped) - np.log1p(-clipped)).astype(np.float32)
    return odds


@final
class VectorsInput(Input):
    """Vectors from a user's file, looked up by movie id.

    The numbers are ``vectors``, (P, D) float32. A movie whose id is not in the file lacks them, and
    so does one that is predicted without a vector.

    Args:
        path: the file, see :func:`read_vectors`.
        log_odds: convert the file's numbers, which must be probabilities in 0..1, to log-odds.
    """

    kind: ClassVar[str] = "vectors"
    gives: ClassVar[str] = "vectors"
    of: str = "id"

    def __init__(self, path: str, log_odds: bool = False) -> None:
        if not path:
            raise ValueError("path: no file is given")
        try:
            absolute = str(Path(path).expanduser().resolve())
        except (OSError, RuntimeError, TypeError, ValueError):  # a loop of links, an unknown ~user
            raise ValueError(f"path: {path!r:.200} is not a valid path") from None
        self._configure(absolute, log_odds)

    def _configure(self, path: str, log_odds: bool) -> None:
        """Check and keep the settings from a configuration or a checkpoint.

        Raises:
            ValueError: naming the setting that is not valid.
        """
        usable = is_plain_text(path, brackets=True)
        usable = usable and path.count("[") + path.count("{") <= MAX_BRACKETS
        if not usable or not Path(path).is_absolute() or len(path) > 4096:
            raise ValueError(
                f'path: {path!r:.200} is not a valid path, or contains " or \\, or more than '
                f"{MAX_BRACKETS} brackets"
            )
        if type(log_odds) is not bool:
            raise ValueError(f"log_odds: {log_odds!r:.100} is neither true nor false")
        self.column = "id"
        self.path = path
        self.log_odds = log_odds
        self.width: int | None = None

    @property
    def fitted(self) -> bool:
        return self.width is not None

    def network_arguments(self) -> dict[str, Any]:
        if self.width is None:
            raise RuntimeError("open() comes first")
        return {"width": self.width}

    def bytes_per_movie(self) -> int:
        return 4 * (self.width or 1)

    def open(self, values: Sequence[str | None], train: np.ndarray, store: Store) -> Features:
        ids, x = read_vectors(Path(self.path))
        if self.width is not None and x.shape[1] != self.width:
            raise InputError(
                f"{self.path}: {x.shape[1]} numbers per movie, but the model was trained on "
                f"{self.width}"
            )
        self.width = x.shape[1]
        row_of = {identifier: row for row, identifier in enumerate(ids)}
        row_index = np.array([row_of.get(str(value), -1) for value in values], dtype=np.int64)
        if len(values) and (row_index < 0).all():
            raise InputError(
                f"{self.path}: none of its {len(ids):,} ids is in the dataset, whose ids are such "
                f"as {values[0]!r}"
            )
        if self.log_odds:
            if x.min(initial=0) < 0 or x.max(initial=0) > 1:
                raise InputError(f"{self.path}: log_odds needs probabilities in 0..1")
            x = _log_odds(x)
        features = DenseFeatures("vectors", x, row_index)
        features.unknown = dict.fromkeys(row_of.keys() - set(values), f"{self.path}, ids")
        return features

    def read(self, value: Any) -> np.ndarray:
        """Check a movie's vector, which new movies bring in place of an id.

        With ``log_odds`` it must hold probabilities, as the file does.

        Raises:
            TypeError: the value is not a vector of D numbers.
            InputError: a number is not finite, too large for float32, or not a probability.
        """
        try:
            vector = np.asarray(value)
        except ValueError:  # nested lists of different lengths
            vector = np.empty(0, dtype=object)
        if vector.dtype.kind not in "fiu" or vector.shape != (self.width,):
            raise TypeError(f"not a vector of {self.width} numbers")
        with np.errstate(over="ignore"):
            vector = vector.astype(np.float32)
        if not np.isfinite(vector).all():
            raise InputError("it has a number that is not finite")
        if self.log_odds:
            if vector.min() < 0 or vector.max() > 1:
                raise InputError("log_odds needs probabilities in 0..1")
            vector = _log_odds(vector)
        return vector

    def encode(self, items: Sequence[np.ndarray]) -> dict[str, Tensor]:
        stacked = np.stack(items) if items else np.zeros((0, self.width or 1), dtype=np.float32)
        return {"vectors": torch.from_numpy(stacked)}

    def prepare(self, numbers: Numbers, seeds: Sequence[tuple[int, int]] | None) -> Numbers:
        return numbers

    def state(self) -> dict[str, Any]:
        return {
            "column": self.column,
            "path": self.path,
            "log_odds": self.log_odds,
            "width": self.width,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> VectorsInput:
        check_keys(state, ("column", "path", "log_odds", "width"))
        if type(state["path"]) is not str:
            raise ValueError(f"path: {state['path']!r:.100} is no text")
        if state["column"] != "id":
            raise ValueError(f"column: {state['column']!r:.100} is not id")
        width = state["width"]
        if type(width) is not int or not 1 <= width <= MAX_WIDTH:
            raise ValueError(f"width: {width!r:.100} is not in 1..{MAX_WIDTH}")
        instance = cls.__new__(cls)
        instance._configure(state["path"], state["log_odds"])
        instance.width = width
        return instance
