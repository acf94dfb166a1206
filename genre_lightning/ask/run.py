"""A run of genre-ask over a dataset: the choice of movies and examples, and the answers."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from genre_lightning.ask.answer_file import ANSWER_FILE_NAME, AnswerFile, Record
from genre_lightning.ask.asking import Asker, Interrupted
from genre_lightning.ask.poster import PosterFormat
from genre_lightning.ask.question import POSTER, Example, Prompt, Questioner
from genre_lightning.ask.rate_limit import RateLimit
from genre_lightning.ask.server import ChatServer, ServerError, read_key
from genre_lightning.errors import UserError
from genre_lightning.files import whole_file
from genre_lightning.inputs.decode import PosterError
from genre_lightning.movies.movie import Movie, MovieSet, PosterFile
from genre_lightning.progress import progress
from genre_lightning.runs.quoting import shell_command
from genre_lightning.wording import counted, first_few

if TYPE_CHECKING:
    from rich.console import Console

#: File in a run folder with everything needed to ask the same questions again.
QUESTIONS_FILE = "asked.json"
#: Maximum number of movies without an answer that the terminal names.
MAX_NAMED_MOVIES = 5


@dataclass(frozen=True)
class ServerSettings:
    """The section ``server`` of conf/ask.yaml, which explains each setting; None for no limit."""

    concurrency: int = 8
    timeout: float = 300
    retries: int = 6
    longest_wait: float = 600
    give_up_after: int | None = 10
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_requests: int | None = None
    max_tokens: int | None = None

    def connect(
        self,
        base_url: str,
        api_key_env: str | None,
        url_setting: str = "base_url",
        key_setting: str = "api_key_env",
    ) -> ChatServer:
        """Return a client of the server at an address, with these limits.

        Args:
            base_url: address of the API.
            api_key_env: name of the environment variable that holds the key; None for no key.
            url_setting: name of the setting that holds ``base_url``, for messages.
            key_setting: name of the setting that holds ``api_key_env``, for messages.

        Raises:
            UserError: the address or the key can't be used.
        """
        return ChatServer(
            base_url,
            api_key=read_key(api_key_env, key_setting),
            key_name=api_key_env,
            url_setting=url_setting,
            rate_limit=RateLimit(
                self.requests_per_minute, self.tokens_per_minute, self.max_requests, self.max_tokens
            ),
            timeout=self.timeout,
            retries=self.retries,
            longest_wait=self.longest_wait,
        )


@dataclass
class Answers:
    """Answers about the movies of a dataset.

    Costs include those of answers that an earlier run received.

    Attributes:
        scores: (N, G) float32 in [0, 1] of all N movies of the dataset; nan without an answer.
        keys: keys of the answered questions, by the movie's row.
        failed: why there is no answer, by the movie's row.
        prompt_tokens: sum over all movies, as far as the server reported them.
        completion_tokens: sum over all movies, as far as the server reported them.
        seconds: sum over all replies.
        num_known: number of movies whose tokens are known.
        asked: number of movies with a reply.
    """

    scores: np.ndarray
    keys: dict[int, str] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    num_known: int = 0
    asked: int = 0

    @property
    def tokens_per_movie(self) -> float | None:
        """Mean number of prompt and completion tokens; None if the server reported none."""
        total = self.prompt_tokens + self.completion_tokens
        return total / self.num_known if self.num_known else None

    @property
    def seconds_per_movie(self) -> float | None:
        """Mean seconds from sending to the end of the reply, over all of a movie's requests.

        None if no movie had a reply.
        """
        return self.seconds / self.asked if self.asked else None

    def add(self, row: int, record: Record, genres: Sequence[str]) -> None:
        """Add the record of the movie in this row."""
        if record.scores is None:
            self.failed[row] = record.failed or "it has no answer"
        else:
            self.scores[row] = [record.scores[genre] for genre in genres]
            self.keys[row] = record.key
        self.asked += record.asks > 0
        self.seconds += record.seconds
        self.num_known += record.tokens is not None
        self.prompt_tokens += record.prompt_tokens or 0
        self.completion_tokens += record.completion_tokens or 0


def choose_rows(rows: np.ndarray, limit: int | None) -> np.ndarray:
    """Choose movies of a split: always the same ones, and for a smaller limit a subset of them.

    Args:
        rows: (N,) int64, the split's rows, sorted.
        limit: maximum number of movies; None for all.
    """
    if limit is None:
        return rows
    chosen: np.ndarray = np.random.default_rng(0).permutation(len(rows))[:limit]
    return np.sort(rows[chosen])


def check_shown(movies: MovieSet, show: Sequence[str]) -> None:
    """Refuse columns that the dataset does not have.

    Raises:
        UserError: a column is missing, with a message that lists the dataset's columns; or
            ``show`` is not a list.
    """
    if isinstance(show, str):
        raise UserError(f"show={show} must be a list of columns: show=[{show}]")
    for name in show:
        if name not in movies.columns():
            raise UserError(
                f"show: no movie of the dataset has a column {name!r}; it has "
                f"{', '.join(movies.columns())}. Add further columns with data.columns=FILE.csv"
            )


def draw_examples(
    movies: Sequence[Movie],
    train: np.ndarray,
    prompt: Prompt,
    show: Sequence[str],
    poster: PosterFormat,
    seed: int,
) -> list[Example]:
    """Draw train movies to show before the question, with all the columns that they show.

    One more than the prompt shows, as a substitute when an example is itself the movie in question.

    Args:
        movies: all movies of the dataset.
        train: (n,) int64, rows of the movies to draw from.
        prompt: determines the number of examples and whether they include posters.
        show: columns to show.
        poster: how posters are sent.
        seed: random seed.

    Raises:
        UserError: too few movies qualify, or the examples would show nothing.
    """
    if not prompt.examples:
        return []
    texts = [name for name in show if name != POSTER]
    with_posters = prompt.example_posters and POSTER in show
    if not texts and not with_posters:
        raise UserError(
            f"prompt={prompt.name} shows examples, but with show=[{POSTER}] they have nothing to "
            "show: set prompt.example_posters=true to show their posters"
        )
    examples: list[Example] = []
    for row in np.random.default_rng(seed).permutation(train).tolist():
        example = _make_example(movies[row], texts, poster if with_posters else None)
        if example is not None:
            examples.append(example)
        if len(examples) > prompt.examples:
            return examples
    raise UserError(
        f"prompt.examples={prompt.examples}: train has only {counted(len(examples), 'movie')} with "
        f"all of {', '.join(show)}, and one more than the examples is needed"
    )


def _make_example(
    movie: Movie, texts: Sequence[str], poster: PosterFormat | None
) -> Example | None:
    """A movie as an example; None if it lacks a text or a readable poster.

    Args:
        movie: with its genres.
        texts: columns of text to show.
        poster: how its poster is sent; None to send none.
    """
    columns = {name: movie.value(name) for name in texts}
    if not all(isinstance(text, str) and text for text in columns.values()):
        return None
    sent = None
    if poster is not None:
        file = movie.value(POSTER)
        if not isinstance(file, PosterFile) or not file.exists:
            return None
        try:
            sent = poster.encode(file.read_bytes())
        except (OSError, PosterError):
            return None
    shown = {name: str(text) for name, text in columns.items()}
    return Example(movie.id, shown, movie.genres, sent)


def open_answer_file(folder: Path, reuse: str | None) -> AnswerFile:
    """Open the answers of a run folder, and those of the runs below ``reuse``."""
    own = folder / ANSWER_FILE_NAME
    others: list[Path] = []
    if reuse is not None and Path(reuse).is_dir():
        paths = (
            path for path in Path(reuse).rglob(ANSWER_FILE_NAME) if path.resolve() != own.resolve()
        )
        others = sorted(paths, key=lambda path: path.stat().st_mtime)
    return AnswerFile(own, others)


def save_questioner(folder: Path, questioner: Questioner, **more: Any) -> None:
    """Write what is needed to ask the same questions again; ``more`` are arguments of the asker."""
    with whole_file(folder / QUESTIONS_FILE) as file:
        file.write(json.dumps({"questioner": questioner.to_plain(), **more}, indent=2) + "\n")


def load_questioner(folder: Path) -> tuple[Questioner, dict[str, Any]]:
    """Read what :func:`save_questioner` wrote.

    Raises:
        UserError: the file is missing or damaged.
    """
    path = folder / QUESTIONS_FILE
    try:
        plain = json.loads(path.read_text("utf-8"))
        questioner = Questioner.from_plain(plain.pop("questioner"))
        if unknown := plain.keys() - {"ask_again", "again_temperature"}:
            raise ValueError(f"unknown key {min(unknown)!r:.200}")
        return questioner, plain
    except FileNotFoundError:
        raise UserError(
            f"{folder} has no {QUESTIONS_FILE}, so it is not a run of genre-ask"
        ) from None
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise UserError(f"{path}: can't be used: {str(error)[:300]}") from error


def ask_rows(
    movies: MovieSet,
    rows: np.ndarray,
    questioner: Questioner,
    answer_file: AnswerFile,
    settings: ServerSettings,
    console: Console,
    *,
    api_key_env: str | None = None,
    ask_again: int = 2,
    again_temperature: float = 0.7,
) -> Answers:
    """Ask about movies of a dataset, except those with an answer in the file.

    Args:
        movies: the dataset.
        rows: (n,) int64, rows of the movies to ask about.
        questioner: makes the questions.
        answer_file: the run's answers.
        settings: limits on requests.
        console: where the progress bar is shown.
        api_key_env: name of the environment variable that holds the key.
        ask_again: see :class:`~genre_lightning.ask.asking.Asker`.
        again_temperature: see :class:`~genre_lightning.ask.asking.Asker`.

    Raises:
        UserError: the server can't be used (any more); the message says how to continue.
        Interrupted: the user stopped the command.
    """
    genres = questioner.genres
    answers = Answers(np.full((len(movies.movies), len(genres)), np.nan, dtype=np.float32))
    server = settings.connect(questioner.base_url, api_key_env)
    asker = Asker(
        questioner,
        server,
        answer_file,
        concurrency=settings.concurrency,
        ask_again=ask_again,
        again_temperature=again_temperature,
        give_up_after=settings.give_up_after,
        say=console.print,
    )
    try:
        asyncio.run(_ask(asker, server, movies, rows, answers, genres, console))
    except Interrupted:
        console.print(f"Stopped. {_resume_hint(answers, rows, answer_file)}", soft_wrap=True)
        raise
    except UserError as error:
        if not answers.keys:
            raise
        raise type(error)(f"{error}. {_resume_hint(answers, rows, answer_file)}") from error
    finally:
        asker.close()
        for name, reason in asker.unreadable.items():
            console.print(f"unreadable, not shown: {name} ({reason})", soft_wrap=True)
    if not answers.keys:
        reason = next(iter(answers.failed.values()), "there is none")
        raise ServerError(f"{questioner.base_url}: no movie has an answer; the first: {reason}")
    return answers


async def _ask(
    asker: Asker,
    server: ChatServer,
    movies: MovieSet,
    rows: np.ndarray,
    answers: Answers,
    genres: Sequence[str],
    console: Console,
) -> None:
    """Ask about these movies and fill ``answers`` as replies arrive; see :func:`ask_rows`."""
    async with server:
        with progress("asking", len(rows), console=console) as update:
            done = itertools.count(1)

            def on_record(number: int, record: Record) -> None:
                answers.add(int(rows[number]), record, genres)
                tokens = answers.prompt_tokens + answers.completion_tokens
                failed = len(answers.failed)
                update(next(done), f" movies, {tokens:,} tokens, {failed} without answer")

            await asker.run((movies.movies[row] for row in rows.tolist()), on_record)


def _resume_hint(answers: Answers, rows: np.ndarray, answer_file: AnswerFile) -> str:
    return (
        f"{len(answers.keys):,} of {len(rows):,} movies have an answer, in "
        f"{shell_command(answer_file.path)}; run the same command again to continue"
    )


def unanswered_line(movies: MovieSet, split: str, rows: np.ndarray, answers: Answers) -> str | None:
    """A line for the terminal about movies without an answer; None if all have one."""
    failed = [row for row in rows.tolist() if row in answers.failed]
    if not failed:
        return None
    reasons = [f"{movies.movies[row].id} ({answers.failed[row]})" for row in failed]
    # Movies of train are not scored; their answers are only stored, for the branch `answers`.
    effect = "are not in answers.npz" if split == "train" else "count as wrong"
    return (
        f"{split}: {len(failed):,} of {len(rows):,} movies have no answer and {effect}: "
        f"{first_few(reasons, MAX_NAMED_MOVIES, '; ')}"
    )


def answer_reasons(
    answers: Answers, answer_file: AnswerFile, rows: np.ndarray
) -> Mapping[int, str]:
    """The model's reasons, by the movie's row."""
    reasons = {}
    for row in rows.tolist():
        record = answer_file.find(answers.keys[row]) if row in answers.keys else None
        if record is not None and record.why:
            reasons[row] = record.why
    return reasons
