"""Answers of a language model about new movies, for a model with a branch on such answers."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from genre_lightning.ask.answer_file import ANSWER_FILE_NAME, AnswerFile, Record
from genre_lightning.ask.asking import Asker
from genre_lightning.ask.question import POSTER
from genre_lightning.ask.run import ServerSettings, load_questioner
from genre_lightning.ask.server import check_url, read_key
from genre_lightning.inputs.input import Value
from genre_lightning.movies.movie import Movie, PosterFile
from genre_lightning.predicting.printing import CommandError, note
from genre_lightning.runs.lock import locked

if TYPE_CHECKING:
    from genre_lightning.predicting.predictor import GenrePredictor, Prediction

#: Movies asked about together, as a multiple of the concurrent requests. The server has less to do
#: while the last requests of a chunk are pending, so small chunks are slower.
_CHUNK_FACTOR = 8


@final
class MovieAsker:
    """Asks about movies with the settings of a genre-ask run, and passes the answers to the model.

    Args:
        predictor: of the model.
        folder: run folder, whose server, language model, prompt and parameters are used.
        url: address of the server, if it has changed; None for that of the run.
        api_key_env: name of the environment variable that holds the key. It is not read from the
            run folder, which may be untrusted.

    Attributes:
        shown_columns: columns shown to the language model, each with its kind: "text" or "poster".

    Raises:
        CommandError: the model does not have exactly one branch of answers, or this branch was
            trained on a different number of genres.
        UserError: the folder is not a run of genre-ask, or the address or key can't be used.
    """

    def __init__(
        self,
        predictor: GenrePredictor,
        folder: Path,
        url: str | None = None,
        api_key_env: str | None = None,
    ) -> None:
        self.questioner, self.retry_arguments = load_questioner(folder)
        inputs = predictor.model.inputs
        branches = [name for name, branch_input in inputs.items() if branch_input.of == "id"]
        if len(branches) != 1:
            raise CommandError(
                "--ask is for a model with one branch of answers; this one has "
                f"{', '.join(branches) or 'none'}"
            )
        branch_input = inputs[branches[0]]
        width = branch_input.network_arguments()["width"]
        if width != len(self.questioner.genres):
            raise CommandError(
                f"{folder}: its answers are about {len(self.questioner.genres)} genres, and the "
                f"branch {branches[0]} was trained on {width} numbers per movie"
            )
        trained_on = Path(str(branch_input.state().get("path", "")))
        if trained_on.parent.name != folder.resolve().name:
            note(
                f"the branch {branches[0]} was trained on the answers of {trained_on.parent}, "
                f"not of {folder}"
            )
        self.predictor = predictor
        self.folder = folder
        self.shown_columns = {
            name: "poster" if name == POSTER else "text" for name in self.questioner.show
        }
        self.key_env = api_key_env
        read_key(api_key_env, "--api-key-env")  # reports a missing key before any movie is read
        self.url = check_url(url, "--ask-url") if url else self.questioner.base_url
        note(f"asking {self.questioner.model} at {self.url}")
        self._column = branch_input.column
        self._records: deque[Record] = deque()

    @property
    def columns(self) -> dict[str, str]:
        """All columns in use, with their kinds: the model's, and :attr:`shown_columns`."""
        return {**self.predictor.model.given_columns, **self.shown_columns}

    def predictions(
        self, movies: Iterable[Mapping[str, Any]], errors: str = "raise"
    ) -> Generator[tuple[Prediction, str], None, None]:
        """Yield predictions in order, each with the language model's reason for its answer.

        A movie without an answer is predicted from its other columns, and the prediction's
        ``problem`` says so.

        Raises:
            Exception: as :meth:`GenrePredictor.stream`; UserError for errors of the server.
        """
        for prediction in self.predictor.stream(self._with_answers(movies), errors):
            record = self._records.popleft()
            if record.failed is not None:
                problems = [prediction.problem, f"no answer: {record.failed}"]
                prediction = replace(prediction, problem="; ".join(filter(None, problems)))
            yield prediction, record.why

    def with_answer(self, movie: Mapping[str, Any]) -> tuple[dict[str, Any], str, str | None]:
        """Ask about one movie.

        Returns:
            The columns that the model takes, including the answer; the reason for the answer; and
            the problem if there is no answer, None otherwise.
        """
        (given,) = self._with_answers([movie])
        record = self._records.popleft()
        return given, record.why, record.failed

    def _with_answers(self, movies: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        known = self.predictor.columns
        numbered = enumerate(movies)
        with self._asker() as (runner, asker):
            while chunk := list(islice(numbered, _CHUNK_FACTOR * asker.concurrency)):
                records: dict[int, Record] = {}
                asked_movies = [self._movie(number, movie) for number, movie in chunk]
                runner.run(_run_asker(asker, asked_movies, records))
                for index, (_, movie) in enumerate(chunk):
                    record = records[index]
                    self._records.append(record)
                    given = {name: value for name, value in movie.items() if name in known}
                    if record.scores is not None:
                        given[self._column] = [record.scores[g] for g in self.questioner.genres]
                    yield given

    @contextmanager
    def _asker(self) -> Iterator[tuple[asyncio.Runner, Asker]]:
        settings = ServerSettings()
        with ExitStack() as stack:
            is_writable = os.access(self.folder, os.W_OK)
            if is_writable:
                stack.enter_context(locked(self.folder))
            answer_file = stack.enter_context(
                AnswerFile(self.folder / ANSWER_FILE_NAME, keep=is_writable)
            )
            server = settings.connect(self.url, self.key_env, "--ask-url", "--api-key-env")
            asker = Asker(
                self.questioner, server, answer_file, concurrency=settings.concurrency, say=note,
                **self.retry_arguments,
            )  # fmt: skip
            stack.callback(asker.close)
            yield stack.enter_context(asyncio.Runner()), asker
            for name, reason in asker.unreadable.items():
                note(f"unreadable, not shown: {name} ({reason})")

    def _movie(self, number: int, columns: Mapping[str, Value | None]) -> Movie:
        shown: dict[str, str | PosterFile] = {}
        for name, kind in self.shown_columns.items():
            value = columns.get(name)
            if value is None:
                continue
            shown[name] = _poster(Path(value)) if kind == "poster" else str(value)
        return Movie(f"predicted {number + 1}", shown, (), None, "")


async def _run_asker(asker: Asker, movies: list[Movie], records: dict[int, Record]) -> None:
    async with asker.server:
        await asker.run(movies, records.__setitem__)


def _poster(path: Path) -> PosterFile:
    poster = PosterFile.at(path)
    if not poster.exists:
        note(f"{path}: can't be read (no such file): not shown to the language model")
    return poster
