"""Any text as sparse TF-IDF terms."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np
import torch
from torch import Tensor

from genre_lightning.errors import InputError
from genre_lightning.inputs.input import Features, Input, Store, build_row_index, check_text
from genre_lightning.inputs.part import Numbers
from genre_lightning.inputs.vectorizer import SparseRows, TermVectorizer
from genre_lightning.store import content_key, save_array, stored_folder

#: Part of the key of stored features: raise it when their computation changes.
FEATURES_VERSION = 3


@final
class TermsFeatures(Features):
    """TF-IDF rows of the movies that have the text.

    Args:
        rows: one row per movie that has the text.
        row_index: see :class:`Features`.
    """

    def __init__(self, rows: SparseRows, row_index: np.ndarray) -> None:
        self.rows = rows
        self.row_index = row_index
        self.unreadable = ()
        self.dense = None
        self.name = ""

    def gather(
        self, rows: np.ndarray, counts: np.ndarray
    ) -> tuple[dict[str, Tensor], dict[str, list[int]]]:
        gathered = self.rows.take(rows)
        ends = np.cumsum(counts)
        starts = ends - counts
        num_terms = (gathered.indptr[ends] - gathered.indptr[starts]).tolist()
        offsets = gathered.indptr[:-1] - np.repeat(gathered.indptr[starts], counts)
        return (
            _numbers(gathered.indices, offsets, gathered.weights),
            {"indices": num_terms, "offsets": counts.tolist(), "weights": num_terms},
        )

    def read_ahead(self, rows: np.ndarray) -> None:
        """Do nothing: the rows are in memory."""


@final
class TermsInput(Input):
    """A text's terms, weighted by TF-IDF; the network reads only the non-zero ones.

    The numbers are ``indices``, (L,) int64, the non-zero columns of P texts, concatenated;
    ``offsets``, (P,) int64, the start of each text in ``indices``; ``weights``, (L,) float32.

    Args:
        column: name of the column.
        vocabulary_size, analyzer, ngram_range, sublinear_tf, decade, decade_weight: as for
            :class:`genre_lightning.inputs.vectorizer.TermVectorizer`.
    """

    kind: ClassVar[str] = "terms"
    gives: ClassVar[str] = "terms"
    of: str = "text"

    def __init__(
        self,
        column: str,
        vocabulary_size: int = 8192,
        analyzer: str = "char_wb",
        ngram_range: Sequence[int] = (2, 5),
        sublinear_tf: bool = True,
        decade: bool = False,
        decade_weight: float = 0.5,
    ) -> None:
        self.column = column
        self.vectorizer = TermVectorizer(
            vocabulary_size, analyzer, ngram_range, sublinear_tf, decade, decade_weight
        )

    @property
    def fitted(self) -> bool:
        return self.vectorizer.fitted

    @property
    def uses_year(self) -> bool:
        return self.vectorizer.decade

    def network_arguments(self) -> dict[str, Any]:
        return {"vocabulary_size": self.vectorizer.vocabulary_size}

    def bytes_per_movie(self) -> int:
        return 1024  # some tens of terms

    def open(self, values: Sequence[str | None], train: np.ndarray, store: Store) -> Features:
        row_index = build_row_index([bool(value) for value in values])
        texts = [value for value in values if value]
        if self.fitted:  # by the run whose checkpoint is being evaluated
            return TermsFeatures(self.vectorizer.transform(texts), row_index)
        train_rows = row_index[train]
        train_rows = train_rows[train_rows >= 0]

        def build(folder: Path) -> None:
            try:
                self.vectorizer.fit([texts[index] for index in train_rows])
            except ValueError as error:
                raise InputError(f"column {self.column}: {error}") from error
            rows = self.vectorizer.transform(texts)
            save_array(folder / "indptr.npy", rows.indptr)
            save_array(folder / "indices.npy", rows.indices)
            save_array(folder / "weights.npy", rows.weights)
            (folder / "vectorizer.json").write_text(
                json.dumps(self.vectorizer.state_dict()), encoding="utf-8"
            )

        key = content_key("terms", FEATURES_VERSION, texts, train_rows, self.vectorizer.settings())
        folder = stored_folder(store.folder, "terms", key, build)
        state = json.loads((folder / "vectorizer.json").read_text(encoding="utf-8"))
        self.vectorizer = TermVectorizer.from_state_dict(state)
        parts = (np.load(folder / f"{name}.npy") for name in ("indptr", "indices", "weights"))
        return TermsFeatures(SparseRows(*parts), row_index)

    def read(self, value: Any) -> str:
        return check_text(value)

    def encode(self, items: Sequence[str]) -> dict[str, Tensor]:
        rows = self.vectorizer.transform(items)
        return _numbers(rows.indices, rows.indptr[:-1], rows.weights)

    def prepare(self, numbers: Numbers, seeds: Sequence[tuple[int, int]] | None) -> Numbers:
        return numbers

    def state(self) -> dict[str, Any]:
        return {"column": self.column, **self.vectorizer.state_dict()}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> TermsInput:
        instance = cls(state["column"])
        instance.vectorizer = TermVectorizer.from_state_dict(
            {name: value for name, value in state.items() if name != "column"}
        )
        return instance


def _numbers(indices: np.ndarray, offsets: np.ndarray, weights: np.ndarray) -> dict[str, Tensor]:
    return {
        "indices": torch.from_numpy(indices.astype(np.int64, copy=False)),
        "offsets": torch.from_numpy(offsets.astype(np.int64, copy=False)),
        "weights": torch.from_numpy(weights),
    }
