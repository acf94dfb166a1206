"""Movies, prompts and questioners for tests, and a function that asks."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from PIL import Image

from genre_lightning.ask.answer_file import AnswerFile, Record
from genre_lightning.ask.asking import Asker
from genre_lightning.ask.question import Prompt, Questioner
from genre_lightning.ask.rate_limit import RateLimit
from genre_lightning.ask.server import ChatServer
from genre_lightning.movies.movie import Movie, PosterFile
from tests.ask.loopback import GENRES, Loopback

PROMPTS = Path(__file__).resolve().parents[2] / "conf" / "prompt"


def make_prompt(name: str = "zero_shot", **more: Any) -> Prompt:
    """A variant of conf/prompt, with some fields replaced."""
    files = [
        OmegaConf.load(PROMPTS / f"{file}.yaml") for file in dict.fromkeys(("zero_shot", name))
    ]
    plain: Any = OmegaConf.to_container(OmegaConf.merge(*files))
    plain.pop("defaults", None)
    return Prompt(**{**plain, **more})


def make_questioner(**more: Any) -> Questioner:
    settings = {
        "base_url": "http://127.0.0.1:1/v1",
        "model": "m",
        "genres": GENRES,
        "show": ["title", "poster"],
        "prompt": make_prompt(),
        "parameters": {"temperature": 0, "max_tokens": 300, "seed": 5},
    }
    return Questioner(**{**settings, **more})


def locate_poster(path: Path) -> PosterFile:
    return PosterFile.at(path)


def draw_poster(path: Path, size: tuple[int, int] = (40, 60), seed: int = 0) -> PosterFile:
    """Write a poster of noise; ``size`` is width and height."""
    noise = np.random.default_rng(seed).integers(256, size=(size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return locate_poster(path)


def make_movie(number: int, poster: PosterFile | None = None, /, **columns: str) -> Movie:
    values: dict[str, str | PosterFile] = {"title": f"Movie {number} (1990)", **columns}
    if poster is not None:
        values["poster"] = poster
    return Movie(str(number), values, (GENRES[number % 4],), None, "")


def ask(
    loopback: Loopback | str,
    movies: Sequence[Movie],
    path: Path | None = None,
    *,
    rate_limit: RateLimit | None = None,
    retries: int = 2,
    timeout: float = 30,
    concurrency: int = 4,
    ask_again: int = 2,
    give_up_after: int | None = 10,
    found: dict[int, Record] | None = None,
    others: Sequence[Path] = (),
    **settings: Any,
) -> dict[int, Record]:
    """Ask and return the records by movie number; ``found`` has them even after an error."""
    url = loopback if isinstance(loopback, str) else loopback.url
    found = {} if found is None else found
    server = ChatServer(url, rate_limit=rate_limit, retries=retries, timeout=timeout)
    answer_file = None if path is None else AnswerFile(path, others)
    asker = Asker(
        make_questioner(base_url=url, **settings),
        server,
        answer_file,
        concurrency=concurrency,
        ask_again=ask_again,
        give_up_after=give_up_after,
    )

    async def run() -> None:
        async with server:
            await asker.run(iter(movies), found.__setitem__)

    try:
        asyncio.run(run())
    finally:
        asker.close()
        if answer_file is not None:
            answer_file.__exit__()
    return found
