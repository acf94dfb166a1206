"""Texts as sparse TF-IDF rows of a fixed width, with a title's release decade in the last columns.

Fitting uses scikit-learn. Transforming gives the same numbers in plain Python and numpy, so
prediction does not import scikit-learn, and a checkpoint stores a vectorizer as plain data.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeAlias

import numpy as np

from genre_lightning.inputs.titles import check_years, normalise_title

#: Centres of the soft decade features, one column each: the last columns of V.
DECADES = tuple(range(1910, 2030, 10))
ANALYZERS = ("word", "char", "char_wb", "item")
#: Separates the items of a list, such as a cast: "Tom Hanks|Tim Allen".
ITEM_SEPARATOR = "|"

#: Limits on what is accepted from an untrusted file.
MAX_VOCABULARY_SIZE = 2**20
MAX_NGRAM = 32
MAX_TERM_CHARACTERS = 2**26

_STATE_VERSION = 1
#: Types of the constructor's arguments in a state, and of the state's other entries.
_SETTINGS: dict[str, tuple[type, ...]] = {
    "vocabulary_size": (int,),
    "analyzer": (str,),
    "ngram_range": (list,),
    "sublinear_tf": (bool,),
    "decade": (bool,),
    "decade_weight": (float,),
}
_STATE_TYPES: dict[str, tuple[type, ...]] = {
    "version": (int,),
    **_SETTINGS,
    "terms": (list, type(None)),
    "idf": (list,),
    "years": (list, type(None)),
}
_CHUNK = 4096  # titles transformed at once: bounds the memory of transform

#: A term and where it stands in a text: ``text[start:end]``.
Span: TypeAlias = tuple[str, int, int]


@dataclass(frozen=True, slots=True)
class SparseRows:
    """N titles as rows of a sparse (N, V) matrix, as in the CSR format.

    Attributes:
        indptr: (N + 1,) int64; row n is `indices[indptr[n]:indptr[n + 1]]`, and likewise weights.
        indices: (L,) int32 columns in 0..V-1, ascending in each row.
        weights: (L,) float32.
    """

    indptr: np.ndarray
    indices: np.ndarray
    weights: np.ndarray

    def __len__(self) -> int:
        return len(self.indptr) - 1

    def take(self, rows: np.ndarray | Sequence[int]) -> SparseRows:
        """Select the given rows, (B,) integers in 0..N-1, in the given order.

        Raises:
            IndexError: there is no such row.
        """
        rows = np.asarray(rows, dtype=np.int64)
        if len(rows) and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError(f"rows {rows.min()} to {rows.max()} of {len(self)} titles")
        starts = self.indptr[rows]
        lengths = self.indptr[rows + 1] - starts
        indptr = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum(lengths, out=indptr[1:])
        # Each entry's old position is its position in the result, shifted by its row's old start.
        positions = np.arange(indptr[-1]) + np.repeat(starts - indptr[:-1], lengths)
        return SparseRows(indptr, self.indices[positions], self.weights[positions])


class TermVectorizer:
    """TF-IDF of normalised titles plus soft decade features, (N, V) with a fixed V.

    The terms' columns come first, and unused columns stay empty. With `decade`, the last
    `len(DECADES)` columns encode the release year: triangular weights on the two nearest decade
    centres (1994 is 0.6 of the 1990s and 0.4 of the 2000s). Years are clamped to the range seen in
    fitting, so that a newer movie counts as one of the newest year in train and doesn't use columns
    that the model never learnt. A title without a year has no decade features.

    TF-IDF is scikit-learn's, with smoothed idf and rows of length 1 (Salton & Buckley 1988, "Term-
    weighting approaches in automatic text retrieval"). Words are split at spaces only, so that
    titles of one letter ("M", "Z") are not empty.

    Args:
        vocabulary_size: V, the terms and the decades together.
        analyzer: "word", "char" (n-grams across words), "char_wb" (n-grams within words, each
            padded with spaces) or "item" (whole items of a list, such as the names of a cast,
            separated by ``|``).
        ngram_range: shortest and longest n-gram.
        sublinear_tf: replace each count with 1 + ln(count).
        decade: add the decade features.
        decade_weight: sum of the decade features of a title with a year; the TF-IDF part has
            length 1.

    Raises:
        ValueError: naming the argument that is out of range.
    """

    def __init__(
        self,
        vocabulary_size: int = 8192,
        analyzer: str = "char_wb",
        ngram_range: Sequence[int] = (2, 5),
        sublinear_tf: bool = True,
        decade: bool = True,
        decade_weight: float = 0.5,
    ) -> None:
        if analyzer not in ANALYZERS:
            raise ValueError(f"analyzer: {analyzer!r:.100} is none of {', '.join(ANALYZERS)}")
        if len(ngram_range) != 2 or not 1 <= ngram_range[0] <= ngram_range[1] <= MAX_NGRAM:
            raise ValueError(
                f"ngram_range: shortest and longest length from 1 to {MAX_NGRAM}, "
                f"not {list(ngram_range[:9])}"
            )
        min_size = len(DECADES) + 1 if decade else 1
        if not min_size <= vocabulary_size <= MAX_VOCABULARY_SIZE:
            raise ValueError(
                f"vocabulary_size: {vocabulary_size} is not in {min_size} to {MAX_VOCABULARY_SIZE}"
            )
        if not 0 < decade_weight <= 1000:
            raise ValueError(f"decade_weight: {decade_weight} must be above 0 and at most 1000")
        self.vocabulary_size = vocabulary_size
        self.analyzer = analyzer
        self.ngram_range = (ngram_range[0], ngram_range[1])
        self.sublinear_tf = sublinear_tf
        self.decade = decade
        self.decade_weight = float(decade_weight)
        self.terms: list[str] | None = None
        self._column_of: dict[str, int] = {}
        self._idf = np.zeros(0)
        self._years: tuple[int, int] | None = None

    @property
    def fitted(self) -> bool:
        """Whether a vocabulary has been learnt."""
        return self.terms is not None

    def settings(self) -> dict[str, Any]:
        """The constructor's arguments as plain data."""
        return {
            "vocabulary_size": self.vocabulary_size,
            "analyzer": self.analyzer,
            "ngram_range": list(self.ngram_range),
            "sublinear_tf": self.sublinear_tf,
            "decade": self.decade,
            "decade_weight": self.decade_weight,
        }

    def fit(self, titles: Sequence[str]) -> TermVectorizer:
        """Learn the vocabulary, idf and range of years from the titles of train.

        The vocabulary is the most frequent terms, up to the number of term columns.

        Raises:
            ValueError: no title has a term.
        """
        from sklearn.feature_extraction.text import TfidfVectorizer

        normalised = [self.normalise(title) for title in titles]
        texts = [text for text, _ in normalised]
        years = [year for _, year in normalised if year is not None]
        if not any(True for text in texts for _ in self._ngrams(text)):
            raise ValueError(f"no text of the {len(titles)} given has a term to learn")
        vectorizer = TfidfVectorizer(
            analyzer=_items if self.analyzer == "item" else self.analyzer,
            tokenizer=str.split if self.analyzer == "word" else None,
            token_pattern=None,
            # Whole items have no n-grams, and scikit-learn warns if a range is set.
            ngram_range=(1, 1) if self.analyzer == "item" else self.ngram_range,
            lowercase=False,
            max_features=self._num_term_columns(),
            sublinear_tf=self.sublinear_tf,
        )
        vectorizer.fit(texts)
        terms = [str(term) for term in vectorizer.get_feature_names_out()]
        self._set_vocabulary(terms, vectorizer.idf_, (min(years), max(years)) if years else None)
        return self

    def normalise(self, text: str) -> tuple[str, int | None]:
        """Return the normalised text, from which terms are read, and its year or None.

        Titles go through `normalise_title`; lists of items have no year.
        """
        if self.analyzer != "item":
            return normalise_title(text)
        items = (normalise_title(item)[0] for item in text.split(ITEM_SEPARATOR))
        return ITEM_SEPARATOR.join(item for item in items if item), None

    def transform(self, titles: Sequence[str]) -> SparseRows:
        """Turn N titles into a sparse (N, V) matrix; terms outside the vocabulary are left out.

        Raises:
            RuntimeError: the vectorizer is not fitted.
        """
        if self.terms is None:
            raise RuntimeError("the vectorizer is not fitted yet")
        chunks = [
            self._transform_chunk(titles[start : start + _CHUNK])
            for start in range(0, len(titles), _CHUNK)
        ]
        indptr = np.zeros(len(titles) + 1, dtype=np.int64)
        np.cumsum(np.concatenate([np.zeros(0, np.int64), *(c[0] for c in chunks)]), out=indptr[1:])
        indices = np.concatenate([np.zeros(0, np.int32), *(c[1] for c in chunks)])
        weights = np.concatenate([np.zeros(0, np.float32), *(c[2] for c in chunks)])
        return SparseRows(indptr, indices, weights)

    def locate(self, text: str) -> list[tuple[int, int, int]]:
        """Locate the terms of a title, to explain a model's score.

        Args:
            text: normalised, the first value that `normalise` returns.

        Returns: (column, start, end) of each occurrence of a known term, read from
            `text[start:end]`. The spaces that "char_wb" adds around words are not part of the text,
            so a term that is only padding has start == end.
        """
        spans = _SPANS[self.analyzer](text, *self.ngram_range)
        column_of = self._column_of
        return [(column_of[term], start, end) for term, start, end in spans if term in column_of]

    def name(self, column: int) -> str:
        """Return a column's term, or its decade's year ("1990"); "" for an unused column.

        Raises:
            IndexError: there is no such column.
        """
        if not 0 <= column < self.vocabulary_size:
            raise IndexError(f"column {column} of {self.vocabulary_size}")
        if self.is_decade(column):
            return str(DECADES[column - self._num_term_columns()])
        terms = self.terms or []
        return terms[column] if column < len(terms) else ""

    def is_decade(self, column: int) -> bool:
        """Whether a column is a decade feature and not a term."""
        return column >= self._num_term_columns()

    def state_dict(self) -> dict[str, Any]:
        """Return plain data (str, int, float, bool, list, None) for `from_state_dict`."""
        return {
            "version": _STATE_VERSION,
            **self.settings(),
            "terms": None if self.terms is None else list(self.terms),
            "idf": self._idf.tolist(),
            "years": None if self._years is None else list(self._years),
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> TermVectorizer:
        """Rebuild a vectorizer from data that may be untrusted.

        Raises:
            ValueError: naming the key that is missing, unknown, out of range or has a wrong type.
        """
        _check_state(state)
        try:
            vectorizer = cls(**{name: state[name] for name in _SETTINGS})
            years = None if state["years"] is None else check_years(state["years"])
        except ValueError as error:
            raise ValueError(f"terms: {error}") from None
        if state["terms"] is not None:
            _check_types("idf", state["idf"], float)
            vectorizer._set_vocabulary(state["terms"], state["idf"], years)
        elif state["idf"] or years:
            raise ValueError("terms: idf and years, but no terms")
        return vectorizer

    def _num_term_columns(self) -> int:
        return self.vocabulary_size - (len(DECADES) if self.decade else 0)

    def _set_vocabulary(
        self, terms: Sequence[Any], idf: Sequence[float], years: tuple[int, int] | None
    ) -> None:
        """Set the learnt values, which can be untrusted; ValueError if they are not valid."""
        if not 1 <= len(terms) <= self._num_term_columns():
            raise ValueError(f"terms: {len(terms)} terms for {self._num_term_columns()} columns")
        if len(idf) != len(terms):
            raise ValueError(f"terms: {len(idf)} idf for {len(terms)} terms")
        _check_types("terms", terms, str)
        if not all(terms) or len(set(terms)) < len(terms):
            raise ValueError("terms: terms has an empty one or one twice")
        if sum(map(len, terms)) > MAX_TERM_CHARACTERS:
            raise ValueError(f"terms: terms has over {MAX_TERM_CHARACTERS} characters")
        values = np.asarray(idf, dtype=np.float64)
        if not np.all((values > 0) & (values < 1e6)):  # false for nan too
            raise ValueError("terms: idf is not finite, above 0 and under a million")
        self.terms = list(terms)
        self._column_of = {term: column for column, term in enumerate(terms)}
        self._idf = values
        self._years = years

    def _transform_chunk(self, titles: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return n titles' row lengths (n,) int64, columns (L,) int32 and weights (L,) float32."""
        column_of = self._column_of.get
        ngrams = self._ngrams
        # A word's n-grams do not depend on its neighbours, so a chunk looks up each word once.
        cached: dict[str, list[int]] = {}
        columns: list[int] = []
        ends = [0]
        years: list[int | None] = []
        for title in titles:
            text, year = self.normalise(title)
            for piece in text.split() if self.analyzer == "char_wb" else (text,):
                piece_columns = cached.get(piece)
                if piece_columns is None:
                    piece_columns = [c for c in map(column_of, ngrams(piece)) if c is not None]
                    cached[piece] = piece_columns
                columns += piece_columns
            ends.append(len(columns))
            years.append(year)

        width = self.vocabulary_size
        bounds = np.array(ends, dtype=np.int64)
        rows = np.repeat(np.arange(len(titles), dtype=np.int64), bounds[1:] - bounds[:-1])
        entries, counts = np.unique(
            rows * width + np.array(columns, dtype=np.int64), return_counts=True
        )
        rows, indices = np.divmod(entries, width)
        weights = counts.astype(np.float64)
        if self.sublinear_tf:
            weights = np.log(weights) + 1.0
        weights *= self._idf[indices]
        norms = np.sqrt(np.bincount(rows, weights * weights, minlength=len(titles)))
        weights /= norms[rows]
        if self.decade and self._years is not None:
            decade_rows, decade_columns, decade_weights = self._decade_entries(years)
            rows = np.concatenate([rows, decade_rows])
            indices = np.concatenate([indices, decade_columns])
            weights = np.concatenate([weights, decade_weights])
            order = np.argsort(rows, kind="stable")  # puts the decades after each row's terms
            rows, indices, weights = rows[order], indices[order], weights[order]
        return (
            np.bincount(rows, minlength=len(titles)).astype(np.int64),
            indices.astype(np.int32),
            weights.astype(np.float32),
        )

    def _decade_entries(
        self, years: Sequence[int | None]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return rows, columns and weights of a few titles' decade features, of equal length."""
        if self._years is None:
            raise RuntimeError("fitting has seen no year")
        rows = np.array([row for row, year in enumerate(years) if year is not None], dtype=np.int64)
        known_years = np.array([year for year in years if year is not None], dtype=np.float64)
        known_years = known_years.clip(*self._years).clip(DECADES[0], DECADES[-1])
        position = (known_years - DECADES[0]) / 10.0
        lower = np.floor(position).astype(np.int64)
        upper_weight = position - lower
        # Both neighbours of each year; zero weights (from a year at a centre) are dropped below.
        rows = np.repeat(rows, 2)
        columns = np.stack([lower, lower + 1], axis=1).ravel() + self._num_term_columns()
        weights = np.stack([1.0 - upper_weight, upper_weight], axis=1).ravel() * self.decade_weight
        kept = weights > 0
        return rows[kept], columns[kept], weights[kept]

    def _ngrams(self, text: str) -> Iterable[str]:
        """Return a normalised text's terms, with repetitions, as scikit-learn's analyzers do."""
        return _NGRAMS[self.analyzer](text, *self.ngram_range)


# Each analyzer has two functions: "ngrams" gives a normalised text's terms and is on the fast path;
# "spans" also gives each term's position, for explanations.


def _word_ngrams(text: str, shortest: int, longest: int) -> Iterator[str]:
    words = text.split()
    return (
        " ".join(words[start : start + n])
        for n in range(shortest, min(longest, len(words)) + 1)
        for start in range(len(words) - n + 1)
    )


def _word_spans(text: str, shortest: int, longest: int) -> Iterator[Span]:
    words = list(_WORD.finditer(text))
    return (
        (" ".join(word[0] for word in run), run[0].start(), run[-1].end())
        for n in range(shortest, min(longest, len(words)) + 1)
        for run in (words[start : start + n] for start in range(len(words) - n + 1))
    )


def _char_ngrams(text: str, shortest: int, longest: int) -> Iterator[str]:
    return (
        text[start : start + n]
        for n in range(shortest, min(longest, len(text)) + 1)
        for start in range(len(text) - n + 1)
    )


def _char_spans(text: str, shortest: int, longest: int) -> Iterator[Span]:
    return (
        (text[start : start + n], start, start + n)
        for n in range(shortest, min(longest, len(text)) + 1)
        for start in range(len(text) - n + 1)
    )


def _char_wb_ngrams(text: str, shortest: int, longest: int) -> Iterator[str]:
    return chain.from_iterable(
        # A word shorter than the shortest n-gram is a single term.
        _char_ngrams(f" {word} ", min(shortest, len(word) + 2), longest)
        for word in text.split()
    )


def _char_wb_spans(text: str, shortest: int, longest: int) -> Iterator[Span]:
    for word in _WORD.finditer(text):
        padded = f" {word[0]} "
        length = len(word[0])
        for term, start, end in _char_spans(padded, min(shortest, len(padded)), longest):
            # Positions in the padded word are one ahead of those in the word.
            begin, stop = min(max(start - 1, 0), length), max(min(end - 1, length), 0)
            yield term, word.start() + begin, word.start() + stop


def _items(text: str) -> list[str]:
    return text.split(ITEM_SEPARATOR) if text else []


def _item_spans(text: str, *_: int) -> Iterator[Span]:
    return ((item[0], *item.span()) for item in _ITEM.finditer(text))


_WORD = re.compile(r"\S+")
_ITEM = re.compile(rf"[^{re.escape(ITEM_SEPARATOR)}]+")
_NGRAMS: dict[str, Callable[[str, int, int], Iterable[str]]] = {
    "word": _word_ngrams,
    "char": _char_ngrams,
    "char_wb": _char_wb_ngrams,
    "item": lambda text, *_: _items(text),
}
_SPANS: dict[str, Callable[[str, int, int], Iterator[Span]]] = {
    "word": _word_spans,
    "char": _char_spans,
    "char_wb": _char_wb_spans,
    "item": _item_spans,
}


def _check_state(state: Any) -> None:
    """Refuse a state of another version, or whose keys or types are not those of a vectorizer."""
    if not isinstance(state, Mapping):
        raise ValueError(f"terms: a mapping is needed, not {type(state).__name__}")
    for key in (*_STATE_TYPES, *state):
        if key not in state:
            raise ValueError(f"terms: {key} is missing")
        if key not in _STATE_TYPES:
            raise ValueError(f"terms: unknown key {key!r:.100}")
        _check_types(key, [state[key]], *_STATE_TYPES[key])
    if state["version"] != _STATE_VERSION:
        raise ValueError(
            f"terms: version {state['version']} is not {_STATE_VERSION}, "
            "the one that this program writes"
        )
    _check_types("ngram_range", state["ngram_range"], int)


def _check_types(key: str, values: Iterable[Any], *allowed: type) -> None:
    """Check exact types: to isinstance, True is an int, and a subclass can override anything."""
    for kind in set(map(type, values)).difference(allowed):
        names = " or ".join("None" if t is type(None) else t.__name__ for t in allowed)
        raise ValueError(f"terms: {key} needs {names}, not {kind.__name__}")
