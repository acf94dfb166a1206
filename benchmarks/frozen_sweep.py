"""Overhead of a sweep over trainings on cached embeddings: 36 jobs against their epochs.

    python -m benchmarks.frozen_sweep --root data/ml1m
    python -m benchmarks.frozen_sweep --root data/ml1m --one-process

Sweeps three learning rates, three dropout rates and four seeds over the branches of
``model=pretrained``, with one network each and a held-out validation split. joblib runs two jobs at
a time, with one thread each; with ``--one-process`` they run one after another. Ends with one JSON
line: ``figure`` is the median of the command's seconds, ``ratio`` the median over turns of these
over the jobs' epochs: the sum of seconds in their metrics.csv, divided by the number of jobs that
run at a time.
"""

from __future__ import annotations

import csv
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measure import (
    argument_parser,
    command_environment,
    json_line,
    print_table,
    ratios,
    run,
    spread,
)
from benchmarks.training import epoch_seconds, train_command

AIM = 1.5
SIDE_BY_SIDE = 2
RECIPE = ["model=pretrained", "model.members=1", "data.folds=1"]
SPACE = {
    "optimizer.lr": ("1e-3", "2e-3", "4e-3"),
    "model.dropout": ("0.3", "0.5", "0.7"),
    "seed": ("0", "1", "2", "3"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Time the command and print the table."""
    parser = argument_parser(__doc__, n=3, training=True)
    parser.add_argument("--one-process", action="store_true", help="run jobs one after another")
    args = parser.parse_args(arguments)
    count = 1 if args.one_process else SIDE_BY_SIDE
    train = train_command(args.root, [*RECIPE, *args.overrides])
    space = [f"{key}={','.join(values)}" for key, values in SPACE.items()]
    launcher = ["hydra/launcher=joblib", f"hydra.launcher.n_jobs={count}"] * (count > 1)
    seconds: dict[str, list[float]] = {"command": [], "epochs of all jobs": []}
    with tempfile.TemporaryDirectory() as temporary, command_environment() as environment:
        # Not timed: fills the caches and compiles the imported modules.
        run([*train, "trainer.max_epochs=1", f"hydra.run.dir={temporary}/first"], environment)
        for turn in range(args.n):
            sweep = Path(temporary) / f"sweep-{turn}"
            started = time.perf_counter()
            run([*train, *space, *launcher, f"hydra.sweep.dir={sweep}", "-m"], environment)
            seconds["command"].append(time.perf_counter() - started)
            with (sweep / "leaderboard.csv").open(newline="", encoding="utf-8") as file:
                folders = [Path(row["folder"]) for row in csv.DictReader(file)]
            seconds["epochs of all jobs"].append(sum(map(epoch_seconds, folders)))
    print_table(seconds, "s", f"{len(folders)} jobs, {count} at a time", digits=1)
    turn_ratios = ratios(
        seconds["command"], [each / count for each in seconds["epochs of all jobs"]]
    )
    print(
        json_line(
            statistics.median(seconds["command"]),
            statistics.median(turn_ratios),
            args.n,
            spread(turn_ratios),
            AIM,
            unit="s",
            aim_is="at most",
            jobs=len(folders),
        )
    )


if __name__ == "__main__":
    main()
