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
    resident_step,
    synchronise,
    time_repeatedly,
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
        values = dict(zip((argument.name for argument in schema.arguments), args, strict=False))
        values.update(kwargs)
        aliased = [output.alias_info for output in schema.returns]
        if any(info is not None and not info.is_write for info in aliased):
            return result  # a view moves no data
        count = 0
        for argument in schema.arguments:
            is_written = argument.alias_info is not None and argument.alias_info.is_write
            # An in-place argument is also read, unless it is only overwritten. A fused optimizer
            # writes to the gradients only with a gradient scaler.
            is_write_only = func._opname in ("zero_", "fill_", "copy_") or argument.name == "grads"
            num_accesses = 2 if is_written and not is_write_only else 1
            count += num_accesses * _bytes(values.get(argument.name))
        if not any(info is not None for info in aliased):
            count += _bytes(result)
        self.bytes[str(func._opname)] += count
        return result


def _bytes(value: Any) -> int:
    tensors = (leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor))
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def min_seconds_by_part(
    run: Callable[[], object], flops_per_second: float, bytes_per_second: float
) -> dict[str, tuple[float, float, float]]:
    """FLOP, bytes and least possible seconds of a step, by part."""
    with FlopCounterMode(display=False) as flops, ByteCounter() as byte_counter:
        run()
    flops_by_operation = {
        str(op).split(".")[-1]: n for op, n in flops.get_flop_counts()["Global"].items()
    }
    parts: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for name in {*flops_by_operation, *byte_counter.bytes}:
        operations, size = (
            float(flops_by_operation.get(name, 0)),
            float(byte_counter.bytes.get(name, 0)),
        )
        bound = max(operations / flops_per_second, size / bytes_per_second)
        sums = parts[part_of([name])]
        for index, value in enumerate((operations, size, bound)):
            sums[index] += value
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
        self_microseconds = (
            event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
        )
        seconds[part_of(callers)] += self_microseconds / 1e6 / steps
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
            "step": time_repeatedly(step, args.steps),
            "matrix product": time_repeatedly(lambda: matrix @ matrix, 10),
            "copy": time_repeatedly(lambda: other.copy_(block), 3),
        },
        args.n,
    )
    milliseconds = {name: [1000 * value for value in side] for name, side in seconds.items()}
    sizes = ", ".join(f"{name} {len(part)}" for name, part in batch.parts.items())
    note = f"{device}, batch {cfg.data.batch_size}, of which {sizes}"
    print_table(milliseconds, "ms", note, digits=2)
    rates = [2 * width**3 / value for value in seconds["matrix product"]]
    bandwidths = [2 * block.numel() * block.element_size() / value for value in seconds["copy"]]
    rate, bandwidth = statistics.median(rates), statistics.median(bandwidths)
    kind = "bfloat16" if bf16 else "float32"
    print(f"{kind} matrices: {rate / 1e12:.3f} TFLOP/s; memory: {bandwidth / 1e9:.1f} GB/s\n")

    profiled_seconds = profiled(step, args.steps, device)
    bounds = min_seconds_by_part(step, rate, bandwidth)
    totals = [sum(values) for values in zip(*bounds.values(), strict=True)]
    all_bounds = {**bounds, WHOLE: totals}
    order = sorted(profiled_seconds, key=lambda part: -profiled_seconds[part])
    print("| | ms, profiled | GFLOP | MB | least ms | least / profiled |")
    print("| --- | --- | --- | --- | --- | --- |")
    for part, spent in [
        *((part, profiled_seconds[part]) for part in order),
        (WHOLE, sum(profiled_seconds.values())),
    ]:
        cells = [f"{1000 * spent:.2f}", "", "", "", ""]
        if part in all_bounds:
            operations, size, needed = all_bounds[part]
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
            profiled_ms={part: round(1000 * value, 3) for part, value in profiled_seconds.items()},
        )
    )


if __name__ == "__main__":
    main()
