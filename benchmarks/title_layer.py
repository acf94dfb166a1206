"""The sparse title branch, forward and backward, compared with a dense (B, V) linear layer.

    python -m benchmarks.title_layer --root data/ml1m
    python -m benchmarks.title_layer --root data/ml1m data.batch_size=64

Alternates, on one training batch, between the whole first branch with a ``terms_mlp`` and only the
first layer of its usual form, ``nn.Linear(V, hidden)`` on an existing dense (B, V) tensor. Ends
with one JSON line: ``figure`` is the median of the branch's milliseconds, ``ratio`` the median over
turns of the dense layer's time over the branch's.
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
from benchmarks.training import build, compose_config, device_of, time_repeatedly, typical_batch
from genre_lightning.inputs.part import Part
from genre_lightning.models.fusion import Fusion
from genre_lightning.models.terms_mlp import TermsMLP

AIM = 5.0


def dense_terms(part: Part, width: int) -> Tensor:
    """A part's sparse terms as a dense (P, V) float32 tensor."""
    indices, offsets = part.numbers["indices"], part.numbers["offsets"]
    lengths = torch.diff(offsets, append=offsets.new_tensor([len(indices)]))
    rows = torch.repeat_interleave(torch.arange(len(part), device=lengths.device), lengths)
    dense = torch.zeros(len(part), width, device=lengths.device)
    dense[rows, indices] = part.numbers["weights"]
    return dense


def first_terms_mlp(network: Fusion) -> tuple[str, TermsMLP | None]:
    """Name and network of the first branch with a TermsMLP; "" and None if there is none."""
    for name, branch in network.branches.items():
        if isinstance(branch, TermsMLP):
            return name, branch
    return "", None


def main(arguments: Sequence[str] | None = None) -> None:
    """Time both sides and print the table."""
    parser = argument_parser(__doc__, n=15, training=True)
    parser.add_argument("--steps", type=int, default=50, help="per side and turn; default 50")
    args = parser.parse_args(arguments)
    cfg = compose_config(args.root, args.overrides)
    data, module = build(cfg)
    device = device_of(cfg)
    batch = typical_batch(data, device)
    name, branch = first_terms_mlp(module.network)
    if branch is None:
        parser.error("no branch of the model has a terms_mlp")
    branch.to(device)
    part = batch.parts[name]
    width, hidden = branch.embed.num_embeddings, branch.embed.embedding_dim
    dense = dense_terms(part, width)
    linear = nn.Linear(width, hidden, bias=False).to(device)

    def timed(module: nn.Module, **inputs: Tensor) -> Callable[[], float]:
        def run() -> None:
            module.zero_grad()
            module(**inputs).sum().backward()

        return time_repeatedly(run, args.steps)

    sides = {
        "sparse branch": timed(branch, **part.numbers),
        "dense layer": timed(linear, input=dense),
    }
    seconds = by_turns(sides, args.n)
    milliseconds = {name: [1000 * value for value in side] for name, side in seconds.items()}
    print_table(milliseconds, "ms", f"{device}, {name}, batch {len(part)}, V = {width}")
    turn_ratios = ratios(seconds["dense layer"], seconds["sparse branch"])
    print(
        json_line(
            statistics.median(milliseconds["sparse branch"]),
            statistics.median(turn_ratios),
            args.n,
            spread(turn_ratios),
            AIM,
            unit="ms",
            aim_is="at least",
        )
    )


if __name__ == "__main__":
    main()
