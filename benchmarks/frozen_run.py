"""Time of a run on cached embeddings: the whole command, beyond its imports.

    python -m benchmarks.frozen_run --root data/ml1m

Alternates between ``train.py model=pretrained`` on warm caches, to its end, and a command that
imports every module loaded by the end of that run. Ends with one JSON line: ``figure`` is the
median over turns of the seconds beyond the imports, ``ratio`` the median of the run over the
imports, ``epochs`` the median seconds of the run's epochs alone.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytorch_lightning as pl

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

AIM_SECONDS = 4.0
IMPORTS = """
import importlib, json, os, sys
from genre_lightning.lean_imports import load_lightning
load_lightning()  # as training imports it
for name in json.load(open(sys.argv[1])):
    try:
        importlib.import_module(name)
    except Exception:
        pass  # such as a module that another one has made up
os._exit(0)
"""


class ModuleList(pl.Callback):
    """Writes the names of the modules loaded by the end of training, in the order of loading."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        names = [name for name in sys.modules if not name.startswith(("__main__", "benchmarks"))]
        self.path.write_text(json.dumps(names), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Time both sides and print the table."""
    parser = argument_parser(__doc__, n=5, training=True)
    args = parser.parse_args(arguments)
    train = train_command(args.root, ["model=pretrained", *args.overrides])
    epochs: list[float] = []
    with tempfile.TemporaryDirectory() as temporary, command_environment() as environment:
        modules = f"{temporary}/modules.json"

        def whole_run() -> None:
            folder = Path(temporary) / f"run-{len(epochs)}"
            run([*train, f"hydra.run.dir={folder}"], environment)
            epochs.append(epoch_seconds(folder))

        list_modules = [
            "+callbacks.modules._target_=benchmarks.frozen_run.ModuleList",
            f"+callbacks.modules.path={modules}",
        ]
        # Not timed: fills the caches and compiles the imported modules.
        run([*train, f"hydra.run.dir={temporary}/first", *list_modules], environment)
        imports = [sys.executable, "-c", IMPORTS, modules]
        seconds = by_turns(
            {"run": whole_run, "imports": partial(run, imports, environment)}, args.n, uncounted=0
        )
    seconds["its epochs"] = epochs
    print_table(seconds, "s", digits=2)
    beyond = [a - b for a, b in zip(seconds["run"], seconds["imports"], strict=True)]
    print(
        json_line(
            statistics.median(beyond),
            statistics.median(ratios(seconds["run"], seconds["imports"])),
            args.n,
            spread(beyond),
            AIM_SECONDS,
            unit="s",
            aim_is="at most",
            epochs=statistics.median(epochs),
        )
    )


if __name__ == "__main__":
    main()
