"""Asks about movies with concurrent requests; an answer counts once it is on disk."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, TypeVar, final

from genre_lightning.ask.answer import AnswerError, read_answer, yes_share
from genre_lightning.ask.answer_file import AnswerFile, Record
from genre_lightning.ask.poster import SentPoster
from genre_lightning.ask.question import Questioner
from genre_lightning.ask.rate_limit import BudgetError, Stopped
from genre_lightning.ask.server import (
    ChatServer,
    Reply,
    RequestRefused,
    RetriesExhausted,
    ServerError,
    cancel_all,
)
from genre_lightning.cores import num_cores
from genre_lightning.errors import UserError
from genre_lightning.inputs.decode import PosterError
from genre_lightning.movies.movie import Movie, PosterFile

#: If the first requests are all refused, give up on the server after this many.
REFUSED_AT_FIRST = 3
#: Threads that decode and encode posters.
MAX_ENCODER_THREADS = 4

#: Called with a movie's number and its record.
OnRecord = Callable[[int, Record], None]
Read = TypeVar("Read")
Item = TypeVar("Item")
#: Pairs of a movie's number and an item; None marks the end.
_Queue: TypeAlias = "asyncio.Queue[tuple[int, Item] | None]"


class Interrupted(SystemExit):
    """The user has ended the command with a signal; the exit code is 128 + the signal's number."""


@dataclass(frozen=True)
class Question:
    """A movie to ask about.

    Attributes:
        id: the movie's id.
        key: see :meth:`genre_lightning.ask.question.Questioner.key`.
        texts: texts to show, by column.
        poster: poster to show; None for none.
        fingerprint: the poster's fingerprint; None for none.
    """

    id: str
    key: str
    texts: Mapping[str, str]
    poster: SentPoster | None
    fingerprint: str | None


@dataclass
class _Usage:
    """Total cost of the replies about one movie."""

    asks: int = 0
    seconds: float = 0.0
    tokens: dict[str, int | None] = field(default_factory=dict)

    def add(self, reply: Reply) -> None:
        self.asks += 1
        self.seconds += reply.seconds
        for name in ("prompt_tokens", "completion_tokens"):
            count, total = getattr(reply, name), self.tokens.get(name)
            self.tokens[name] = total if count is None else (total or 0) + count


@dataclass(frozen=True)
class _Pending:
    """A record waiting to be written to disk."""

    record: Record
    written: asyncio.Event = field(default_factory=asyncio.Event)


@final
class Asker:
    """Asks a server about movies.

    Args:
        questioner: makes the questions.
        server: an entered :class:`~genre_lightning.ask.server.ChatServer`.
        answer_file: where answers are looked up and stored; None to store nothing.
        concurrency: maximum number of concurrent requests.
        ask_again: how many times to ask again after an invalid answer.
        again_temperature: temperature of those further requests.
        give_up_after: stop after this number of movies in a row without an answer; None for never.
        say: shows a line to the user.

    Attributes:
        unreadable: why each unreadable poster could not be read, by the poster's name.

    Raises:
        UserError: ``ask_again`` or ``again_temperature`` is out of range.
    """

    def __init__(
        self,
        questioner: Questioner,
        server: ChatServer,
        answer_file: AnswerFile | None = None,
        *,
        concurrency: int = 8,
        ask_again: int = 2,
        again_temperature: float = 0.7,
        give_up_after: int | None = 10,
        say: Callable[[str], None] = print,
    ) -> None:
        # Both can also come from a run folder, which may be untrusted.
        if type(ask_again) is not int or ask_again < 0:
            raise UserError(f"ask_again={ask_again} must be a whole number of at least 0")
        if type(again_temperature) not in (int, float) or not 0 <= again_temperature <= 2:
            raise UserError(f"again_temperature={again_temperature} must lie between 0 and 2")
        self.questioner = questioner
        self.server = server
        self.answer_file = answer_file
        self.concurrency = concurrency
        self.ask_again = ask_again
        self.again_temperature = again_temperature
        self.give_up_after = give_up_after
        self.say = say
        self.unreadable: dict[str, str] = {}
        self._encoders = ThreadPoolExecutor(
            min(MAX_ENCODER_THREADS, num_cores()), thread_name_prefix="poster-encoder"
        )
        self._consecutive_failures = 0
        self._num_pending = 0
        self._has_probabilities = False
        self._error: UserError | None = None
        self._exit_code = 0

    def close(self) -> None:
        """End the threads that encode posters."""
        self._encoders.shutdown(cancel_futures=True)

    async def run(self, movies: Iterable[Movie], on_record: OnRecord) -> None:
        """Ask about movies; memory use does not grow with the number of movies.

        Answers received before an error are kept.

        Args:
            movies: consumed a few ahead of the requests.
            on_record: called with each movie's number and record once the record is on disk.

        Raises:
            ServerError: the server can't be used.
            UserError: the budget is used up, or too many movies in a row had no answer.
            Interrupted: Ctrl-C or SIGTERM; pending requests were awaited, unless there was a
                second signal.
        """
        questions: _Queue[Question] = asyncio.Queue(self.concurrency)
        to_write: _Queue[_Pending] = asyncio.Queue(4 * self.concurrency)
        numbered = enumerate(movies)
        feeders = [
            asyncio.create_task(self._feed(numbered, questions, to_write))
            for _ in range(MAX_ENCODER_THREADS)
        ]
        workers = [
            asyncio.create_task(self._work(questions, to_write)) for _ in range(self.concurrency)
        ]
        writer = asyncio.create_task(self._write(to_write, on_record))

        async def finish() -> None:
            await asyncio.gather(*feeders)
            for _ in workers:
                await questions.put(None)
            await asyncio.gather(*workers)
            await to_write.put(None)

        tasks = [*feeders, *workers, asyncio.create_task(finish())]
        all_done = asyncio.ensure_future(
            asyncio.wait([*tasks, writer], return_when=asyncio.FIRST_EXCEPTION)
        )
        try:
            with self._handle_signals(all_done):
                await all_done
        except asyncio.CancelledError:
            if not self._exit_code:
                raise
        finally:
            await cancel_all(tasks)
            if not writer.done():
                await to_write.put(None)
            await asyncio.gather(writer, return_exceptions=True)
        for task in (writer, *tasks):
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error
        if self._exit_code:
            raise Interrupted(self._exit_code)
        if self._error is not None:
            raise self._error

    @contextmanager
    def _handle_signals(self, all_done: asyncio.Future[Any]) -> Iterator[None]:
        """On Ctrl-C or SIGTERM, let pending requests finish; a second signal cancels them."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def stop(number: int) -> None:
            if self._exit_code:
                all_done.cancel()
                return
            self._exit_code = 128 + number
            self.server.rate_limit.stop.set()
            if self._num_pending:
                self.say(
                    f"Stopping: waiting for {self._num_pending} pending answers; press Ctrl-C "
                    "again to discard them."
                )

        for number in handlers:
            loop.add_signal_handler(number, stop, number)
        try:
            yield
        finally:
            for number, handler in handlers.items():
                loop.remove_signal_handler(number)
                signal.signal(number, handler)

    async def _feed(
        self,
        numbered: Iterator[tuple[int, Movie]],
        questions: _Queue[Question],
        to_write: _Queue[_Pending],
    ) -> None:
        """Look movies up, and queue questions about those without an answer."""
        for number, movie in numbered:
            if self.server.rate_limit.stop.is_set():
                return
            result = await self.look_up(movie)
            if isinstance(result, Record):
                await to_write.put((number, _Pending(result)))
            else:
                await questions.put((number, result))

    async def _work(self, questions: _Queue[Question], to_write: _Queue[_Pending]) -> None:
        """Ask one question after another."""
        stop = self.server.rate_limit.stop
        while (entry := await questions.get()) is not None:
            number, question = entry
            if stop.is_set():
                continue
            self._num_pending += 1
            try:
                record = await self.ask(question)
            except Stopped:
                continue
            except BudgetError as error:
                self._give_up(error)
                continue
            finally:
                self._num_pending -= 1
            pending = _Pending(record)
            await to_write.put((number, pending))
            # So a killed process loses at most `concurrency` answers.
            await pending.written.wait()
            self._count_failure(record)

    async def _write(self, to_write: _Queue[_Pending], on_record: OnRecord) -> None:
        """Write all waiting records to disk at once, then report them to ``on_record``."""
        is_last = False
        while not is_last:
            entries = [await to_write.get()]
            while not to_write.empty():
                entries.append(to_write.get_nowait())
            is_last = None in entries
            waiting = [entry for entry in entries if entry is not None]
            if self.answer_file is not None:
                records = [pending.record for _, pending in waiting]
                asked = [record for record in records if record.key]
                new = [record for record in asked if not self.answer_file.is_own(record.key)]
                if new:
                    await asyncio.to_thread(self.answer_file.add, new)
            for number, pending in waiting:
                pending.written.set()
                on_record(number, pending.record)

    def _count_failure(self, record: Record) -> None:
        """Stop the run if too many movies in a row had no answer."""
        self._consecutive_failures = (
            self._consecutive_failures + 1 if record.failed is not None else 0
        )
        if not self.server.answered and self._consecutive_failures >= REFUSED_AT_FIRST:
            self._give_up(ServerError(f"{self.server.base_url}: {record.failed}"))
        elif self.give_up_after is not None and self._consecutive_failures >= self.give_up_after:
            self._give_up(
                UserError(
                    f"{self._consecutive_failures} movies in a row had no usable answer "
                    f"(the last one: {record.failed}); set server.give_up_after=null to continue "
                    "anyway"
                )
            )

    def _give_up(self, error: UserError) -> None:
        """Start no further requests, and let :meth:`run` raise the first such error."""
        self._error = self._error or error
        self.server.rate_limit.stop.set()

    async def look_up(self, movie: Movie) -> Question | Record:
        """Return the stored answer about a movie, or else the question to ask.

        A movie that has none of the columns to show is recorded as failed.
        """
        texts = self.questioner.texts(movie)
        poster = self.questioner.poster_of(movie)
        sent, fingerprint = None, None
        if poster is not None:
            fingerprint = self.questioner.poster.fingerprint(poster)
            # Avoids decoding the poster again if there is an answer.
            image = None if self.answer_file is None else self.answer_file.images.get(fingerprint)
            if image is not None:
                answer = self._find(movie.id, self.questioner.key(movie.id, texts, image))
                if answer is not None:
                    return answer
            sent = await self.encode(poster)
        if sent is None:
            fingerprint = None
        if not texts and sent is None:
            missing = " and ".join(f"no {name}" for name in self.questioner.show)
            return Record(movie.id, "", None, failed=f"it has {missing} to show")
        key = self.questioner.key(movie.id, texts, None if sent is None else sent.digest)
        return self._find(movie.id, key) or Question(movie.id, key, texts, sent, fingerprint)

    def _find(self, movie_id: str, key: str) -> Record | None:
        record = None if self.answer_file is None else self.answer_file.find(key)
        if record is None or set(record.scores or ()) != set(self.questioner.genres):
            return None
        return replace(record, id=movie_id)

    async def encode(self, poster: PosterFile) -> SentPoster | None:
        """Encode a poster for sending; None if it can't be read, see ``unreadable``."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._encoders, self._encode, poster)

    def _encode(self, poster: PosterFile) -> SentPoster | None:
        try:
            return self.questioner.poster.encode(poster.read_bytes())
        except (OSError, PosterError) as error:
            self.unreadable[poster.name] = str(error)
            return None

    async def ask(self, question: Question) -> Record:
        """Ask about one movie, and ask again after an invalid answer.

        Raises:
            ServerError, BudgetError, Stopped: raised by
                :meth:`genre_lightning.ask.server.ChatServer.chat`.
        """
        usage = _Usage()
        genres = self.questioner.genres
        scores: dict[str, float] | None = None
        why, failed = "", None
        bodies = self.questioner.bodies(question.id, question.texts, question.poster)
        try:
            if self.questioner.answers == "json":
                values, why = await self._ask_until_valid(next(bodies), self._read_json, usage)
                scores = dict(zip(genres, values, strict=True))
            else:
                probabilities = [
                    await self._ask_until_valid(body, self._read_token, usage) for body in bodies
                ]
                scores = dict(zip(genres, probabilities, strict=True))
        except AnswerError as error:
            failed = f"its answer is invalid: {error}"
        except (RequestRefused, RetriesExhausted) as error:
            failed = str(error)
        return Record(
            id=question.id,
            key=question.key,
            scores=scores,
            why=why,
            failed=failed,
            asks=usage.asks,
            prompt_tokens=usage.tokens.get("prompt_tokens"),
            completion_tokens=usage.tokens.get("completion_tokens"),
            seconds=round(usage.seconds, 3),
            poster=question.fingerprint,
            image=None if question.poster is None else question.poster.digest,
        )

    async def _ask_until_valid(
        self, body: Mapping[str, Any], read: Callable[[Reply], Read], usage: _Usage
    ) -> Read:
        """Return what ``read`` makes of the first valid reply."""
        for again in range(self.ask_again + 1):
            try:
                reply = await self.server.chat(self._vary_request(body, again))
                usage.add(reply)
                return read(reply)
            except AnswerError:
                if again == self.ask_again:
                    raise
        raise AssertionError("unreachable")

    def _vary_request(self, body: Mapping[str, Any], again: int) -> Mapping[str, Any]:
        """The same request with another seed and temperature, so that the answer can differ."""
        if not again:
            return body
        varied = dict(body)
        if type(body.get("seed")) is int:
            varied["seed"] = body["seed"] + again
        # Not for logprobs: some servers compute the probabilities at this temperature.
        if "temperature" in body and self.questioner.answers == "json":
            varied["temperature"] = self.again_temperature
        return varied

    def _read_json(self, reply: Reply) -> tuple[tuple[float, ...], str]:
        if reply.finish_reason == "length":
            raise AnswerError(
                "it was cut off (finish_reason=length); increase parameters.max_tokens"
            )
        if reply.content is None:
            raise AnswerError(f"it has no text (finish_reason={reply.finish_reason!s:.50})")
        return read_answer(reply.content, self.questioner.genres)

    def _read_token(self, reply: Reply) -> float:
        if reply.first_tokens is None:
            if not self._has_probabilities:
                raise ServerError(
                    f"{self.server.base_url} returns no token probabilities, which "
                    "answers=logprobs needs: use answers=json"
                )
            raise AnswerError("it has no token probabilities")
        self._has_probabilities = True
        return yes_share(reply.first_tokens)
