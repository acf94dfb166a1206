"""How long users wait: whole commands, with an empty cache and again.

    python -m benchmarks.costs --root data/ml1m --columns FILE.csv
    python -m benchmarks.costs --root data/ml1m --recipes fusion pretrained -n 3

For each recipe, ``train.py`` runs with its own empty cache, then again with the cache filled, and
``evaluate.py`` scores the test split with that cache. A turn is all three. Prints a Markdown table
of seconds, medians over turns, and ends with one JSON line: ``figure`` is the longest second
training, ``ratio`` that over the same recipe's first.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from benchmarks.measure import (
    REPOSITORY,
    argument_parser,
    by_turns,
    command_environment,
    hardware,
    json_line,
    spread,
)
from benchmarks.measure import run as run_command
from benchmarks.training import train_command

#: By name in the table: a recipe's overrides, and whether it needs ``--columns``.
RECIPES: dict[str, tuple[list[str], bool]] = {
    "title": (["model=title"], False),
    "fast": (["experiment=fast"], False),
    "fusion": ([], False),
    "pretrained": (["model=pretrained"], False),
    "full": (["model=full"], True),
    "full_credits": (["model=full_credits"], True),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Time the commands and print the table."""
    parser = argument_parser(__doc__, n=1, training=True)
    parser.add_argument("--columns", type=Path, help="CSV with synopsis, cast and director by id")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, help="default: all possible ones")
    args = parser.parse_args(arguments)
    possible = [name for name, (_, texts) in RECIPES.items() if args.columns or not texts]
    chosen = args.recipes or possible
    if missing := [name for name in chosen if name not in possible]:
        parser.error(f"{missing[0]} needs --columns")
    rows = {}
    for name in chosen:
        overrides, texts = RECIPES[name]
        if texts:
            overrides = [*overrides, f"data.columns={args.columns.resolve()}"]
        rows[name] = _seconds(train_command(args.root, [*overrides, *args.overrides]), args.n)
    print(f"{hardware()}, n = {args.n}")
    print("| recipe | first training, s | again, s | evaluate.py, s |\n| --- | --- | --- | --- |")
    for name, seconds in rows.items():
        medians = [f"{statistics.median(side):.1f}" for side in seconds.values()]
        print(f"| {name} | {' | '.join(medians)} |")
    again = {name: seconds["again"] for name, seconds in rows.items()}
    longest = max(again, key=lambda name: statistics.median(again[name]))
    figure = statistics.median(again[longest])
    first = statistics.median(rows[longest]["first"])
    print(
        json_line(
            figure, figure / first, args.n, spread(again[longest]), None, unit="s", recipe=longest
        )
    )


def _seconds(train: list[str], n: int) -> dict[str, list[float]]:
    """Seconds of the first training, the second and an evaluation, each once per turn."""
    with tempfile.TemporaryDirectory() as temporary, command_environment() as environment:
        # Not timed: compiles the imported modules.
        run_command([*train, "--cfg", "job"], environment)
        turns = iter(range(n))
        folder = Path()

        def timed(run: str, *command: str) -> None:
            run_environment = {**environment, "GENRE_LIGHTNING_CACHE": str(folder / "cache")}
            run_command([*command, f"hydra.run.dir={folder / run}"], run_environment)

        def first() -> None:
            nonlocal folder
            folder = Path(temporary) / str(next(turns))
            timed("first", *train)

        def evaluate() -> None:
            script = str(REPOSITORY / "evaluate.py")
            timed("evaluated", sys.executable, script, f"ckpt_path={folder / 'again'}")

        sides: dict[str, Callable[[], None]] = {
            "first": first,
            "again": partial(timed, "again", *train),
            "evaluate": evaluate,
        }
        return by_turns(sides, n, uncounted=0)


if __name__ == "__main__":
    main()
