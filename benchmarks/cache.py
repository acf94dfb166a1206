"""How fast the poster cache is built, compared with decoding and resizing alone.

    python -m benchmarks.cache --root data/ml1m
    python -m benchmarks.cache

Alternates, over the same files (512 drawn ones without ``--root``), between
:func:`open_poster_cache` in an empty folder and :func:`decode_poster` with one and two threads per
core, whose pixels are discarded. Ends with one JSON line: ``figure`` is the median of posters a
second of the cache, ``ratio`` the median over turns of the faster decoding's seconds over the
cache's.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

from benchmarks.measure import (
    argument_parser,
    by_turns,
    json_line,
    print_table,
    ratios,
    spread,
)
from benchmarks.untrained import draw_posters, poster_file
from genre_lightning.cores import num_cores
from genre_lightning.inputs.decode import PosterError, decode_poster
from genre_lightning.inputs.input import Store
from genre_lightning.inputs.poster_cache import open_poster_cache
from genre_lightning.movies.movie import PosterFile
from genre_lightning.movies.readers import read_movies

AIM = 0.9


def main(arguments: Sequence[str] | None = None) -> None:
    """Time the sides and print the table."""
    parser = argument_parser(__doc__, n=5, training=False)
    parser.add_argument("--root", type=Path, help="ml1m, folder or zip; default: drawn posters")
    parser.add_argument(
        "--posters", type=int, default=512, help="number of drawn ones; default 512"
    )
    parser.add_argument("--size", type=int, default=256, help="H = W; default 256")
    parser.add_argument("--shrink", type=int, default=4, help="as in the default recipe; default 4")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        if args.root is None:
            drawn = draw_posters(Path(folder) / "posters", args.posters)
            files = [poster_file(path) for path in drawn]
        else:
            movies = read_movies("ml1m", root=str(args.root)).movies
            posters = [movie.value("poster") for movie in movies]
            files = [
                poster for poster in posters if isinstance(poster, PosterFile) and poster.exists
            ]

        def build() -> None:
            with tempfile.TemporaryDirectory(dir=folder) as cache_dir:
                open_poster_cache(
                    files,
                    size=(args.size, args.size),
                    shrink=args.shrink,
                    store=Store(Path(cache_dir), progress=False),
                )

        def decode_one(file: PosterFile) -> None:
            with suppress(PosterError):  # an unreadable poster costs the cache just as much
                decode_poster(file.read_bytes(), args.size, args.shrink)

        def decode(threads: int) -> None:
            with ThreadPoolExecutor(threads) as pool:
                for _ in pool.map(decode_one, files):
                    pass

        cores = num_cores()
        sides: dict[str, Callable[[], None]] = {"cache": build}
        for threads in (cores, 2 * cores):
            sides[f"decoding alone, {threads} threads"] = partial(decode, threads)
        seconds = by_turns(sides, args.n)
    rates = {name: [len(files) / value for value in side] for name, side in seconds.items()}
    print_table(rates, "posters/s", f"{len(files)} posters to {args.size} x {args.size}", digits=0)
    fastest_decoding = max(list(rates)[1:], key=lambda name: statistics.median(rates[name]))
    turn_ratios = ratios(rates["cache"], rates[fastest_decoding])
    print(
        json_line(
            statistics.median(rates["cache"]),
            statistics.median(turn_ratios),
            args.n,
            spread(turn_ratios),
            AIM,
            unit="posters/s",
            aim_is="at least",
        )
    )


if __name__ == "__main__":
    main()
