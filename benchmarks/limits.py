"""Where the time of a training step goes, and how far each part is from the device's limits.

    python -m benchmarks.limits --root data/ml1m
    python -m benchmarks.limits --root data/ml1m data.batch_size=256

Uses the roofline model (Williams et al. 2009): an operation can't be faster than its arithmetic at
the device's matrix rate, nor than its memory traffic at the device's bandwidth. Both rates are
measured here, alternating with the step (forward, backward, optimizer, on one resident batch, in
the precision of training). Arithmetic is counted by PyTorch's FLOP counter. Bytes are those of an
operation's input and output tensors, each read or written once, so operations whose data stay in a
cache can be faster, and fused operations need fewer. A profiler measures the times of the parts; it
slows the step a little. Ends with one JSON line: ``figure`` is the median of the milliseconds of a
step, ``ratio`` the median over turns of the least possible time over the step's; there is no aim.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import argument_parser, by_turns, json_line, print_table, ratios, spread
from benchmarks.training import (
    compose_config,
    device_of,
    repeated,
    resident_step,
    synchronise,
)
from train import chosen_precision

#: Parts of a step, and words in the names of their operations; all others are ``OTHER``.
PARTS = {
    "convolutions": ("convolution",),
    "BatchNorm": ("batch_norm",),
    "sparse layers": ("embedding",),
    "optimizer": ("adam", "sgd", "Optimizer.step", "foreach"),
    "linear layers": ("mm", "linear"),
}
OTHER = "all other operations"
OUTSIDE = "outside of operations"
WHOLE = "the step"


def part_of(names: Iterable[str]) -> str:
    """The part of a step that an operation belongs to.

    Args:
        names: names of the operation and its callers, innermost first.
    """
    for name in names:
        for part, words in PARTS.items():
            if any(word in name for word in words):
                return part
    return OTHER


class ByteCounter(TorchDispatchMode):
    """While active, counts the bytes that each operation reads and writes.

    Attributes:
        bytes: bytes by name of the operation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes: dict[str, int] = defaultdict(int)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        schema = func._schema
        given = dict(zip((argument.name for argument in schema.arguments), args, strict=False))
        given.update(kwargs)
        aliased = [output.alias_info for output in schema.returns]
        if any(info is not None and not info.is_write for info in aliased):
            return result  # a view moves no data
        count = 0
        for argument in schema.arguments:
            written = argument.alias_info is not None and argument.alias_info.is_write
            # An in-place argument is also read, unless it is only overwritten. A fused optimizer
            # writes to the gradients only with a gradient scaler.
            once = func._opname in ("zero_", "fill_", "copy_") or argument.name == "grads"
            times = 2 if written and not once else 1
            count += times * _bytes(given.get(argument.name))
        if not any(info is not None for info in aliased):
            count += _bytes(result)
        self.bytes[str(func._opname)] += count
        return result


def _bytes(value: Any) -> int:
    tensors = (leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor))
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def least_seconds(
    run: Callable[[], object], flops_per_second: float, bytes_per_second: float
) -> dict[str, tuple[float, float, float]]:
    """FLOP, bytes and least possible seconds of a step, by part."""
    with FlopCounterMode(display=False) as flops, ByteCounter() as moved:
        run()
    counted = {str(op).split(".")[-1]: n for op, n in flops.get_flop_counts()["Global"].items()}
    parts: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for name in {*counted, *moved.bytes}:
        operations, size = float(counted.get(name, 0)), float(moved.bytes.get(name, 0))
        least = max(operations / flops_per_second, size / bytes_per_second)
        sums = parts[part_of([name])]
        for place, value in enumerate((operations, size, least)):
            sums[place] += value
    return {part: (sums[0], sums[1], sums[2]) for part, sums in parts.items()}


def profiled(run: Callable[[], None], steps: int, device: torch.device) -> dict[str, float]:
    """Seconds of a step on the device, by part; ``OUTSIDE`` is the time outside of operations."""
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    synchronise()
    with profile(activities=activities) as profiler:
        started = time.perf_counter()
        for _ in range(steps):
            run()
        synchronise()
        elapsed = time.perf_counter() - started
    seconds: dict[str, float] = defaultdict(float)
    for event in profiler.events() or []:
        if "::" not in event.name or event.name.startswith("autograd::"):
            continue
        callers, caller = [event.name], event.cpu_parent
        while caller is not None:
            callers.append(caller.name)
            caller = caller.cpu_parent
        own = event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
        seconds[part_of(callers)] += own / 1e6 / steps
    seconds[OUTSIDE] = elapsed / steps - sum(seconds.values())
    return dict(seconds)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the step and the limits, and print both tables."""
    parser = argument_parser(__doc__, n=9, training=True)
    parser.add_argument("--steps", type=int, default=10, help="steps per turn; default 10")
    args = parser.parse_args(arguments)
    cfg = compose_config(args.root, args.overrides)
    device = device_of(cfg)
    bf16 = chosen_precision(cfg) == "bf16-mixed"
    step, batch = resident_step(cfg, bf16=bf16)

    width = 1024 if device.type == "cpu" else 8192
    matrix = torch.rand(width, width, device=device, dtype=torch.bfloat16 if bf16 else None)
    block = torch.rand(2**26, device=device)
    other = torch.empty_like(block)

    seconds = by_turns(
        {
            "step": repeated(step, args.steps),
            "matrix product": repeated(lambda: matrix @ matrix, 10),
            "copy": repeated(lambda: other.copy_(block), 3),
        },
        args.n,
    )
    milliseconds = {name: [1000 * value for value in side] for name, side in seconds.items()}
    seen = ", ".join(f"{name} {len(part)}" for name, part in batch.parts.items())
    note = f"{device}, batch {cfg.data.batch_size}, of which {seen}"
    print_table(milliseconds, "ms", note, digits=2)
    rates = [2 * width**3 / value for value in seconds["matrix product"]]
    bandwidths = [2 * block.numel() * block.element_size() / value for value in seconds["copy"]]
    rate, bandwidth = statistics.median(rates), statistics.median(bandwidths)
    kind = "bfloat16" if bf16 else "float32"
    print(f"{kind} matrices: {rate / 1e12:.3f} TFLOP/s; memory: {bandwidth / 1e9:.1f} GB/s\n")

    taken = profiled(step, args.steps, device)
    least = least_seconds(step, rate, bandwidth)
    totals = [sum(values) for values in zip(*least.values(), strict=True)]
    counted = {**least, WHOLE: totals}
    order = sorted(taken, key=lambda part: -taken[part])
    print("| | ms, profiled | GFLOP | MB | least ms | least / profiled |")
    print("| --- | --- | --- | --- | --- | --- |")
    for part, spent in [*((part, taken[part]) for part in order), (WHOLE, sum(taken.values()))]:
        cells = [f"{1000 * spent:.2f}", "", "", "", ""]
        if part in counted:
            operations, size, needed = counted[part]
            cells[1:3] = f"{operations / 1e9:.3f}", f"{size / 1e6:.1f}"
            cells[3:5] = f"{1000 * needed:.2f}", f"{needed / spent:.2f}"
        print(f"| {part} | {' | '.join(cells)} |")
    shares = ratios([totals[2]] * args.n, seconds["step"])
    print(
        json_line(
            statistics.median(milliseconds["step"]),
            statistics.median(shares),
            args.n,
            spread(shares),
            None,
            unit="ms",
            flop=totals[0],
            bytes=totals[1],
            flop_per_second=rate,
            bytes_per_second=bandwidth,
            profiled_ms={part: round(1000 * value, 3) for part, value in taken.items()},
        )
    )


if __name__ == "__main__":
    main()
