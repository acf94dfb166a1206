"""New movies for a model with a branch of a language model's answers: its server is asked."""

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

from genre_lightning.ask.answer_file import NAME, AnswerFile, Record
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

#: Movies asked about together, over requests at once: while the last of them is waited for, the
#: server has less to do.
_CHUNKS = 8


@final
class AskedMovies:
    """Asks about movies as a run of genre-ask did, and hands the answers to the model.

    Args:
        predictor: of the model.
        folder: of the run, whose server, model, prompt and parameters are used.
        url: of the server, where it is another one by now; None for the run's.
        api_key_env: name of the environment variable that holds the key. It is not taken from the
            run's folder, which may be untrusted.

    Attributes:
        shows: columns that the language model is shown, and what they hold.

    Raises:
        CommandError: the model has no such branch, or of other genres.
        UserError: the folder is no run of genre-ask.
    """

    def __init__(
        self,
        predictor: GenrePredictor,
        folder: Path,
        url: str | None = None,
        api_key_env: str | None = None,
    ) -> None:
        self.questioner, self.again = load_questioner(folder)
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
                f"branch {branches[0]} was trained on {width} numbers a movie"
            )
        trained_on = Path(str(branch_input.state().get("path", "")))
        if trained_on.parent.name != folder.resolve().name:
            note(f"the branch {branches[0]} was trained on the answers of {trained_on.parent}")
        self.predictor = predictor
        self.folder = folder
        self.shows = {name: "poster" if name == POSTER else "text" for name in self.questioner.show}
        self.key_env = api_key_env
        read_key(api_key_env, "--api-key-env")  # told before any movie is read
        self.url = check_url(url, "--ask-url") if url else self.questioner.base_url
        note(f"asking {self.questioner.model} at {self.url}")
        self._column = branch_input.column
        self._done: deque[Record] = deque()

    @property
    def columns(self) -> dict[str, str]:
        """All columns that are of use, and what they hold: the model's, and those shown."""
        return {**self.predictor.model.given_columns, **self.shows}

    def predictions(
        self, movies: Iterable[Mapping[str, Any]], errors: str = "raise"
    ) -> Generator[tuple[Prediction, str], None, None]:
        """Predictions in order, each with what the language model gave as its reason.

        A movie without an answer is predicted without it, and the prediction's ``problem`` says so.

        Raises:
            Exception: those of :meth:`GenrePredictor.stream`; UserError by the server.
        """
        for prediction in self.predictor.stream(self._with_answers(movies), errors):
            record = self._done.popleft()
            if record.failed is not None:
                problems = [prediction.problem, f"no answer: {record.failed}"]
                prediction = replace(prediction, problem="; ".join(filter(None, problems)))
            yield prediction, record.why

    def with_answer(self, movie: Mapping[str, Any]) -> tuple[dict[str, Any], str, str | None]:
        """The columns of one movie with its answer, as the model takes them; why; and the problem.

        Where there is no answer the problem tells why not, else it is None.
        """
        (given,) = self._with_answers([movie])
        record = self._done.popleft()
        return given, record.why, record.failed

    def _with_answers(self, movies: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        known = self.predictor.columns
        numbered = enumerate(movies)
        with self._asker() as (runner, asker):
            while chunk := list(islice(numbered, _CHUNKS * asker.concurrency)):
                records: dict[int, Record] = {}
                asked = [self._movie(number, movie) for number, movie in chunk]
                runner.run(_entered(asker, asked, records))
                for place, (_, movie) in enumerate(chunk):
                    record = records[place]
                    self._done.append(record)
                    given = {name: value for name, value in movie.items() if name in known}
                    if record.scores is not None:
                        given[self._column] = [record.scores[g] for g in self.questioner.genres]
                    yield given

    @contextmanager
    def _asker(self) -> Iterator[tuple[asyncio.Runner, Asker]]:
        settings = ServerSettings()
        with ExitStack() as stack:
            keep = os.access(self.folder, os.W_OK)
            if keep:
                stack.enter_context(locked(self.folder))
            answer_file = stack.enter_context(AnswerFile(self.folder / NAME, keep=keep))
            server = settings.connect(self.url, self.key_env, "--ask-url", "--api-key-env")
            asker = Asker(
                self.questioner, server, answer_file, concurrency=settings.concurrency, say=note,
                **self.again,
            )  # fmt: skip
            stack.callback(asker.close)
            yield stack.enter_context(asyncio.Runner()), asker
            for name, reason in asker.unreadable.items():
                note(f"unreadable, not shown: {name} ({reason})")

    def _movie(self, number: int, columns: Mapping[str, Value | None]) -> Movie:
        found: dict[str, str | PosterFile] = {}
        for name, of in self.shows.items():
            value = columns.get(name)
            if value is None:
                continue
            found[name] = _poster(Path(value)) if of == "poster" else str(value)
        return Movie(f"predicted {number + 1}", found, (), None, "")


async def _entered(asker: Asker, movies: list[Movie], records: dict[int, Record]) -> None:
    async with asker.server:
        await asker.run(movies, records.__setitem__)


def _poster(path: Path) -> PosterFile:
    poster = PosterFile.at(path)
    if not poster.exists:
        note(f"{path}: can't be read (no such file): the language model goes without")
    return poster
