"""Trainings that share the cores with other processes, with default settings.

    python -m benchmarks.shared_cores --root data/ml1m
    python -m benchmarks.shared_cores --root data/ml1m --load 8

Makes two comparisons, whose four sides alternate: two commands of `python train.py` at once against
the same two one after the other; and one command on a machine loaded by other processes against the
same with `OMP_NUM_THREADS=1`. Otherwise neither `OMP_NUM_THREADS` nor `GOMP_SPINCOUNT` is set. Ends
with one JSON line: ``figure`` is the median seconds of two at once, ``ratio`` the median over turns
of that over one after the other, ``loaded_ratio`` the ratio of the other comparison.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from benchmarks.training import train_command

AIM = 1.1
LOADED_AIM = 1.2
#: Keeps one core busy.
BUSY = "while True: pass"


def run_at_once(commands: Sequence[Sequence[str]], environment: Mapping[str, str]) -> None:
    """Start all commands at once, and wait for all of them.

    Raises:
        RuntimeError: a command failed.
    """
    processes = [
        subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for command in commands
    ]
    codes = [process.wait() for process in processes]
    if any(codes):
        raise RuntimeError(f"commands have ended with {codes}: {commands[0]}")


@contextmanager
def load(count: int) -> Iterator[None]:
    """Run ``count`` processes that each keep a core busy, inside the block."""
    processes = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def main(arguments: Sequence[str] | None = None) -> None:
    """Time the four sides and print the table."""
    parser = argument_parser(__doc__, n=3, training=True)
    parser.add_argument("--epochs", type=int, default=4, help="epochs per training; default 4")
    parser.add_argument("--load", type=int, default=4, help="busy processes; default 4")
    args = parser.parse_args(arguments)
    train = train_command(args.root, [*args.overrides, f"trainer.max_epochs={args.epochs}"])
    with tempfile.TemporaryDirectory() as temporary, command_environment() as environment:
        for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
            environment.pop(name, None)
        one_thread = {**environment, "OMP_NUM_THREADS": "1"}
        run_folders = iter(Path(temporary) / str(number) for number in range(10**6))

        def command() -> list[str]:
            return [*train, f"hydra.run.dir={next(run_folders)}"]

        def at_once() -> None:
            run_at_once([command(), command()], environment)

        def in_turn() -> None:
            run(command(), environment)
            run(command(), environment)

        def loaded(variables: Mapping[str, str]) -> None:
            with load(args.load):
                run(command(), variables)

        run(command(), environment)  # fills the cache
        seconds = by_turns(
            {
                "two at once": at_once,
                "one after the other": in_turn,
                f"beside {args.load} busy processes": lambda: loaded(environment),
                "the same, OMP_NUM_THREADS=1": lambda: loaded(one_thread),
            },
            args.n,
            uncounted=0,
        )
    print_table(seconds, "s", f"{args.epochs} epochs, load {os.getloadavg()[0]:.1f}", digits=1)
    together, apart, beside, single = seconds.values()
    turn_ratios = ratios(together, apart)
    print(
        json_line(
            statistics.median(together), statistics.median(turn_ratios), args.n,
            spread(turn_ratios), AIM,
            unit="s", aim_is="at most",
            loaded_ratio=statistics.median(ratios(beside, single)),
            loaded_spread=spread(ratios(beside, single)), loaded_aim=LOADED_AIM,
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
