"""Time of a single prediction: the command genre-predict against a bare ``import torch``.

    python -m benchmarks.predict_cold
    python -m benchmarks.predict_cold --checkpoint runs/.../best.ckpt --poster heat.jpg

Alternates, each in its own process, between ``genre-predict CKPT --title ... --poster ...`` from
start to exit and ``import torch``. Ends with one JSON line: ``figure`` is the median of the
command's seconds, ``ratio`` the median over turns of the command's time over the import's, and
``spread`` the ratio's standard deviation.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measure import (
    alternate,
    json_line,
    print_table,
    spread,
)
from benchmarks.untrained import draw_posters, write_checkpoint

AIM = 1.3


def main(arguments: Sequence[str] | None = None) -> None:
    """Time both sides and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, help="default: the default model, untrained")
    parser.add_argument("--poster", type=Path, help="default: a drawn one")
    parser.add_argument("--title", default="Avengers: Endgame (2019)")
    parser.add_argument("-n", "--n", type=int, default=15)
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = args.checkpoint or write_checkpoint(Path(folder) / "model.ckpt")
        poster = args.poster or draw_posters(Path(folder) / "posters", 1)[0]
        predict = [sys.executable, "-m", "genre_lightning.predicting.command", str(checkpoint)]
        commands = {
            "genre-predict": [*predict, "--title", args.title, "--poster", str(poster)],
            "import torch": [sys.executable, "-c", "import torch"],
        }
        seconds = alternate(commands, args.n)
    ratios = [a / b for a, b in zip(*seconds.values(), strict=True)]
    print_table(seconds, "s")
    figure = statistics.median(seconds["genre-predict"])
    ratio = statistics.median(ratios)
    print(json_line(figure, ratio, args.n, spread(ratios), AIM, unit="s", aim_is="at most"))


if __name__ == "__main__":
    main()
