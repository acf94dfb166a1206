"""How fast the embedding cache is filled, compared with the encoder's bare forward pass.

    python -m benchmarks.embed --root data/ml1m
    python -m benchmarks.embed --root data/ml1m --columns FILE.csv

Alternates between filling a cache in an empty folder (read, decode, resize, encode, write) and
running the encoder's network, as its library provides it, on prepared batches, channels last. The
bare forward pass uses its best setting: several batch sizes are tried, texts sorted by length, with
each batch on all cores or one core per batch. Posters go through lite2 with its stages and titles
through minilm, as in ``model=pretrained``; with ``--columns`` also the column ``synopsis`` of the
file. Ends with one JSON line: ``figure`` is posters a second; ``ratio`` is the median over turns of
the bare forward's seconds over the cache's, for the kind of value where it is least; ``ratios`` and
``rates`` are those of each kind.
"""

from __future__ import annotations

import csv
import statistics
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.measure import argument_parser, by_turns, json_line, print_table, ratios, spread
from benchmarks.untrained import compose_titles, draw_posters, poster_file
from genre_lightning.cores import num_cores
from genre_lightning.inputs.input import Store
from genre_lightning.movies.movie import PosterFile
from genre_lightning.movies.readers import read_movies

if TYPE_CHECKING:
    from genre_lightning.inputs.embedding import EmbeddingInput

AIM = 0.93
POSTERS_AT_ONCE = (1, 2, 4)
TOKENS_AT_ONCE = (512, 1024, 4096)


def main(arguments: Sequence[str] | None = None) -> None:
    """Time the sides and print the table."""
    parser = argument_parser(__doc__, n=5, training=False)
    parser.add_argument("--root", type=Path, help="ml1m, folder or zip; default: drawn posters")
    parser.add_argument("--columns", type=Path, help="CSV with a column synopsis")
    parser.add_argument("--posters", type=int, default=256, help="how many; default 256")
    parser.add_argument("--titles", type=int, default=2048, help="how many; default 2048")
    parser.add_argument("--synopses", type=int, default=192, help="how many; default 192")
    parser.add_argument("--text-encoder", default="minilm", help="encoder of titles and synopses")
    parser.add_argument("--prompt-after", default="", help="appended to every text")
    args = parser.parse_args(arguments)

    from genre_lightning.inputs.embedding import EmbeddingInput

    with tempfile.TemporaryDirectory() as folder:
        posters, titles = _movies(args.root, Path(folder), args.posters, args.titles)
        values: dict[str, Sequence[Any]] = {"posters": posters, "titles": titles}

        def text(column: str) -> EmbeddingInput:
            return EmbeddingInput(column, args.text_encoder, prompt_after=args.prompt_after)

        inputs = {
            "posters": EmbeddingInput("poster", "lite2", stages=True),
            "titles": text("title"),
        }
        if args.columns is not None:
            with args.columns.open(newline="", encoding="utf-8") as file:
                synopses = [row["synopsis"] for row in csv.DictReader(file) if row["synopsis"]]
            values["synopses"] = synopses[: args.synopses]
            inputs["synopses"] = text("synopsis")

        def fill(name: str) -> None:
            with tempfile.TemporaryDirectory(dir=folder) as cache_dir:
                train = np.ones(len(values[name]), dtype=bool)
                inputs[name].open(values[name], train, Store(Path(cache_dir), progress=False))

        sides: dict[str, Callable[[], None]] = {}
        for name in values:
            fill(name)  # downloads and loads the encoder
            sides[f"{name}: cache"] = partial(fill, name)
            sides[f"{name}: bare"] = best_forward(inputs[name], values[name])
        seconds = by_turns(sides, args.n)
    rates = {
        name: [len(values[name.split(":")[0]]) / value for value in side]
        for name, side in seconds.items()
    }
    print_table(rates, "a second", f"{num_cores()} cores", digits=1)
    turn_ratios = {name: ratios(rates[f"{name}: cache"], rates[f"{name}: bare"]) for name in values}
    medians = {name: statistics.median(each) for name, each in turn_ratios.items()}
    slowest = min(medians, key=lambda name: medians[name])
    print(
        json_line(
            statistics.median(rates["posters: cache"]),
            medians[slowest],
            args.n,
            spread(turn_ratios[slowest]),
            AIM,
            unit="posters/s",
            aim_is="at least",
            ratios={name: round(value, 3) for name, value in medians.items()},
            spreads={name: round(spread(each), 3) for name, each in turn_ratios.items()},
            rates={name: round(statistics.median(rates[f"{name}: cache"]), 1) for name in values},
        )
    )


def _movies(
    root: Path | None, folder: Path, posters: int, titles: int
) -> tuple[list[PosterFile], list[str]]:
    if root is None:
        drawn = draw_posters(folder / "posters", posters)
        return [poster_file(path) for path in drawn], compose_titles(titles)
    movies = read_movies("ml1m", root=str(root)).movies
    files = [movie.value("poster") for movie in movies]
    readable = [file for file in files if isinstance(file, PosterFile) and file.exists]
    return readable[:posters], [movie.title for movie in movies][:titles]


def best_forward(branch_input: EmbeddingInput, values: Sequence[Any]) -> Callable[[], None]:
    """The bare forward pass over all values, with the setting that is fastest on a share of them.

    Args:
        branch_input: an opened EmbeddingInput.
        values: posters or texts.
    """
    share = values[: max(1, len(values) // 4)]
    sizes = POSTERS_AT_ONCE if branch_input.of == "poster" else TOKENS_AT_ONCE
    trials = {
        (size, workers): _forward(branch_input, share, size, workers)
        for size in sizes
        for workers in {1, num_cores()}
    }
    seconds = by_turns(trials, 2)  # type: ignore[arg-type]
    best = min(trials, key=lambda setting: min(seconds[setting]))  # type: ignore[index]
    what = "posters" if branch_input.of == "poster" else "tokens"
    shared = "each batch on all cores" if best[1] == 1 else "a batch a core"
    print(
        f"bare forward of the {branch_input.column} column: {best[0]} {what} at once, {shared}",
        flush=True,
    )
    return _forward(branch_input, values, *best)


def _forward(
    branch_input: EmbeddingInput, values: Sequence[Any], size: int, workers: int
) -> Callable[[], None]:
    """The network on prepared batches of ``size`` posters or tokens; 1 worker uses all cores."""
    import torch

    from genre_lightning.inputs.encoders.images import ImageEncoder
    from genre_lightning.inputs.one_core import one_core_threads

    encoder = branch_input.load()
    batches: list[tuple[torch.Tensor, ...]]
    if isinstance(encoder, ImageEncoder):
        pixels = np.stack([branch_input.read(file.read_bytes()) for file in values])
        batches = [(batch,) for batch in encoder.normalise(pixels).split(size)]
        network: Callable[..., Any] = encoder.vectors
    else:
        tokens = encoder.tokenize(branch_input.add_prompt(values), branch_input.prompt_after)
        ids, mask = (torch.from_numpy(part) for part in (tokens.input_ids, tokens.attention_mask))
        lengths = mask.sum(1)
        order = lengths.argsort()
        batches = []
        while len(order):
            longest = int(lengths[order[-1]])
            batch, order = order[-max(1, size // longest) :], order[: -max(1, size // longest)]
            batches.append((ids[batch, :longest].contiguous(), mask[batch, :longest].contiguous()))
        network = encoder.module

    def compute(batch: tuple[torch.Tensor, ...]) -> None:
        with torch.inference_mode():
            network(*batch)

    def run() -> None:
        if workers == 1:
            for batch in batches:
                compute(batch)
            return
        with one_core_threads(workers, "bare") as pool:
            list(pool.map(compute, batches))

    return run


if __name__ == "__main__":
    main()
