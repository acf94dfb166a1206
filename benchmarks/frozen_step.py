"""What Lightning and callbacks cost when steps are short: training on cached embeddings.

    python -m benchmarks.frozen_step --root data/ml1m
    python -m benchmarks.frozen_step --root data/ml1m model.members=1 data.folds=1

Like :mod:`benchmarks.harness`, for ``model=pretrained``: five networks in each branch, each
validated on its own fold of train.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.harness import compare_with_loop
from benchmarks.measure import argument_parser

AIM = 0.8


def main(arguments: Sequence[str] | None = None) -> None:
    """Time both sides and print the table."""
    parser = argument_parser(__doc__, n=5, training=True)
    parser.add_argument("--epochs", type=int, default=4, help="per side and turn; default 4")
    compare_with_loop(parser.parse_args(arguments), ["model=pretrained"], AIM)


if __name__ == "__main__":
    main()
