"""Overhead of a sweep: six jobs of one command against the sum of their fits.

    python -m benchmarks.sweep --root data/ml1m
    python -m benchmarks.sweep --root data/ml1m --epochs 4

Times `python train.py -m` over six seeds, from start to end, and each `trainer.fit` in it. In
alternation, the imports that a single training needs are timed, and subtracted once. Ends with one
JSON line: ``figure`` is the median of the command's seconds, ``ratio`` the median over turns of the
command minus the imports over the sum of the six fits; ``plain_ratio`` does not subtract the
imports.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytorch_lightning as pl

from benchmarks.measure import (
    argument_parser,
    command_environment,
    json_line,
    print_table,
    ratios,
    run,
    spread,
)
from benchmarks.training import build, compose_config, synchronise, train_command

AIM = 1.03
SEEDS = range(6)
#: The imports of a training.
IMPORTS = (
    "import hydra; from genre_lightning.lean_imports import load_lightning; load_lightning(); "
    "import torch, pytorch_lightning"
)


class FitTimer(pl.Callback):
    """Appends the seconds of each fit to a file."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._started = time.perf_counter()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        synchronise()
        with self.path.open("a") as file:
            file.write(f"{time.perf_counter() - self._started}\n")


def timed(command: Sequence[str], environment: Mapping[str, str]) -> float:
    """Wall seconds of a command."""
    started = time.perf_counter()
    run(command, environment)
    return time.perf_counter() - started


def main(arguments: Sequence[str] | None = None) -> None:
    """Time both sides and print the table."""
    parser = argument_parser(__doc__, n=3, training=True)
    parser.add_argument("--epochs", type=int, help="epochs per job; default: the recipe's")
    args = parser.parse_args(arguments)
    overrides = list(args.overrides)
    if args.epochs is not None:
        overrides.append(f"trainer.max_epochs={args.epochs}")
    cfg = compose_config(args.root, overrides)
    build(cfg)  # fills the cache
    seconds: dict[str, list[float]] = {"command": [], "imports": [], "six fits": []}
    imports = [sys.executable, "-c", IMPORTS]
    train = train_command(args.root, overrides)
    with tempfile.TemporaryDirectory() as temporary, command_environment() as environment:
        # Not timed: compiles the imported modules.
        run([*train, "trainer.max_epochs=1", f"hydra.run.dir={temporary}/first"], environment)
        for turn in range(args.n):
            fits = Path(temporary) / f"fits-{turn}"
            seconds["imports"].append(timed(imports, environment))
            command = [
                *train,
                f"seed={','.join(map(str, SEEDS))}",
                f"hydra.sweep.dir={temporary}/sweep-{turn}",
                "+callbacks.fit_timer._target_=benchmarks.sweep.FitTimer",
                f"+callbacks.fit_timer.path={fits}",
                "-m",
            ]
            seconds["command"].append(timed(command, environment))
            fit_seconds = [float(line) for line in fits.read_text().split()]
            if len(fit_seconds) != len(SEEDS):
                raise RuntimeError(f"{len(fit_seconds)} fits of {len(SEEDS)} were done")
            seconds["six fits"].append(sum(fit_seconds))
    print_table(seconds, "s", f"{cfg.trainer.max_epochs} epochs a job", digits=2)
    beyond_imports = [a - b for a, b in zip(seconds["command"], seconds["imports"], strict=True)]
    turn_ratios = ratios(beyond_imports, seconds["six fits"])
    print(
        json_line(
            statistics.median(seconds["command"]),
            statistics.median(turn_ratios),
            args.n,
            spread(turn_ratios),
            AIM,
            unit="s",
            aim_is="at most",
            plain_ratio=statistics.median(ratios(seconds["command"], seconds["six fits"])),
        )
    )


if __name__ == "__main__":
    main()
