"""The release year in a title, as a smooth vector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, final

import numpy as np
import torch
from torch import Tensor

from genre_lightning.errors import InputError
from genre_lightning.inputs.input import (
    DenseFeatures,
    Features,
    Input,
    Store,
    build_row_index,
    check_keys,
    check_text,
)
from genre_lightning.inputs.part import Numbers
from genre_lightning.inputs.titles import check_years, normalise_title


@final
class YearInput(Input):
    """A title's release year as Gaussians around every few years: near years have similar vectors.

    The numbers are ``vectors``, (P, K) float32: Gaussians of the distance to each of K centres,
    scaled to length 1. Years are clamped to the range seen in train, so that a newer movie counts
    as one of the newest year that the model has learnt. A title without a year lacks the column.

    Args:
        column: name of the column of titles.
        spacing: years between two centres.
        width: standard deviation of each Gaussian, in years.

    Raises:
        ValueError: naming the argument that is out of range.
    """

    kind: ClassVar[str] = "year"
    gives: ClassVar[str] = "vectors"
    of: str = "text"

    def __init__(self, column: str = "title", spacing: int = 5, width: float = 5.0) -> None:
        if type(spacing) is not int or not 1 <= spacing <= 100:
            raise ValueError(f"spacing: {spacing!r:.100} is not in 1..100")
        if type(width) not in (int, float) or not 0.1 <= width <= 100:
            raise ValueError(f"width: {width!r:.100} is not in 0.1..100")
        self.column = column
        self.spacing = spacing
        self.width = float(width)
        self.years: tuple[int, int] | None = None

    @property
    def fitted(self) -> bool:
        return self.years is not None

    @property
    def centres(self) -> np.ndarray:
        """(K,) float64 years, which span the range seen in train."""
        if self.years is None:
            raise RuntimeError("open() comes first")
        first, last = self.years
        return np.arange(first, last + self.spacing, self.spacing, dtype=np.float64)

    @property
    def uses_year(self) -> bool:
        return True

    def network_arguments(self) -> dict[str, Any]:
        return {"width": len(self.centres)}

    def bytes_per_movie(self) -> int:
        return 256

    def open(self, values: Sequence[str | None], train: np.ndarray, store: Store) -> Features:
        years = [normalise_title(value)[1] if value else None for value in values]
        if self.years is None:
            train_years = [year for row in train.tolist() if (year := years[row]) is not None]
            if not train_years:
                raise InputError(
                    f"column {self.column}: no text of train has a year in brackets, as in "
                    '"Heat (1995)"'
                )
            self.years = min(train_years), max(train_years)
        row_index = build_row_index([year is not None for year in years])
        known = [year for year in years if year is not None]
        return DenseFeatures("vectors", self._encode_years(known), row_index)

    def read(self, value: Any) -> int | None:
        """Return a text's year; None if there is none, which counts as lacking the column."""
        return normalise_title(check_text(value))[1]

    def encode(self, items: Sequence[int]) -> dict[str, Tensor]:
        return {"vectors": torch.from_numpy(self._encode_years(items))}

    def prepare(self, numbers: Numbers, seeds: Sequence[tuple[int, int]] | None) -> Numbers:
        return numbers

    def _encode_years(self, years: Sequence[int]) -> np.ndarray:
        """Return the vectors of P years, (P, K) float32."""
        if self.years is None:
            raise RuntimeError("open() comes first")
        centres = self.centres
        clamped = np.array(years, dtype=np.float64).clip(*self.years)
        exponent = -0.5 * ((clamped[:, None] - centres) / self.width) ** 2
        # Scale the nearest centre to 1: narrow Gaussians could underflow to 0 at all centres.
        weights = np.exp(exponent - exponent.max(axis=1, keepdims=True, initial=-np.inf))
        vectors: np.ndarray = weights / np.linalg.norm(weights, axis=1, keepdims=True)
        return vectors.astype(np.float32)

    def state(self) -> dict[str, Any]:
        return {
            "column": self.column,
            "spacing": self.spacing,
            "width": self.width,
            "years": None if self.years is None else list(self.years),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> YearInput:
        check_keys(state, ("column", "spacing", "width", "years"))
        instance = cls(state["column"], state["spacing"], state["width"])
        instance.years = check_years(state["years"])
        return instance
