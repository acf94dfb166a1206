"""How soon the command answers: `train.py --cfg job` beside a bare import of Hydra.

    python -m benchmarks.start

By turns, each in a process of its own. Ends with one JSON line: ``figure`` is the median of the
command's seconds, ``ratio`` the median over turns of the command's time over the import's.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence

from benchmarks.measure import (
    REPOSITORY,
    alternate,
    argument_parser,
    json_line,
    print_table,
    ratios,
    spread,
)

AIM = 1.5


def main(arguments: Sequence[str] | None = None) -> None:
    """Time both sides and print the table."""
    args = argument_parser(__doc__, n=15, training=False).parse_args(arguments)
    commands = {
        "train.py --cfg job": [sys.executable, str(REPOSITORY / "train.py"), "--cfg", "job"],
        "import hydra": [sys.executable, "-c", "import hydra"],
    }
    seconds = alternate(commands, args.n)
    print_table(seconds, "s")
    found = ratios(*seconds.values())
    figure = statistics.median(seconds["train.py --cfg job"])
    ratio = statistics.median(found)
    print(json_line(figure, ratio, args.n, spread(found), AIM, unit="s", aim_is="at most"))


if __name__ == "__main__":
    main()
