"""Titles and posters to scores: a trained model as a function.

What a prediction needs is imported here and no more: neither Lightning nor scikit-learn, so that
one prediction starts about as fast as PyTorch itself.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image

from genre_lightning.checkpoint.model import TrainedModel, load_model
from genre_lightning.errors import UserError
from genre_lightning.inputs.decode import PosterError, decode_poster
from genre_lightning.models.fusion import ACTIVATIONS

#: A poster: a file's path, an encoded image, or an open one.
PosterSource: TypeAlias = str | os.PathLike[str] | bytes | Image.Image
#: A movie: title and poster, None for what there is not.
TitleAndPoster: TypeAlias = tuple[str | None, PosterSource | None]

#: Title, (G,) scores and problem of a movie.
_Answer: TypeAlias = tuple[str | None, np.ndarray | None, str | None]

#: Movies that go through the network at once. More is not faster on a CPU, and needs more memory.
BATCH_SIZE = 16


class PredictionError(UserError, ValueError):
    """A movie of which the model can see nothing; the message says which one and why."""


@dataclass(frozen=True)
class Prediction:
    """A model's answer for one movie.

    Attributes:
        title: as given.
        genres: those whose score reaches their threshold, the highest score first.
        scores: of every genre, in the model's order, each in [0, 1]; empty if the model could see
            nothing of the movie, which ``problem`` then tells.
        problem: why the poster, or the whole movie, was left out; None if nothing was.
    """

    title: str | None
    genres: tuple[str, ...]
    scores: dict[str, float]
    problem: str | None = None

    def ranked(self) -> list[tuple[str, float]]:
        """All genres with their scores, the highest first."""
        return sorted(self.scores.items(), key=lambda item: -item[1])


class GenrePredictor:
    """Predicts genres of movies from titles, posters or both.

    One predictor serves any number of threads at once. More than one movie is spread over threads
    of its own, each of which decodes and scores a batch on one core.

    Args:
        model: of :func:`genre_lightning.checkpoint.model.load_model`.
        workers: threads that decode and score; None for one per core.
    """

    def __init__(self, model: TrainedModel, workers: int | None = None) -> None:
        if workers is not None and workers < 1:
            raise ValueError(f"workers must be at least 1, not {workers}")
        self.model = model
        self.workers = workers or _num_cores()
        self._device = next(model.network.parameters()).device
        self._thresholds = model.thresholds.numpy()
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    @classmethod
    def from_checkpoint(
        cls,
        path: str | os.PathLike[str],
        device: str | torch.device = "auto",
        workers: int | None = None,
    ) -> GenrePredictor:
        """Load a predictor from a checkpoint file alone.

        Args:
            path: such as ``runs/.../checkpoints/best.ckpt``. The file may come from a stranger:
                nothing in it is run.
            device: "auto" for a GPU where there is one, or any device of PyTorch.
            workers: threads that decode and score; None for one per core.

        Raises:
            CheckpointError: it is no checkpoint of this project, or damaged.
            PredictionError: there is no such device.
        """
        return cls(load_model(Path(path), find_device(device)), workers)

    @property
    def genres(self) -> tuple[str, ...]:
        """The G genres it knows about, in the order of :meth:`scores`."""
        return self.model.genres

    @property
    def thresholds(self) -> dict[str, float]:
        """The score from which on each genre is predicted."""
        return dict(zip(self.genres, self.model.thresholds.tolist(), strict=True))

    @property
    def uses_titles(self) -> bool:
        """Whether the model has a title branch."""
        return self.model.network.title is not None

    @property
    def uses_posters(self) -> bool:
        """Whether the model has a poster branch."""
        return self.model.network.poster is not None

    def predict(
        self,
        titles: Sequence[str | None] | None,
        posters: Sequence[PosterSource | None] | None = None,
        errors: str = "raise",
    ) -> list[Prediction]:
        """Predict the genres of N movies.

        Args:
            titles: N titles, best with the year, "Heat (1995)"; None or "" for a movie without.
                None in place of the list for none at all.
            posters: N posters: paths, encoded images, open images; None for a movie without.
            errors: "raise", or "report" to go on without a poster that can't be read and to say
                so in the prediction's ``problem``.

        Returns:
            N predictions, in order.

        Raises:
            PosterError: a poster can't be read; names it. Not with errors="report".
            PredictionError: the model can't see anything of a movie: it has neither title nor
                poster, or only the one that the model has no branch for. Not with errors="report".
            ValueError: titles and posters differ in number; titles (or posters) for a model that
                has no branch for them; an unknown value of ``errors``.
            TypeError: something is no title or no poster.
        """
        pairs = self._pairs(titles, posters)
        return list(self._predictions(pairs, errors, self._share(len(pairs))))

    def scores(
        self,
        titles: Sequence[str | None] | None,
        posters: Sequence[PosterSource | None] | None = None,
    ) -> np.ndarray:
        """(N, G) float32 scores in [0, 1] of N movies; arguments and errors of :meth:`predict`."""
        pairs = self._pairs(titles, posters)
        found = [scores for _, scores, _ in self._scored(pairs, True, self._share(len(pairs)))]
        return np.array(found, dtype=np.float32).reshape(len(found), len(self.genres))

    def stream(
        self, movies: Iterable[TitleAndPoster], errors: str = "raise"
    ) -> Generator[Prediction, None, None]:
        """Predict the genres of any number of movies, in memory that does not grow with them.

        Args:
            movies: (title, poster) of each; consumed a few batches ahead of the predictions.
            errors: as for :meth:`predict`.

        Yields:
            Predictions, in order.

        Raises:
            Exception: those of :meth:`predict`.
        """
        return self._predictions(movies, errors, BATCH_SIZE)

    def decode(self, poster: PosterSource) -> np.ndarray:
        """The poster as the model takes it: (H, W, 3) uint8 RGB of its size, shrunk.

        Raises:
            PosterError: it can't be read; names it.
            TypeError: it is no poster.
        """
        return self._decode(poster, None)

    def _decode(self, poster: PosterSource, number: int | None) -> np.ndarray:
        try:
            source = Path(poster) if isinstance(poster, (str, os.PathLike)) else poster
            return decode_poster(source, self.model.poster_size, self.model.poster_shrink)
        except PosterError as error:
            raise PosterError(f"{_name(poster, number)}: {error}") from error
        except OSError as error:
            reason = "no such file" if isinstance(error, FileNotFoundError) else error.strerror
            raise PosterError(f"{_name(poster, number)}: can't be read ({reason})") from error

    def _predictions(
        self, movies: Iterable[TitleAndPoster], errors: str, batch_size: int
    ) -> Generator[Prediction, None, None]:
        if errors not in ("raise", "report"):
            raise ValueError(f'errors is "raise" or "report", not {errors!r}')
        for title, scores, problem in self._scored(movies, errors == "raise", batch_size):
            if scores is None:
                yield Prediction(title, (), {}, problem)
                continue
            values = dict(zip(self.genres, scores.tolist(), strict=True))
            reached = np.flatnonzero(scores >= self._thresholds)
            order = sorted(reached.tolist(), key=lambda genre: -scores[genre])
            yield Prediction(title, tuple(self.genres[g] for g in order), values, problem)

    def _share(self, movies: int) -> int:
        """The batch size that gives every worker some of a known number of movies."""
        return max(1, min(BATCH_SIZE, -(-movies // self.workers)))

    def _pairs(
        self,
        titles: Sequence[str | None] | None,
        posters: Sequence[PosterSource | None] | None,
    ) -> list[TitleAndPoster]:
        for name, values in (("titles", titles), ("posters", posters)):
            if isinstance(values, (str, bytes, os.PathLike, Image.Image)):
                raise TypeError(f"{name} must be a list, also for a single movie: [{values!r}]")
        if titles is None and posters is None:
            raise ValueError("neither titles nor posters are given")
        titles = [None] * len(posters or ()) if titles is None else titles
        posters = [None] * len(titles) if posters is None else posters
        if len(titles) != len(posters):
            raise ValueError(f"{len(titles)} titles, but {len(posters)} posters")
        return list(zip(titles, posters, strict=True))

    def _check(self, number: int, title: str | None, poster: PosterSource | None) -> None:
        """Refuse what is no title and no poster, and what the model has no branch for."""
        if not isinstance(title, (str, type(None))):
            raise TypeError(f"title {number} is a {type(title).__name__}, not a string")
        if not isinstance(poster, (str, os.PathLike, bytes, Image.Image, type(None))):
            raise TypeError(
                f"poster {number} is a {type(poster).__name__}, not a path, bytes or an image"
            )
        for given, used, what in (
            (title, self.uses_titles, "title"),
            (poster, self.uses_posters, "poster"),
        ):
            if given and not used:
                raise PredictionError(
                    f"movie {number} has a {what}, and this model has no {what} branch: "
                    f"leave {what}s out (None) to predict without them"
                )

    def _scored(
        self, movies: Iterable[TitleAndPoster], strict: bool, batch_size: int = BATCH_SIZE
    ) -> Iterator[_Answer]:
        """Answers in order; a worker takes a batch all the way, a few are begun ahead."""
        numbered = enumerate(movies, 1)
        waiting: deque[Future[list[_Answer]]] = deque()
        try:
            while True:
                while len(waiting) <= self.workers:
                    batch = list(islice(numbered, batch_size))
                    if not batch:
                        break
                    if not waiting and len(batch) == 1:  # a single movie needs no threads
                        yield from self._answer(batch, strict)
                        continue
                    waiting.append(self._workers().submit(self._answer, batch, strict))
                if not waiting:
                    return
                yield from waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def _answer(self, batch: Sequence[tuple[int, TitleAndPoster]], strict: bool) -> list[_Answer]:
        """Decode and score a batch of numbered movies."""
        problems: list[str | None] = [None] * len(batch)
        pixels: list[np.ndarray] = []
        poster_rows: list[int] = []
        seen: list[int] = []
        titles: list[str] = []
        for place, (number, (title, poster)) in enumerate(batch):
            self._check(number, title, poster)
            found = None
            if poster is not None:
                try:
                    found = self._decode(poster, number)
                except PosterError as error:
                    if strict:
                        raise
                    problems[place] = str(error)
            if not title and found is None:
                nothing = f"no {' and no '.join(self._needs())} to go by"
                if strict:
                    raise PredictionError(f"movie {number}: {nothing}")
                problems[place] = f"{problems[place]}; {nothing}" if problems[place] else nothing
                continue
            if found is not None:
                poster_rows.append(len(seen))
                pixels.append(found)
            seen.append(place)
            titles.append(title or "")
        scores: list[np.ndarray | None] = [None] * len(batch)
        for place, row in zip(seen, self._score(titles, pixels, poster_rows), strict=True):
            scores[place] = row
        given = [title for _, (title, _) in batch]
        return list(zip(given, scores, problems, strict=True))

    def _needs(self) -> list[str]:
        used = (("title", self.uses_titles), ("poster", self.uses_posters))
        return [what for what, yes in used if yes]

    @torch.inference_mode()
    def _score(
        self, titles: Sequence[str], pixels: Sequence[np.ndarray], poster_rows: Sequence[int]
    ) -> np.ndarray:
        """(B, G) float32 scores of B titles, of which P have a poster."""
        side = self.model.poster_size // self.model.poster_shrink
        features = self.model.titles.transform(titles)
        stacked = np.stack(pixels) if pixels else np.zeros((0, side, side, 3), dtype=np.uint8)
        posters = torch.from_numpy(stacked).to(self._device).permute(0, 3, 1, 2)
        logits = self.model.network(
            torch.from_numpy(features.indices.astype(np.int64)).to(self._device),
            torch.from_numpy(features.indptr[:-1]).to(self._device),
            torch.from_numpy(features.weights).to(self._device),
            self.model.normalise(posters),
            torch.tensor(poster_rows, dtype=torch.int64, device=self._device),
        )
        scores = ACTIVATIONS[self.model.activation](logits.float())
        return np.asarray(scores.cpu().numpy())

    def _workers(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None:
                Image.init()  # loads the formats: not while several threads ask for them
                self._pool = ThreadPoolExecutor(
                    self.workers,
                    thread_name_prefix="genre-predictor",
                    initializer=_take_one_core,
                    initargs=(torch.get_num_threads(),),
                )
            return self._pool


def _take_one_core(others: int) -> None:
    """Have PyTorch compute on this thread alone, and on as many as before for all other threads.

    Workers that each compute on every core wait for each other most of the time.
    """
    torch.set_num_threads(1)
    # The number is this thread's, and of every thread that has not asked for it yet.
    thread = threading.Thread(target=torch.set_num_threads, args=(others,))
    thread.start()
    thread.join()


def find_device(device: str | torch.device) -> torch.device:
    """Where to compute: "auto" is a GPU where there is one.

    Raises:
        PredictionError: there is no such device.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise PredictionError(f"device {str(device)!r} can't be used here ({reason})") from error
    return found


def _name(poster: PosterSource, number: int | None) -> str:
    """How messages call a poster, the one of the movie of this number."""
    if isinstance(poster, (str, os.PathLike)):
        return os.fspath(poster)
    name = getattr(poster, "filename", None) or "the image"
    return f"{name}" if number is None else f"{name} of movie {number}"


def _num_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
