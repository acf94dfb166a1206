"""One step of the default network (forward, backward, optimizer) in each layout and optimizer.

    python -m benchmarks.step --root data/ml1m
    python -m benchmarks.step --root data/ml1m --compile

Alternates, on one resident batch: eager, NCHW, float32 with the plain optimizer; channels last; the
fused optimizer; both; with ``--compile`` also compiled (compilation is not timed); and on a GPU all
of these in bf16. The results determine the defaults in ``conf``. Ends with one JSON line:
``figure`` is the median of the fastest side's milliseconds a step, ``ratio`` the median over turns
of the plain side's time over it, ``variants`` that ratio for every side. ``aim`` is 1: the fastest
must not be slower than the plain one.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from omegaconf import DictConfig, open_dict

from benchmarks.measure import (
    argument_parser,
    by_turns,
    json_line,
    print_table,
    ratios,
    spread,
)
from benchmarks.training import compose_config, device_of, resident_step, time_repeatedly

PLAIN = "eager, NCHW, float32"


def make_side(
    cfg: DictConfig, steps: int, *, channels_last: bool, fused: bool, bf16: bool, compiled: bool
) -> Callable[[], float]:
    """Build a network; return a function that runs ``steps`` steps and returns seconds per step."""
    cfg = cfg.copy()
    with open_dict(cfg):
        cfg.training.channels_last = channels_last
        cfg.training.compile = compiled
        cfg.optimizer.fused = fused
    step, _ = resident_step(cfg, bf16=bf16)
    return time_repeatedly(step, steps)


def main(arguments: Sequence[str] | None = None) -> None:
    """Time every side and print the table."""
    parser = argument_parser(__doc__, n=9, training=True)
    parser.add_argument("--steps", type=int, default=10, help="per side and turn; default 10")
    parser.add_argument("--compile", action="store_true", help="also time the compiled network")
    args = parser.parse_args(arguments)
    cfg = compose_config(args.root, args.overrides)
    device = device_of(cfg)
    sides: dict[str, Callable[[], float]] = {}
    for bf16 in (False, True) if device.type == "cuda" else (False,):
        for compiled in (False, True) if args.compile else (False,):
            for channels_last in (False, True):
                for fused in (False, True):
                    parts = [
                        "compiled" if compiled else "eager",
                        "channels last" if channels_last else "NCHW",
                        "bf16" if bf16 else "float32",
                        *(["fused optimizer"] if fused else []),
                    ]
                    sides[", ".join(parts)] = make_side(
                        cfg,
                        args.steps,
                        channels_last=channels_last,
                        fused=fused,
                        bf16=bf16,
                        compiled=compiled,
                    )
    seconds = by_turns(sides, args.n)
    milliseconds = {name: [1000 * value for value in side] for name, side in seconds.items()}
    print_table(milliseconds, "ms a step", f"{device}, batch {cfg.data.batch_size}", digits=1)
    gains = {name: ratios(seconds[PLAIN], side) for name, side in seconds.items()}
    print("| | times as fast as the plain one, median | sd |\n| --- | --- | --- |")
    for name, gain in gains.items():
        print(f"| {name} | {statistics.median(gain):.3f} | {spread(gain):.3f} |")
    best = max(gains, key=lambda name: statistics.median(gains[name]))
    print(
        json_line(
            statistics.median(milliseconds[best]),
            statistics.median(gains[best]),
            args.n,
            spread(gains[best]),
            1.0,
            unit="ms",
            aim_is="at least",
            fastest=best,
            variants={name: round(statistics.median(gain), 4) for name, gain in gains.items()},
        )
    )


if __name__ == "__main__":
    main()
