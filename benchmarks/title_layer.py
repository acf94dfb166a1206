"""The sparse title branch, forward and backward, beside the dense (B, V) linear layer.

    python -m benchmarks.title_layer --root data/ml1m
    python -m benchmarks.title_layer --root data/ml1m data.batch_size=64

By turns on one training batch: the whole title branch of the configured model, and nothing but the
first layer of the usual one, ``nn.Linear(V, hidden)`` on a dense (B, V) array that is there before.
Ends with one JSON line: ``figure`` is the median of the branch's milliseconds, ``ratio`` the median
over turns of the dense layer's time over the branch's.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from benchmarks.measure import (
    argument_parser,
    by_turns,
    json_line,
    print_table,
    ratios,
    spread,
)
from benchmarks.training import build, compose_config, device_of, repeated, typical_batch
from genre_lightning.data.batch import MovieBatch

AIM = 5.0


def dense_titles(batch: MovieBatch, vocabulary_size: int) -> Tensor:
    """(B, V) float32 of the batch's sparse titles."""
    ends = batch.title_offsets.new_tensor([len(batch.title_indices)])
    lengths = torch.diff(batch.title_offsets, append=ends)
    rows = torch.repeat_interleave(torch.arange(len(batch), device=lengths.device), lengths)
    dense = torch.zeros(len(batch), vocabulary_size, device=lengths.device)
    dense[rows, batch.title_indices] = batch.title_weights
    return dense


def main(arguments: Sequence[str] | None = None) -> None:
    """Time both sides and print the table."""
    parser = argument_parser(__doc__, n=15, training=True)
    parser.add_argument("--steps", type=int, default=50, help="of each side in a turn; default 50")
    args = parser.parse_args(arguments)
    cfg = compose_config(args.root, args.overrides)
    data, module = build(cfg)
    device = device_of(cfg)
    batch = typical_batch(data, device)
    branch = module.network.title
    if branch is None:
        parser.error("the model has no title branch")
    branch.to(device)
    width = data.vectorizer.vocabulary_size
    dense = dense_titles(batch, width)
    linear = nn.Linear(width, cfg.model.title.hidden, bias=False).to(device)

    def timed(module: nn.Module, *inputs: Tensor) -> Callable[[], float]:
        def run() -> None:
            module.zero_grad()
            module(*inputs).sum().backward()

        return repeated(run, args.steps)

    titles = (batch.title_indices, batch.title_offsets, batch.title_weights)
    sides = {"sparse branch": timed(branch, *titles), "dense layer": timed(linear, dense)}
    seconds = by_turns(sides, args.n)
    milliseconds = {name: [1000 * value for value in side] for name, side in seconds.items()}
    print_table(milliseconds, "ms", f"{device}, batch {len(batch)}, V = {width}")
    found = ratios(seconds["dense layer"], seconds["sparse branch"])
    print(
        json_line(
            statistics.median(milliseconds["sparse branch"]),
            statistics.median(found),
            args.n,
            spread(found),
            AIM,
            unit="ms",
            aim_is="at least",
        )
    )


if __name__ == "__main__":
    main()
