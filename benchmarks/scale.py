"""How the cost of reader, split, title features and poster cache grows with the number of movies.

    python -m benchmarks.scale
    python -m benchmarks.scale --sizes 1000 10000
    python -m benchmarks.scale --vectors -n 1          # a million; 5 GiB of memory, 2 of disk
    python -m benchmarks.scale --mmimdb                # a folder like MM-IMDb's, of its 25,959

Generates movies (titles of made-up words, 18 genres, a small poster each, listed in a CSV). For
each number of movies, separate processes time the parts of `MovieDataModule.setup` on an empty
cache, then all of `setup` on the warm cache. Imports are not timed. Memory (Linux only) is the
process's peak, minus what it held after the imports and minus the private memory that `setup`
keeps (titles, labels, features). With ``--vectors`` each movie also has a synopsis of about 40
words, and instead of a poster a vector of 64 numbers, by id, like an encoder's output. With
``--mmimdb`` it has a plot of about 100 words, a shorter one, and a poster of 384x256; files and
splits are laid out as in that dataset.

Ends with one JSON line: ``figure`` is the seconds of a warm start with the most movies; ``ratio``
is the cost per movie on an empty cache, with the most movies over the fewest (median over turns);
``growth`` is the same ratio for each part.
"""

from __future__ import annotations

import csv
import json
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import (
    argument_parser,
    command_environment,
    hardware,
    json_line,
    output_of,
    ratios,
    spread,
)

AIM = 1.3
#: Seconds of a warm start with the most movies, by kind of dataset.
AIM_WARM_SECONDS = {"posters": 5.0, "vectors": 20.0, "mmimdb": 5.0}
#: Default numbers of movies, by kind of dataset.
SIZES = {
    "posters": (1_000, 10_000, 100_000),
    "vectors": (10_000, 1_000_000),
    "mmimdb": (1_000, 25_959),
}
WIDTH = 64  # of the vectors
NUM_GENRES = 18
SIDE = 32  # of the cached posters: 100,000 of them take 300 MB
DRAWINGS = 64  # different images, each copied under many names
PARTS = ("reader", "split", "texts", "posters")


def make_movies(folder: Path, count: int, seed: int = 0) -> Path:
    """Write posters and the CSV that lists them; return the CSV's path."""
    from PIL import Image

    from benchmarks.untrained import compose_titles

    rng = np.random.default_rng(seed)
    posters = folder / "posters"
    posters.mkdir(parents=True)
    drawings = []
    for number in range(min(DRAWINGS, count)):
        pixels = rng.integers(0, 256, (72, 48, 3), dtype=np.uint8)
        drawings.append(folder / f"drawing{number}.jpg")
        Image.fromarray(pixels).save(drawings[-1], quality=75)
    # Few movies have rare genres, as in real data.
    chance = 0.4 / np.arange(1, NUM_GENRES + 1)
    with (folder / "movies.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "title", "poster", "genres"])
        for number, title in enumerate(compose_titles(count, seed)):
            if number % 10_000 == 0:  # a folder of 100,000 files is slow on some disks
                (posters / str(number // 10_000)).mkdir()
            poster = posters / str(number // 10_000) / f"{number}.jpg"
            shutil.copyfile(drawings[number % len(drawings)], poster)
            genre_numbers = np.flatnonzero(rng.random(NUM_GENRES) < chance)
            genres = "|".join(f"Genre {g}" for g in (genre_numbers if len(genre_numbers) else [0]))
            writer.writerow([number, title, poster.relative_to(folder), genres])
    return folder / "movies.csv"


def make_movies_with_vectors(folder: Path, count: int, seed: int = 0) -> Path:
    """Write a CSV with titles and synopses, and ``vectors.npz``; return the CSV's path."""
    from benchmarks.untrained import compose_titles

    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    # Drawing every word would take longer than the timed work.
    phrases = [title.rsplit(" ", 1)[0] for title in compose_titles(20_000, seed)]
    chance = 0.4 / np.arange(1, NUM_GENRES + 1)
    with (folder / "movies.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "title", "poster", "genres", "synopsis"])
        for start in range(0, count, 10_000):
            size = min(10_000, count - start)
            has_genre = rng.random((size, NUM_GENRES)) < chance
            has_genre[~has_genre.any(1), 0] = True
            phrase_numbers = rng.integers(len(phrases), size=(size, 18)).tolist()
            years = rng.integers(1920, 2001, size).tolist()
            for row in range(size):
                first, second, *rest = (phrases[number] for number in phrase_numbers[row])
                genres = "|".join(f"Genre {g}" for g in np.flatnonzero(has_genre[row]))
                title = f"{first} {second} ({years[row]})"
                writer.writerow([start + row, title, "", genres, " ".join(rest)])
    vectors = rng.standard_normal((count, WIDTH), dtype=np.float32)
    np.savez(folder / "vectors.npz", ids=np.arange(count), x=vectors)
    return folder / "movies.csv"


def make_mmimdb(folder: Path, count: int, seed: int = 0) -> Path:
    """Write a folder in MM-IMDb's layout; return the path of its ``split.json``."""
    from benchmarks.untrained import compose_titles
    from genre_lightning.movies.demo import draw_poster
    from genre_lightning.movies.mmimdb import GENRES

    rng = np.random.default_rng(seed)
    dataset = folder / "dataset"
    dataset.mkdir(parents=True)
    drawings = [draw_poster(rng, ["Drama"], 384) for _ in range(min(DRAWINGS, count))]
    names = [*GENRES, "News", "Adult"]
    chance = 0.4 / np.arange(1, len(names) + 1)
    titles = list(compose_titles(count + 20_000, seed))
    phrases = [title.rsplit(" ", 1)[0] for title in titles[count:]]
    ids = [f"{number:07}" for number in range(count)]
    for number, movie_id in enumerate(ids):
        genre_numbers = np.flatnonzero(rng.random(len(names)) < chance)
        words = [phrases[index] for index in rng.integers(len(phrases), size=40)]
        entry = {
            "title": titles[number].rsplit(" ", 1)[0],
            "year": int(rng.integers(1890, 2018)),
            "genres": [names[index] for index in genre_numbers] or ["Drama"],
            "plot": [" ".join(words[:10]), " ".join(words)],
            # The real files also contain much that the reader ignores.
            "cast": [{"name": name, "personID": name} for name in words],
        }
        (dataset / f"{movie_id}.json").write_text(json.dumps(entry), "utf-8")
        (dataset / f"{movie_id}.jpeg").write_bytes(drawings[number % len(drawings)])
    # In the proportions of MM-IMDb: 15,552, 2,608 and 7,799 of 25,959.
    first, second = (count * end // 25_959 for end in (15_552, 18_160))
    splits = {"train": ids[:first], "dev": ids[first:second], "test": ids[second:]}
    (folder / "split.json").write_text(json.dumps(splits), "utf-8")
    return folder / "split.json"


def time_parts(manifest: Path, cache_dir: Path) -> dict[str, float]:
    """Seconds and memory (MiB) of each part, one after the other; run it in a fresh process."""
    # Load late imports now, so that they don't count as work of the first part that needs them.
    import iterstrat.ml_stratifiers  # noqa: F401
    import pytorch_lightning  # noqa: F401
    import sklearn.feature_extraction.text  # noqa: F401

    from genre_lightning.data import datamodule, splits
    from genre_lightning.inputs import pixels
    from genre_lightning.inputs.input import Input
    from genre_lightning.inputs.terms import TermsInput
    from genre_lightning.inputs.vectors import VectorsInput

    seconds: dict[str, float] = {}

    def timed_as(name: str, function: Any) -> Any:
        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - started

        return timed

    vectors, mmimdb = manifest.with_name("vectors.npz"), manifest.name == "split.json"
    posters: tuple[str, Any, str] = ("posters", pixels, "open_poster_cache")
    if vectors.exists():
        posters = ("posters", VectorsInput, "open")
    for name, module, attribute in (
        ("reader", datamodule, "read_movies"),
        ("split", splits, "split_movies"),
        posters,
    ):
        setattr(module, attribute, timed_as(name, getattr(module, attribute)))
    resident_before, private_before = _resident_mib("VmRSS"), _resident_mib("RssAnon")
    inputs: dict[str, Input] = {
        "title": TermsInput("title", 8192, "char_wb", (2, 5), sublinear_tf=True, decade=True)
    }
    if vectors.exists() or mmimdb:
        inputs["synopsis"] = TermsInput("synopsis", 8192, "word", (1, 1), sublinear_tf=True)
    if vectors.exists():
        inputs["poster"] = VectorsInput(str(vectors))
    else:
        inputs["poster"] = pixels.PixelsInput(size=SIDE)
    reader = "mmimdb" if mmimdb else "manifest"
    options: dict[str, Any] = {"root": str(manifest.parent)} if mmimdb else {"path": str(manifest)}
    data = datamodule.MovieDataModule(reader, inputs, cache_dir=cache_dir, **options)
    started = time.perf_counter()
    data.setup()
    setup = time.perf_counter() - started
    # The rest is text features; keys and labels cost next to nothing.
    text_seconds = setup - sum(seconds.values())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        **{name: seconds.get(name, 0.0) for name in ("reader", "split", "posters")},
        "texts": text_seconds,
        "setup": setup,
        "peak_mib": peak,
        "before_mib": resident_before,
        "held_mib": _resident_mib("RssAnon") - private_before,
    }


def _resident_mib(field: str) -> float:
    """Memory of this process in MiB: ``VmRSS`` is all of it, ``RssAnon`` without mapped files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


def run_time_parts(
    manifest: Path, cache_dir: Path, environment: Mapping[str, str]
) -> dict[str, float]:
    """Run :func:`time_parts` in its own process."""
    command = [sys.executable, "-m", "benchmarks.scale", "--time", str(manifest), str(cache_dir)]
    measured: dict[str, float] = json.loads(output_of(command, environment).splitlines()[-1])
    return measured


def main(arguments: Sequence[str] | None = None) -> None:
    """Time all numbers of movies alternately and print the table."""
    parser = argument_parser(__doc__, n=3, training=False)
    parser.add_argument("--sizes", type=int, nargs="+", help="numbers of movies")
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--vectors", action="store_true", help="synopses, and vectors for posters")
    kinds.add_argument("--mmimdb", action="store_true", help="a folder like that of MM-IMDb")
    parser.add_argument("--time", type=Path, nargs=2, help="for internal use: time one dataset")
    args = parser.parse_args(arguments)
    if args.time is not None:
        print(json.dumps(time_parts(*args.time)))
        return
    kind = "vectors" if args.vectors else "mmimdb" if args.mmimdb else "posters"
    make = {"posters": make_movies, "vectors": make_movies_with_vectors, "mmimdb": make_mmimdb}[
        kind
    ]
    args.sizes = args.sizes or SIZES[kind]
    cold: dict[int, list[dict[str, float]]] = {size: [] for size in args.sizes}
    warm: dict[int, list[dict[str, float]]] = {size: [] for size in args.sizes}
    with tempfile.TemporaryDirectory() as folder, command_environment() as environment:
        manifests = {size: make(Path(folder) / str(size), size) for size in args.sizes}
        for _ in range(args.n):
            for size, manifest in manifests.items():
                with tempfile.TemporaryDirectory(dir=folder) as cache_dir:
                    cold[size].append(run_time_parts(manifest, Path(cache_dir), environment))
                    warm[size].append(run_time_parts(manifest, Path(cache_dir), environment))

    def median(runs: Sequence[dict[str, float]], key: str) -> float:
        return statistics.median(run[key] for run in runs)

    print(f"{hardware()}, n = {args.n}; microseconds a movie on an empty cache, seconds, MiB")
    print(f"| movies | {' | '.join(PARTS)} | all | warm start s | held MiB | peak beyond MiB |")
    print("| --- " * (len(PARTS) + 5) + "|")
    for size in args.sizes:
        cells = [f"{1e6 * median(cold[size], part) / size:.0f}" for part in (*PARTS, "setup")]
        beyond = [run["peak_mib"] - run["before_mib"] - run["held_mib"] for run in cold[size]]
        cells += [
            f"{median(warm[size], 'setup'):.2f}",
            f"{median(cold[size], 'held_mib'):.0f}",
            f"{statistics.median(beyond):.0f}",
        ]
        print(f"| {size} | {' | '.join(cells)} |")
    smallest, largest = min(args.sizes), max(args.sizes)
    per_movie = {
        size: {part: [run[part] / size for run in cold[size]] for part in (*PARTS, "setup")}
        for size in (smallest, largest)
    }
    turn_ratios = ratios(per_movie[largest]["setup"], per_movie[smallest]["setup"])
    print(
        json_line(
            median(warm[largest], "setup"),
            statistics.median(turn_ratios),
            args.n,
            spread(turn_ratios),
            AIM,
            unit="s",
            aim_is="at most",
            aim_warm_seconds=AIM_WARM_SECONDS[kind],
            growth={
                part: round(
                    statistics.median(ratios(per_movie[largest][part], per_movie[smallest][part])),
                    3,
                )
                for part in PARTS
            },
        )
    )


if __name__ == "__main__":
    main()
