"""Time of an evaluation's report beyond scoring the split.

    python -m benchmarks.report
    python -m benchmarks.report --sizes 777 -n 5 --model pretrained

For each number of generated movies in the test split, with a warm cache and an untrained model, it
alternates between scoring the split alone and everything that `evaluate.py` does once the model and
the data are loaded: scores of both splits, metrics, tables, `predictions.csv` and `report.html`
with its gallery. Ends with one JSON line: ``figure`` is the median of the difference in seconds
with the most movies; ``ratio`` is that difference over the allowed one, for the number of movies
where it is worst. Allowed are 2 s for 777 movies and 10 s for 25,000, with a straight line between.
"""

from __future__ import annotations

import csv
import io
import statistics
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.measure import argument_parser, by_turns, json_line, print_table, spread
from benchmarks.scale import make_movies
from benchmarks.untrained import write_checkpoint

#: Numbers of movies in the test split, and the seconds that their reports are allowed to take.
SIZES = (777, 25_000)
MAX_SECONDS = (2.0, 10.0)
AIM = 1.0


def main(arguments: Sequence[str] | None = None) -> None:
    """Time both sides for each number of movies and print the tables."""
    parser = argument_parser(__doc__, n=3, training=False)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="movies of the split")
    parser.add_argument("--model", default="fusion", help="untrained model; default: fusion")
    args = parser.parse_args(arguments)
    extra_seconds: dict[int, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = write_checkpoint(folder / "model.ckpt", overrides=[f"model={args.model}"])
        for size in args.sizes:
            sides = _sides(checkpoint, folder / str(size), size)
            seconds = by_turns(sides, args.n)
            print_table(seconds, "s", f"{size} movies")
            whole, alone = seconds.values()
            extra_seconds[size] = [a - b for a, b in zip(whole, alone, strict=True)]
    shares = {
        size: [value / _max_seconds(size) for value in extras]
        for size, extras in extra_seconds.items()
    }
    worst = max(shares, key=lambda size: statistics.median(shares[size]))
    print(
        json_line(
            statistics.median(extra_seconds[max(args.sizes)]),
            statistics.median(shares[worst]),
            args.n,
            spread(shares[worst]),
            AIM,
            unit="s",
            aim_is="at most",
            seconds={
                size: round(statistics.median(extras), 2) for size, extras in extra_seconds.items()
            },
        )
    )


def _max_seconds(size: int) -> float:
    slope = (MAX_SECONDS[1] - MAX_SECONDS[0]) / (SIZES[1] - SIZES[0])
    return MAX_SECONDS[0] + slope * (size - SIZES[0])


def _sides(checkpoint: Path, folder: Path, size: int) -> dict[str, Callable[[], None]]:
    from rich.console import Console

    from genre_lightning.checkpoint.model import load_model
    from genre_lightning.data.datamodule import MovieDataModule
    from genre_lightning.files import whole_file
    from genre_lightning.predicting.predictor import find_device
    from genre_lightning.report.evaluation import print_genre_table, score_split, write_evaluation
    from genre_lightning.report.page import Origin, render_report

    device = find_device("auto")
    model = load_model(checkpoint, device)
    manifest = _with_splits(make_movies(folder, 2 * size), size)
    data = MovieDataModule(
        "manifest",
        model.inputs,
        genres=model.genres,
        cache_dir=folder / "cache",
        path=str(manifest),
    )
    data.setup()
    out = folder / "out"

    def score(split: str) -> Any:
        return score_split(model, data, split, device)

    def evaluate() -> None:
        scores = score("test")
        metrics = write_evaluation(out, model, data, scores)
        validation = score("val") if len(model.inputs) > 1 else None
        origin = Origin(checkpoint, "python evaluate.py", datetime.now(UTC))
        html = render_report(model, data, scores, origin, validation)
        with whole_file(out / "report.html") as file:
            file.write(html)
        print_genre_table(model, scores, metrics, Console(file=io.StringIO()))

    def score_alone() -> None:
        score("test")

    return {"everything": evaluate, "scores alone": score_alone}


def _with_splits(manifest: Path, test: int) -> Path:
    """Write the list with a column split: ``test`` movies of test, a fifth as many of val."""
    path = manifest.with_name("split.csv")
    with (
        manifest.open(newline="", encoding="utf-8") as source,
        path.open("w", newline="", encoding="utf-8") as file,
    ):
        rows = csv.reader(source)
        writer = csv.writer(file)
        writer.writerow([*next(rows), "split"])
        for number, row in enumerate(rows):
            split = "test" if number < test else "val" if number < 1.2 * test else "train"
            writer.writerow([*row, split])
    return path


if __name__ == "__main__":
    main()
