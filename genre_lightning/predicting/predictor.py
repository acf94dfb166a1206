"""Movies to scores: a trained model as a function of titles, posters and other columns.

Imports only what a prediction needs, so neither Lightning nor scikit-learn: a single prediction
starts about as fast as PyTorch itself.
"""

from __future__ import annotations

import operator
import os
import sys
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import torch
from PIL import Image

from genre_lightning.checkpoint.model import TrainedModel, load_model
from genre_lightning.cores import num_cores
from genre_lightning.errors import InputError, UserError
from genre_lightning.inputs.encode import encode_items, is_absent, read_column
from genre_lightning.inputs.encoders.table import trust_encoders
from genre_lightning.inputs.input import Value
from genre_lightning.inputs.one_core import one_core_threads
from genre_lightning.inputs.part import Part
from genre_lightning.models.fusion import ACTIVATIONS
from genre_lightning.wording import listed

if TYPE_CHECKING:
    from genre_lightning.explain.movie import MovieExplanation

#: The columns that the arguments ``titles`` and ``posters`` stand for.
TITLE, POSTER = "title", "poster"

#: A movie: its values by column, or (title, poster). None for a missing value.
Movie: TypeAlias = Mapping[str, Value | None] | tuple[Value | None, Value | None]

#: Movies per forward pass. Larger batches are not faster on a CPU, and need more memory.
BATCH_SIZE = 16


class _Scored(NamedTuple):
    """The scores of one movie.

    Attributes:
        title: as given.
        scores: (G,) float32; None if no branch could read anything of the movie.
        problem: as in :class:`Prediction`.
    """

    title: str | None
    scores: np.ndarray | None
    problem: str | None


class PredictionError(UserError, ValueError):
    """A movie, column or device that the model can't use; the message says which one and why."""


@dataclass(frozen=True)
class Prediction:
    """A model's answer for one movie.

    Attributes:
        title: as given.
        genres: the predicted genres, whose score reaches their threshold; highest score first.
        scores: the score of every genre in [0, 1], in the model's order; empty if the model could
            not use any column of the movie, in which case ``problem`` says why.
        problem: why a column, such as the poster, or the whole movie was left out; None if nothing
            was.
        thresholds: the threshold of every genre; scores equal to it also count as predicted.
        poster: as given to :meth:`GenrePredictor.predict`, for display; None without one.
        explanation: the reasons for the scores, if requested.

    Notebooks show a prediction as a card with the poster, the scores and thresholds, and the
    explanation.
    """

    title: str | None
    genres: tuple[str, ...]
    scores: dict[str, float]
    problem: str | None = None
    thresholds: Mapping[str, float] = field(default_factory=dict, repr=False, compare=False)
    poster: Value | None = field(default=None, repr=False, compare=False)
    explanation: MovieExplanation | None = field(default=None, repr=False, compare=False)

    def ranked(self) -> list[tuple[str, float]]:
        """All genres with their scores, highest score first."""
        return sorted(self.scores.items(), key=lambda item: -item[1])

    def explained_genres(self) -> list[str]:
        """The predicted genres, or the three closest to their threshold if there are none."""
        distance = {genre: self.thresholds[genre] - score for genre, score in self.scores.items()}
        return list(self.genres) or sorted(distance, key=lambda genre: distance[genre])[:3]

    def _repr_html_(self) -> str:
        from genre_lightning.predicting.notebook_card import card_html

        return card_html(
            self.title,
            self.problem,
            self.genres,
            self.ranked(),
            self.thresholds,
            self.poster,
            self.explanation,
            self.explained_genres(),
        )


class GenrePredictor:
    """Predicts the genres of movies from all or some of the columns that a model looks at.

    A predictor is thread-safe and also works in forked processes; it can be pickled for other
    processes. Several movies are spread over a pool of worker threads, each of which reads and
    scores whole batches on one core.

    Args:
        model: as returned by :func:`genre_lightning.checkpoint.model.load_model`.
        workers: number of worker threads; None for one per core.
    """

    def __init__(self, model: TrainedModel, workers: int | None = None) -> None:
        if workers is not None:
            try:
                workers = operator.index(workers)
            except TypeError as error:
                raise TypeError(
                    f"workers must be a whole number, or None for one per core, not {workers!r}"
                ) from error
            if workers < 1:
                raise ValueError(f"workers must be at least 1, not {workers}")
        self.model = model
        self.workers = workers or num_cores()
        self._columns = model.columns
        self._thresholds = model.thresholds.numpy()
        self._thresholds_by_genre = self.thresholds
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()
        self._process = os.getpid()

    @classmethod
    def from_checkpoint(
        cls,
        path: str | os.PathLike[str],
        device: str | torch.device = "auto",
        workers: int | None = None,
        encoders: Sequence[str] = (),
    ) -> GenrePredictor:
        """Load a predictor from a checkpoint file alone.

        Args:
            path: such as ``runs/.../checkpoints/best.ckpt``. The file may be untrusted: no code in
                it is executed.
            device: "auto" for a GPU if available, or any PyTorch device.
            workers: number of worker threads; None for one per core.
            encoders: pretrained encoders outside this project's table that the checkpoint is
                allowed to use, named as in its training config: ``timm:resnet18.a1_in1k``.

        Raises:
            CheckpointError: the file is not a checkpoint of this project, or is damaged.
            PredictionError: the device does not exist.
            EncoderError: an encoder's name is unknown, or its weights are not available.
            TypeError: ``encoders`` is a single string.
        """
        if isinstance(encoders, str):
            raise TypeError(f"encoders must be a list, also for a single one: [{encoders!r}]")
        trust_encoders(encoders)
        return cls(load_model(Path(path), find_device(device)), workers)

    @property
    def genres(self) -> tuple[str, ...]:
        """The G genres of the model, in the order of :meth:`scores`."""
        return self.model.genres

    @property
    def thresholds(self) -> dict[str, float]:
        """The threshold of each genre, which is predicted if its score is at least as high."""
        return dict(zip(self.genres, self.model.thresholds.tolist(), strict=True))

    @property
    def columns(self) -> dict[str, str]:
        """The columns that the model looks at, each with its kind: "text", "poster" or "id"."""
        return dict(self._columns)

    def predict(
        self,
        /,
        titles: Sequence[str | None] | None = None,
        posters: Sequence[Value | None] | None = None,
        errors: str = "raise",
        explain: bool = False,
        **columns: Sequence[Value | None] | None,
    ) -> list[Prediction]:
        """Predict the genres of N movies.

        Args:
            titles: N values of the column ``title``, best with the year: "Heat (1995)". None, "",
                NaN or pandas' NA for a movie without a title. None instead of a list if no movie
                has a title.
            posters: N values of the column ``poster``: paths, encoded images, open images or
                (H, W, 3) uint8 pixels; None for a movie without a poster.
            errors: "raise", or "report" to skip values that can't be read and describe them in the
                prediction's ``problem``.
            explain: whether to fill in each prediction's ``explanation``; this takes longer than
                the prediction itself.
            columns: N values for each further column, by name: ``synopsis=[...]``.

        Returns:
            N predictions, in order.

        Raises:
            InputError: a value can't be read; the message names it. PosterError for a poster. Not
                raised with errors="report".
            PredictionError: a movie has no column that the model can use (not raised with
                errors="report"), or has a value in a column that the model does not look at.
            ValueError: the columns differ in length, or ``errors`` has an unknown value.
            TypeError: a value has the wrong type for its column.
        """
        movies = self._to_movies(titles, posters, columns)
        predictions = list(self._predictions(movies, errors, self._batch_size(len(movies))))
        return [
            replace(
                prediction,
                poster=movie.get(POSTER),
                explanation=self._explain(movie) if explain and prediction.scores else None,
            )
            for prediction, movie in zip(predictions, movies, strict=True)
        ]

    def _explain(self, movie: Mapping[str, Value | None]) -> MovieExplanation:
        """Explain the scores of a movie that could be predicted, without its unreadable values."""
        from genre_lightning.explain.movie import explain_movie

        _, unread = self._read(1, movie, strict=False)
        return explain_movie(
            self.model, {name: value for name, value in movie.items() if name not in unread}
        )

    def scores(
        self,
        /,
        titles: Sequence[str | None] | None = None,
        posters: Sequence[Value | None] | None = None,
        **columns: Sequence[Value | None] | None,
    ) -> np.ndarray:
        """Return the (N, G) float32 scores in [0, 1] of N movies.

        Arguments and errors are those of :meth:`predict`.
        """
        movies = self._to_movies(titles, posters, columns)
        scored = self._score_movies(movies, True, self._batch_size(len(movies)))
        scores = [movie.scores for movie in scored]
        return np.array(scores, dtype=np.float32).reshape(len(scores), len(self.genres))

    def stream(
        self, movies: Iterable[Movie], errors: str = "raise"
    ) -> Generator[Prediction, None, None]:
        """Predict the genres of any number of movies in constant memory.

        Args:
            movies: (title, poster) pairs or mappings of column to value; consumed a few batches
                ahead of the predictions.
            errors: as for :meth:`predict`.

        Yields:
            Predictions, in order.

        Raises:
            TypeError: a movie is neither a pair nor a mapping.
            Exception: as :meth:`predict`.
        """
        return self._predictions(movies, errors, BATCH_SIZE)

    def _predictions(
        self, movies: Iterable[Movie], errors: str, batch_size: int
    ) -> Generator[Prediction, None, None]:
        if errors not in ("raise", "report"):
            raise ValueError(f'errors must be "raise" or "report", not {errors!r}')
        for scored in self._score_movies(movies, errors == "raise", batch_size):
            yield self._prediction(scored)

    def predict_encoded(self, title: str | None, parts: Mapping[str, Part]) -> Prediction:
        """Predict the genres of one movie that has already been encoded.

        Args:
            title: the title to store in the prediction.
            parts: of one movie, as returned by :func:`genre_lightning.inputs.encode.encode_items`.
        """
        self._reset_after_fork()
        (scores,) = self._score(parts, 1)
        return self._prediction(_Scored(title, scores, None))

    def _prediction(self, scored: _Scored) -> Prediction:
        title, scores, problem = scored
        if scores is None:
            return Prediction(title, (), {}, problem, self._thresholds_by_genre)
        by_genre = dict(zip(self.genres, scores.tolist(), strict=True))
        reached = np.flatnonzero(scores >= self._thresholds)
        ranked = sorted(reached.tolist(), key=lambda genre: -scores[genre])
        genres = tuple(self.genres[genre] for genre in ranked)
        return Prediction(title, genres, by_genre, problem, self._thresholds_by_genre)

    def _batch_size(self, movies: int) -> int:
        """The batch size that spreads a known number of movies over all workers."""
        return max(1, min(BATCH_SIZE, -(-movies // self.workers)))

    def _to_movies(
        self,
        titles: Sequence[str | None] | None,
        posters: Sequence[Value | None] | None,
        columns: Mapping[str, Sequence[Value | None] | None],
    ) -> list[Mapping[str, Value | None]]:
        """Turn the arguments of :meth:`predict`, one list per column, into one dict per movie."""
        # Under the names that the caller used, for messages.
        given = {"titles": titles, "posters": posters, **columns}
        lists = {
            name: _column_values(name, values)
            for name, values in given.items()
            if values is not None
        }
        if not lists:
            raise ValueError(f"none of {listed(['titles', 'posters', *columns])} is given")
        (first, count), *others = [(name, len(values)) for name, values in lists.items()]
        for name, other in others:
            if other != count:
                raise ValueError(f"{count} {first}, but {other} {name}")
        column_names = {"titles": TITLE, "posters": POSTER}
        for argument, name in column_names.items():
            if argument in lists and name in columns:
                raise TypeError(f"the column {name} is given twice, as {argument} and as {name}")
        by_column = {column_names.get(name, name): values for name, values in lists.items()}
        return [{name: values[n] for name, values in by_column.items()} for n in range(count)]

    def _score_movies(
        self, movies: Iterable[Movie], strict: bool, batch_size: int
    ) -> Iterator[_Scored]:
        """Read and score movies in order; each worker takes whole batches.

        Args:
            movies: as for :meth:`stream`; consumed one batch per worker, plus one, ahead.
            strict: raise an error for a value that can't be read or a movie that can't be scored.
            batch_size: movies per batch.
        """
        self._reset_after_fork()
        numbered = ((number, _to_mapping(number, movie)) for number, movie in enumerate(movies, 1))
        pending: deque[Future[list[_Scored]]] = deque()
        try:
            while True:
                while len(pending) <= self.workers:
                    batch = list(islice(numbered, batch_size))
                    if not batch:
                        break
                    if not pending and len(batch) == 1:  # threads don't pay off for a single movie
                        yield from self._score_batch(batch, strict)
                        continue
                    pending.append(self._thread_pool().submit(self._score_batch, batch, strict))
                if not pending:
                    return
                yield from pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()

    def _score_batch(
        self, batch: Sequence[tuple[int, Mapping[str, Value | None]]], strict: bool
    ) -> list[_Scored]:
        """Read and score a batch of numbered movies."""
        problems: list[str | None] = []
        readable: list[int] = []
        items: dict[str, list[Any]] = {name: [] for name in self.model.inputs}
        for index, (number, movie) in enumerate(batch):
            read, unread = self._read(number, movie, strict)
            reasons = list(unread.values())
            if any(item is not None for item in read.values()):
                readable.append(index)
                for name, item in read.items():
                    items[name].append(item)
            else:
                absent = [column for column in self._columns if column not in unread]
                if absent:
                    reasons.append(missing_columns_message(absent))
                if strict:
                    raise PredictionError(f"movie {number}: {'; '.join(reasons)}")
            problems.append("; ".join(reasons) or None)
        scores: list[np.ndarray | None] = [None] * len(batch)
        if readable:
            parts = encode_items(self.model.inputs, items, self.model.device)
            for index, row in zip(readable, self._score(parts, len(readable)), strict=True):
                scores[index] = row
        titles = [movie.get(TITLE) for _, movie in batch]
        return list(map(_Scored, titles, scores, problems))

    def _read(
        self, number: int, movie: Mapping[str, Value | None], strict: bool
    ) -> tuple[dict[str, Any], dict[str, str]]:
        """Read a movie's columns.

        Returns:
            By branch, what its input read, None for nothing; and by column, why it can't be read.
        """
        for column, value in movie.items():
            if column not in self._columns and not is_absent(value):
                raise PredictionError(
                    f"movie {number} has a {column}, and the model does not look at {column!r}: it "
                    f"looks at {', '.join(self._columns)}; leave {column} out (None) to predict "
                    "without it"
                )
        read: dict[str, Any] = dict.fromkeys(self.model.inputs)
        problems: dict[str, str] = {}
        for column, kind in self._columns.items():
            value = movie.get(column)
            try:
                read |= read_column(self.model.inputs, column, value)
            except TypeError as error:
                raise TypeError(f"{column} {number} is {error}") from error
            except InputError as error:
                reason = f"{_value_name(value, column, number, kind)}: {error}"
                if strict:
                    raise type(error)(reason) from error
                problems[column] = reason
        return read, problems

    @torch.inference_mode()
    def _score(self, parts: Mapping[str, Part], num_movies: int) -> np.ndarray:
        """(B, G) float32 scores of B movies, each of which has a row in some branch's part."""
        logits = self.model.network(parts, num_movies)
        scores = ACTIVATIONS[self.model.activation](logits)
        return np.asarray(scores.cpu().numpy())

    def _reset_after_fork(self) -> None:
        """Forget the parent's threads after a fork, as the child process does not have them.

        PyTorch does not restart its own threads either, so a forked process computes on one core,
        like the workers of a ``DataLoader``.
        """
        if self._process != os.getpid():
            torch.set_num_threads(1)
            self._lock = threading.Lock()
            self._pool = None
            self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the threads and the lock, which can't be pickled."""
        return {**self.__dict__, "_pool": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock(), _process=os.getpid())

    def _thread_pool(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None:
                Image.init()  # load the image formats now, not from several threads at once
                self._pool = one_core_threads(self.workers, "genre-predictor")
            return self._pool


def find_device(device: str | torch.device) -> torch.device:
    """Return the device of this name; "auto" is a GPU if available.

    Raises:
        PredictionError: the device does not exist or can't be used.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
        torch.empty(0, device=resolved).cpu()  # fails for "meta", which holds no data
    except TypeError as error:
        raise PredictionError(
            f'device must be a name such as "cpu", "cuda" or "auto", not {device!r}'
        ) from error
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise PredictionError(
            f"device {str(device)!r} can't be used here ({reason}); name another one, or auto"
        ) from error
    return resolved


def _to_mapping(number: int, movie: Any) -> Mapping[str, Value | None]:
    if isinstance(movie, Mapping):
        return {name: _or_none(value) for name, value in movie.items()}
    if not isinstance(movie, (tuple, list)) or len(movie) != 2:
        raise TypeError(
            f"movie {number} must be (title, poster), or a dict of its values by column, "
            f"not {movie!r:.100}"
        )
    title, poster = movie
    return {TITLE: _or_none(title), POSTER: _or_none(poster)}


def _column_values(name: str, values: Any) -> list[Any]:
    """Return the values passed for a column as a list, with None for missing values of pandas.

    Args:
        name: of the argument.
        values: of the argument. A pandas column is read in order, whatever its index.

    Raises:
        TypeError: ``values`` is a single value, or not a list of values.
    """
    if isinstance(values, (str, bytes, os.PathLike, Image.Image)):
        raise TypeError(f"{name} must be a list, also for a single movie: [{values!r}]")
    if isinstance(values, (Mapping, Set)):
        raise TypeError(f"{name} must be a list, not of type {type(values).__name__}")
    if hasattr(values, "columns"):  # a table: iterating over it gives column names
        raise TypeError(
            f"{name} must be a list or one column of a table, not a "
            f"{type(values).__name__}, which has several: table[NAME]"
        )
    try:
        iterator = iter(values)
    except TypeError as error:  # a number, or a 0-d array
        raise TypeError(f"{name} must be a list, not of type {type(values).__name__}") from error
    return list(map(_or_none, iterator))


def _or_none(value: Any) -> Any:
    """Return the value, or None for NaN and for pandas' NaT and NA."""
    if isinstance(value, (float, np.floating)):
        return None if np.isnan(value) else value
    pandas = sys.modules.get("pandas")  # not imported: no value can be its NA
    na_values = [getattr(pandas, name, None) for name in ("NA", "NaT")]
    return None if any(value is na for na in na_values) else value


def _value_name(value: Value, column: str, number: int, kind: str) -> str:
    """The name of a movie's value in messages; movies are numbered from 1."""
    if kind == "poster":
        if isinstance(value, (str, os.PathLike)):
            return os.fspath(value)
        if name := getattr(value, "filename", None):
            return f"{name} of movie {number}"
    return f"the {column} of movie {number}"


def missing_columns_message(columns: Sequence[str]) -> str:
    """Why a movie without these can't be predicted: "no title and no poster to predict from"."""
    return f"{listed([f'no {column}' for column in columns])} to predict from"
