"""Movies predicted per second from a folder of posters, compared with decoding them alone.

    python -m benchmarks.predict_batch
    python -m benchmarks.predict_batch --model pretrained --movies 128
    python -m benchmarks.predict_batch --checkpoint runs/.../best.ckpt --folder posters/

Alternates, in one process with the same files and number of threads: prediction from titles and
files (:meth:`GenrePredictor.stream`), decoding the files alone, and the network alone on decoded
posters. Ends with one JSON line: ``figure`` is the median of movies predicted a second; ``ratio``
is the median over turns of the decoding's time over the prediction's minus the network's, so 1 if
prediction costs nothing beyond decoding and the network; ``plain_ratio`` does not subtract the
network's time. For a model with frozen encoders, such as ``model=pretrained``, the network alone is
the encoders as their libraries provide them, channels last, on prepared batches of the best size,
and ``ratio`` is the time of decoding and encoders over the prediction's; reading the words on
posters counts as decoding.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.embed import best_forward
from benchmarks.measure import by_turns, json_line, print_table, spread
from benchmarks.untrained import draw_posters, write_checkpoint

if TYPE_CHECKING:
    from genre_lightning import GenrePredictor

AIM = 0.85
AIM_WITH_ENCODERS = 0.9


def main(arguments: Sequence[str] | None = None) -> None:
    """Time the three sides and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, help="default: the default model, untrained")
    parser.add_argument("--model", default="fusion", help="untrained model; default: fusion")
    parser.add_argument("--movies", type=int, default=512, help="at most; default 512")
    parser.add_argument("--folder", type=Path, help="of posters (.jpg); default: drawn ones")
    parser.add_argument("--workers", type=int, help="threads that decode; default: one per core")
    parser.add_argument("--device", default="auto")
    parser.add_argument("-n", "--n", type=int, default=9)
    args = parser.parse_args(arguments)

    import torch

    from genre_lightning import GenrePredictor
    from genre_lightning.inputs.embedding import EmbeddingInput
    from genre_lightning.inputs.encode import encode_items
    from genre_lightning.inputs.poster_text import text_input
    from genre_lightning.predicting.predictor import BATCH_SIZE

    torch.set_num_threads(1)  # as in the predictor's own threads
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = args.checkpoint or write_checkpoint(
            Path(folder) / "model.ckpt", overrides=[f"model={args.model}"]
        )
        if args.folder is None:
            paths = draw_posters(Path(folder) / "posters", args.movies)
        else:
            paths = sorted(args.folder.glob("*.jpg"))[: args.movies]
            if not paths:
                parser.error(f"{args.folder} has no .jpg in it")
        predictor = GenrePredictor.from_checkpoint(checkpoint, args.device, args.workers)
        movies = [(path.stem, path) for path in paths]
        batches = [movies[i : i + BATCH_SIZE] for i in range(0, len(movies), BATCH_SIZE)]
        model = predictor.model
        posters = [
            branch_input for branch_input in model.inputs.values() if branch_input.of == "poster"
        ]
        read_batches = [_read(predictor, batch) for batch in batches[:8]]

        def predict() -> None:
            for _ in predictor.stream(movies, errors="report"):
                pass

        def decode_one(path: Path) -> None:
            for branch_input in posters:
                branch_input.read(path)

        def decode() -> None:
            with ThreadPoolExecutor(predictor.workers) as pool:
                for _ in pool.map(decode_one, paths):
                    pass

        def score(number: int) -> None:
            count = len(batches[number])
            items = {
                name: values[:count]
                for name, values in read_batches[number % len(read_batches)].items()
            }
            with torch.inference_mode():
                model.network(encode_items(model.inputs, items, model.device), count)

        def compute() -> None:
            with ThreadPoolExecutor(predictor.workers) as pool:
                for _ in pool.map(score, range(len(batches))):
                    pass

        values: dict[str, list[Any]] = {"poster": paths, "title": [path.stem for path in paths]}
        forwards = []
        for branch_input in model.inputs.values():
            encodes, seen = text_input(branch_input), values[branch_input.column]
            if isinstance(encodes, EmbeddingInput):
                reads_words = encodes is not branch_input
                seen = [branch_input.read(path) for path in seen] if reads_words else seen
                forwards.append(best_forward(encodes, seen))

        def encode() -> None:
            for forward in forwards:
                forward()

        sides: dict[str, Callable[[], None]] = {
            "prediction": predict,
            "decoding alone": decode,
            "network alone": encode if forwards else compute,
        }
        seconds = by_turns(sides, args.n)
    rates = {name: [len(paths) / value for value in side] for name, side in seconds.items()}
    print_table(rates, "movies/s", f"{predictor.workers} threads, {len(paths)} posters", digits=0)
    turns = list(zip(*seconds.values(), strict=True))
    ratios = [
        (decoding + network) / whole if forwards else decoding / (whole - network)
        for whole, decoding, network in turns
    ]
    plain_ratio = statistics.median(decoding / whole for whole, decoding, _ in turns)
    figure = len(paths) / statistics.median(seconds["prediction"])
    ratio = statistics.median(ratios)
    print(
        json_line(
            figure,
            ratio,
            args.n,
            spread(ratios),
            AIM_WITH_ENCODERS if forwards else AIM,
            unit="movies/s",
            aim_is="at least",
            plain_ratio=plain_ratio,
        )
    )


def _read(predictor: GenrePredictor, batch: Sequence[tuple[str, Path]]) -> dict[str, list[Any]]:
    """What each branch's input reads from a batch of titles and posters."""
    from genre_lightning.predicting.predictor import POSTER, TITLE

    movies = [{TITLE: title, POSTER: path} for title, path in batch]
    return {
        name: [branch_input.read(movie[branch_input.column]) for movie in movies]
        for name, branch_input in predictor.model.inputs.items()
    }


if __name__ == "__main__":
    main()
