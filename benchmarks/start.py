"""Startup time of the command: `train.py --cfg job` compared with a minimal Hydra program.

    python -m benchmarks.start

Alternates, each in its own process: the command; a Hydra program with a single key in one config
file, called with the same option; and a bare import of Hydra. Ends with one JSON line: ``figure``
is the median of the command's seconds, ``ratio`` the median over turns of the command's time over
the minimal program's, ``import_ratio`` the same over the import's.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measure import (
    REPOSITORY,
    alternate,
    argument_parser,
    json_line,
    print_table,
    ratios,
    spread,
)

AIM = 1.25
PROGRAM = """
import hydra


@hydra.main(version_base="1.3", config_path=".", config_name="config")
def main(cfg):
    print(cfg)


main()
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Time all three sides and print the table."""
    args = argument_parser(__doc__, n=15, training=False).parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        program = Path(temporary) / "program.py"
        program.write_text(PROGRAM, encoding="utf-8")
        (Path(temporary) / "config.yaml").write_text("key: 1\n", encoding="utf-8")
        commands = {
            "train.py --cfg job": [sys.executable, str(REPOSITORY / "train.py"), "--cfg", "job"],
            "program of one key": [sys.executable, str(program), "--cfg", "job"],
            "import hydra": [sys.executable, "-c", "import hydra"],
        }
        seconds = alternate(commands, args.n)
    print_table(seconds, "s")
    ours, minimal, imported = seconds.values()
    turn_ratios = ratios(ours, minimal)
    print(
        json_line(
            statistics.median(ours),
            statistics.median(turn_ratios),
            args.n,
            spread(turn_ratios),
            AIM,
            unit="s",
            aim_is="at most",
            import_ratio=round(statistics.median(ratios(ours, imported)), 2),
        )
    )


if __name__ == "__main__":
    main()
