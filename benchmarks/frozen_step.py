"""What Lightning and callbacks cost where a step is short: training on cached embeddings.

    python -m benchmarks.frozen_step --root data/ml1m
    python -m benchmarks.frozen_step --root data/ml1m model.members=1 data.folds=1

As :mod:`benchmarks.harness`, of ``model=pretrained``: five networks in each branch, each with a
fold of train of its own to be validated on.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.harness import compare_with_loop
from benchmarks.measure import argument_parser

AIM = 0.8


def main(arguments: Sequence[str] | None = None) -> None:
    """Time both sides and print the table."""
    parser = argument_parser(__doc__, n=5, training=True)
    parser.add_argument("--epochs", type=int, default=4, help="of each side in a turn; default 4")
    compare_with_loop(parser.parse_args(arguments), ["model=pretrained"], AIM)


if __name__ == "__main__":
    main()
