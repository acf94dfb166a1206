"""Timing two commands by turns, and the JSON line that every benchmark ends with."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence


def alternate(commands: Mapping[str, Sequence[str]], n: int) -> dict[str, list[float]]:
    """Wall seconds of each command, run by turns ``n`` times after one run that is not counted.

    Turns, since a shared machine drifts: what slows one side slows the other beside it.

    Raises:
        RuntimeError: a command failed; with the end of what it printed.
    """
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for turn in range(n + 1):
        for name, command in commands.items():
            started = time.perf_counter()
            done = subprocess.run(list(command), capture_output=True, text=True, check=False)
            elapsed = time.perf_counter() - started
            if done.returncode != 0:
                raise RuntimeError(f"{name} failed:\n{done.stderr[-2000:]}")
            if turn > 0:
                seconds[name].append(elapsed)
    return seconds


def hardware() -> str:
    """What the figures were taken on, in words."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} CPU core(s), {platform.machine()}, Python {platform.python_version()}"


def json_line(
    figure: float, ratio: float, n: int, spread: float, aim: float, **more: object
) -> str:
    """The last line a benchmark prints; all benchmarks share these keys."""
    line = {"figure": figure, "ratio": ratio, "n": n, "spread": spread, "aim": aim, **more}
    rounded = {
        key: round(value, 5) if isinstance(value, float) else value for key, value in line.items()
    }
    return json.dumps(rounded)


def spread(values: Sequence[float]) -> float:
    """Sample standard deviation; 0 for a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0
