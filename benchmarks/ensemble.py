"""Cost of eight networks in one checkpoint, compared with eight runs.

    python -m benchmarks.ensemble --root data/ml1m

Alternates between ``train.py model=pretrained data.folds=1`` with ``model.members=8``, to its end,
and with one member, whose seconds are multiplied by eight. Ends with one JSON line: ``figure`` is
the median seconds of the eight members, ``ratio`` the median over turns of these over eight runs,
``fit_ratio`` the same for the epochs alone, without startup and scoring.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measure import (
    argument_parser,
    by_turns,
    command_environment,
    json_line,
    print_table,
    ratios,
    run,
    spread,
)
from benchmarks.training import epoch_seconds, train_command

AIM = 0.35
MEMBERS = 8


def main(arguments: Sequence[str] | None = None) -> None:
    """Time both sides and print the table."""
    parser = argument_parser(__doc__, n=3, training=True)
    args = parser.parse_args(arguments)
    train = train_command(args.root, ["model=pretrained", "data.folds=1", *args.overrides])
    epochs: dict[int, list[float]] = {MEMBERS: [], 1: []}
    with tempfile.TemporaryDirectory() as temporary, command_environment() as environment:

        def whole_run(members: int) -> None:
            folder = Path(temporary) / f"{members}-{len(epochs[members])}"
            run([*train, f"model.members={members}", f"hydra.run.dir={folder}"], environment)
            epochs[members].append(epoch_seconds(folder))

        # Not timed: fills the caches and compiles the imported modules.
        run([*train, "trainer.max_epochs=1", f"hydra.run.dir={temporary}/first"], environment)
        sides = {"one checkpoint": lambda: whole_run(MEMBERS), "one of eight": lambda: whole_run(1)}
        seconds = by_turns(sides, args.n, uncounted=0)
    print_table(seconds, "s", f"{MEMBERS} members", digits=2)
    eight_runs = [MEMBERS * each for each in seconds["one of eight"]]
    turn_ratios = ratios(seconds["one checkpoint"], eight_runs)
    fits = ratios(epochs[MEMBERS], [MEMBERS * each for each in epochs[1]])
    print(
        json_line(
            statistics.median(seconds["one checkpoint"]),
            statistics.median(turn_ratios),
            args.n,
            spread(turn_ratios),
            AIM,
            unit="s",
            aim_is="at most",
            fit_ratio=statistics.median(fits),
        )
    )


if __name__ == "__main__":
    main()
