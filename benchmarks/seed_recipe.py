"""Time of the original recipe, as one command from start to end.

    python -m benchmarks.seed_recipe --root data/ml1m    all 50 epochs, 14 min on 2 cores
    python -m benchmarks.seed_recipe --epochs 2            a check that it runs; no figure

Times `python train.py experiment=seed` on a warm poster cache, including imports, validation,
checkpoints and scoring. Ends with one JSON line: ``figure`` is the median of its seconds, ``ratio``
that over 30 minutes, its author's figure for 50 epochs on a T4. ``ratio`` is null for another
number of epochs, since a shorter run says too little about a full one.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Sequence

from benchmarks.measure import (
    REPOSITORY,
    argument_parser,
    command_environment,
    json_line,
    print_table,
    run,
    spread,
)
from benchmarks.training import build, compose_config, data_overrides, device_of

EPOCHS = 50
AUTHORS_SECONDS = 1800.0
AIM_GPU_SECONDS = 60.0


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and print the table."""
    parser = argument_parser(__doc__, n=1, training=True)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    args = parser.parse_args(arguments)
    overrides = ["experiment=seed", f"trainer.max_epochs={args.epochs}", *args.overrides]
    cfg = compose_config(args.root, overrides)
    build(cfg)  # fills the cache
    seconds = []
    command = [sys.executable, str(REPOSITORY / "train.py"), *data_overrides(args.root), *overrides]
    with tempfile.TemporaryDirectory() as folder, command_environment() as environment:
        # Not timed: compiles the imported modules.
        run([*command, "trainer.max_epochs=1", f"hydra.run.dir={folder}/first"], environment)
        for turn in range(args.n):
            started = time.perf_counter()
            run([*command, f"hydra.run.dir={folder}/run-{turn}"], environment)
            seconds.append(time.perf_counter() - started)
    device = device_of(cfg)
    print_table({f"{args.epochs} epochs": seconds}, "s", str(device), digits=0)
    whole = args.epochs == EPOCHS
    figure = statistics.median(seconds)
    aim = 1.0 if device.type == "cpu" else AIM_GPU_SECONDS / AUTHORS_SECONDS
    ratio = figure / AUTHORS_SECONDS if whole else None
    print(json_line(figure, ratio, args.n, spread(seconds), aim, unit="s", aim_is="at most"))


if __name__ == "__main__":
    main()
