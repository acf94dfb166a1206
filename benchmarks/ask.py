"""How well genre-ask uses a server's capacity, and whether its memory grows with the movies.

    python -m benchmarks.ask
    python -m benchmarks.ask --movies 800 -n 5

A server in its own process takes 200 ms per answer and answers eight requests at a time, so at most
40 a second. Its best rate in practice is measured by eight loops that send the same request again
and again. In alternation with these, generated movies with posters are asked about, one question
each: posters are decoded and encoded, answers checked and written to disk, as by the command. Then
10,000 movies are asked about on a server that answers at once. Ends with one JSON line: ``figure``
is the median of answers a second, ``ratio`` the median over turns of that rate over the best rate,
``of_forty`` the figure over 40, ``encoded`` the number of encodings per poster shown,
``memory_mib`` the growth of the peak memory from 1,000 movies to the end.
"""

from __future__ import annotations

import asyncio
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from aiohttp import ClientSession, web
from rich.console import Console

from benchmarks.measure import (
    REPOSITORY,
    argument_parser,
    by_turns,
    json_line,
    print_table,
    ratios,
    spread,
)
from genre_lightning.ask.answer import answer_schema
from genre_lightning.ask.answer_file import ANSWER_FILE_NAME, AnswerFile
from genre_lightning.ask.poster import PosterFormat
from genre_lightning.ask.question import Prompt, Questioner
from genre_lightning.ask.run import ServerSettings, ask_rows
from genre_lightning.movies.demo import read_demo
from genre_lightning.movies.movie import MovieSet

AIM = 0.95
ANSWER_SECONDS, CONCURRENCY = 0.2, 8
MAX_RATE = CONCURRENCY / ANSWER_SECONDS
MANY_MOVIES, FEW_MOVIES = 10_000, 1_000


async def serve(seconds: float) -> None:
    """Print an address with a free port of this machine, and answer there until terminated."""
    slots = asyncio.Semaphore(CONCURRENCY)

    async def answer(request: web.Request) -> web.Response:
        body = await request.json()
        properties = body["response_format"]["json_schema"]["schema"]["properties"]
        content = {name: "a guess" if name == "why" else 50 for name in properties}
        async with slots:
            await asyncio.sleep(seconds)
        message = {"role": "assistant", "content": json.dumps(content)}
        usage = {"prompt_tokens": 500, "completion_tokens": 100}
        choices = [{"message": message, "finish_reason": "stop"}]
        return web.json_response({"choices": choices, "usage": usage})

    app = web.Application(client_max_size=2**24)
    app.router.add_post("/v1/chat/completions", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    print(f"http://127.0.0.1:{port}/v1", flush=True)
    await asyncio.Event().wait()


@contextmanager
def served(seconds: float) -> Iterator[str]:
    """Start a server in its own process and yield its address."""
    command = [sys.executable, "-m", "benchmarks.ask", "--serve", str(seconds)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def bare_loops(url: str, count: int) -> float:
    """Seconds of sending the same request ``count`` times, eight at once, and reading answers."""
    schema = answer_schema(["Drama"])
    body = {"messages": [], "response_format": {"json_schema": {"schema": schema}}}
    remaining = iter(range(count))

    async def loop(session: ClientSession) -> None:
        for _ in remaining:
            async with session.post(f"{url}/chat/completions", json=body) as response:
                await response.json()

    async def loops() -> None:
        async with ClientSession() as session:
            await asyncio.gather(*(loop(session) for _ in range(CONCURRENCY)))

    started = time.perf_counter()
    asyncio.run(loops())
    return time.perf_counter() - started


class CountedFormat(PosterFormat):
    """A PosterFormat that counts its encodings."""

    count = 0

    def encode(self, data: bytes):  # type: ignore[no-untyped-def]
        """Encode as usual, and count."""
        CountedFormat.count += 1
        return super().encode(data)


def ask(url: str, movies: MovieSet, folder: Path) -> float:
    """Seconds of asking about all movies, into an empty folder."""
    questioner = Questioner(
        base_url=url,
        model="m",
        genres=movies.genres,
        show=["title", "poster"],
        prompt=Prompt("plain", "Judge.", "{{ columns['title'] }}"),
        poster=CountedFormat(),
    )
    with AnswerFile(folder / ANSWER_FILE_NAME) as answer_file:
        started = time.perf_counter()
        answers = ask_rows(
            movies,
            np.arange(len(movies.movies)),
            questioner,
            answer_file,
            ServerSettings(concurrency=CONCURRENCY),
            Console(quiet=True),
        )
        seconds = time.perf_counter() - started
    assert len(answers.keys) == len(movies.movies) and not answers.failed
    return seconds


def repeat_movies(movies: MovieSet, count: int) -> MovieSet:
    """``count`` movies with unique titles, which reuse the posters of ``movies``."""
    repeats = []
    for number in range(count):
        movie = movies.movies[number % len(movies.movies)]
        columns = {**movie.columns, "title": f"{movie.title} {number}"}
        repeats.append(replace(movie, id=str(number), columns=columns))
    return replace(movies, movies=repeats)


def peak_memory_mib() -> float:
    """The peak memory of this process, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure rate and memory and print both."""
    parser = argument_parser(__doc__, n=3, training=False)
    parser.add_argument("--movies", type=int, default=400, help="movies per turn; default 400")
    parser.add_argument(
        "--many",
        type=int,
        default=MANY_MOVIES,
        help=f"movies for the memory; default {MANY_MOVIES}",
    )
    parser.add_argument("--serve", type=float, metavar="SECONDS", help="run as the server")
    args = parser.parse_args(arguments)
    if args.serve is not None:
        asyncio.run(serve(args.serve))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        movies = read_demo(folder / "cache", num_movies=args.movies)
        turns = iter(range(args.n + 1))

        def ask_in_new_folder() -> float:
            (own_folder := folder / f"turn-{next(turns)}").mkdir()
            CountedFormat.count = 0
            return ask(url, movies, own_folder)

        with served(ANSWER_SECONDS) as url:
            sides = {
                "asking": ask_in_new_folder,
                "bare loops": lambda: bare_loops(url, args.movies),
            }
            seconds = by_turns(sides, args.n)
        num_posters = sum("poster" in movie.columns for movie in movies.movies)
        encoded = CountedFormat.count / num_posters
        rates = {name: [args.movies / value for value in side] for name, side in seconds.items()}
        print_table(rates, "answers/s", f"{args.movies} movies, {MAX_RATE:.0f}/s at most", digits=2)
        with served(0.0) as url:
            few = min(FEW_MOVIES, args.many)
            (folder / "few").mkdir()
            ask(url, repeat_movies(movies, few), folder / "few")
            before = peak_memory_mib()
            (folder / "many").mkdir()
            many_seconds = ask(url, repeat_movies(movies, args.many), folder / "many")
        growth = peak_memory_mib() - before
    print(
        f"{args.many:,} movies in {many_seconds:.0f} s at a server that answers at once: "
        f"{growth:.1f} MiB more than {few:,} movies, of {before:.0f}"
    )
    shares = ratios(rates["asking"], rates["bare loops"])
    figure = statistics.median(rates["asking"])
    print(
        json_line(
            figure,
            statistics.median(shares),
            args.n,
            spread(shares),
            AIM,
            unit="answers/s",
            aim_is="at least",
            of_forty=figure / MAX_RATE,
            encoded=encoded,
            memory_mib=growth,
            many=args.many,
        )
    )


if __name__ == "__main__":
    main()
