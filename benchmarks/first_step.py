"""Time from command to first training step on a warm cache, beyond the imports.

    python -m benchmarks.first_step --root data/ml1m

Alternates between ``train.py`` on a warm cache, stopped right after its first training step, and a
bare import of torch and pytorch_lightning. Ends with one JSON line: ``figure`` is the median of the
seconds that training needs beyond the imports, ``ratio`` the median of training over imports.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import (
    REPOSITORY,
    alternate,
    json_line,
    print_table,
    spread,
)

AIM_SECONDS = 2.0


def stop_after_first_step() -> Any:
    """A callback that ends the process, successfully, once one training step is done."""
    from pytorch_lightning.callbacks import Callback

    class StopAfterFirstStep(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            os._exit(0)

    return StopAfterFirstStep()


def main(arguments: Sequence[str] | None = None) -> None:
    """Time both sides and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", default="data/ml1m", help="folder or zip of the real movies")
    parser.add_argument("-n", "--n", type=int, default=5)
    args = parser.parse_args(arguments)
    train = [
        sys.executable,
        str(REPOSITORY / "train.py"),
        "data=ml1m",
        f"data.root={Path(args.root).resolve()}",
        "+callbacks.stop._target_=benchmarks.first_step.stop_after_first_step",
    ]
    # As in training, which keeps them from loading torchvision and transformers.
    libraries = "import torch, pytorch_lightning"
    lean = "from genre_lightning.lean_imports import load_lightning; load_lightning()"
    imports = [sys.executable, "-c", f"import os; {lean}; {libraries}; os._exit(0)"]
    seconds = alternate({"train": train, "imports": imports}, args.n)
    pairs = list(zip(seconds["train"], seconds["imports"], strict=True))
    beyond = [train - imports for train, imports in pairs]
    print_table({**seconds, "beyond the imports": beyond}, "s", digits=2)
    ratio = statistics.median(train / imports for train, imports in pairs)
    figure = statistics.median(beyond)
    print(json_line(figure, ratio, args.n, spread(beyond), AIM_SECONDS, unit="s", aim_is="at most"))


if __name__ == "__main__":
    main()
