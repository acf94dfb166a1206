"""What all benchmarks share: alternating timing of several sides, the table, and the JSON line."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from genre_lightning.cores import num_cores
from genre_lightning.runs.quoting import shell_command

REPOSITORY = Path(__file__).resolve().parent.parent


def argument_parser(description: str | None, n: int, *, training: bool) -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks have.

    Args:
        description: the module's docstring, shown in full by ``--help``.
        n: default number of counted turns.
        training: whether the benchmark trains: adds ``--root`` for real movies (demo data
            otherwise), and takes further arguments as overrides of the configuration.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-n", "--n", type=_turns, default=n, help=f"turns; default {n}")
    if training:
        parser.add_argument("--root", type=Path, help="ml1m, folder or zip; default: demo data")
        parser.add_argument("overrides", nargs="*", help="as for train.py: data.batch_size=256")
    return parser


def _turns(text: str) -> int:
    turns = int(text)
    if turns < 1:
        raise argparse.ArgumentTypeError("at least 1 turn")
    return turns


def by_turns(
    sides: Mapping[str, Callable[[], float | None]], n: int, uncounted: int = 1
) -> dict[str, list[float]]:
    """Seconds of each side; all sides run once per turn, for ``uncounted`` and then ``n`` turns.

    Sides alternate since a shared machine drifts: what slows one side also slows the others.

    Args:
        sides: name to callable; a number that it returns replaces its wall time.
        n: number of counted turns.
        uncounted: number of warm-up turns.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(n + uncounted):
        for name, run in sides.items():
            started = time.perf_counter()
            returned = run()
            elapsed = time.perf_counter() - started if returned is None else returned
            if turn >= uncounted:
                seconds[name].append(elapsed)
    return seconds


def alternate(commands: Mapping[str, Sequence[str]], n: int) -> dict[str, list[float]]:
    """:func:`by_turns` for commands, each in its own process.

    Raises:
        RuntimeError: a command failed; the message has the end of its output.
    """
    with command_environment() as environment:
        sides = {name: partial(run, command, environment) for name, command in commands.items()}
        return by_turns(sides, n)


def output_of(command: Sequence[str], environment: Mapping[str, str]) -> str:
    """Run a command and return its standard output.

    Raises:
        RuntimeError: the command failed; the message has the end of its output.
    """
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        output = (done.stderr or done.stdout)[-2000:]
        raise RuntimeError(f"{shell_command(*command)} failed:\n{output}")
    return done.stdout


def run(command: Sequence[str], environment: Mapping[str, str]) -> None:
    """Run a command like :func:`output_of`, but return nothing."""
    output_of(command, environment)


@contextmanager
def command_environment() -> Iterator[dict[str, str]]:
    """The environment for timed commands: it finds this package, and allows cached bytecode.

    Users have cached bytecode from the second start on. With PYTHONDONTWRITEBYTECODE, every start
    would include 7 s of compiling PyTorch's sources.
    """
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    if not environment.pop("PYTHONDONTWRITEBYTECODE", ""):
        yield environment
        return
    with tempfile.TemporaryDirectory() as folder:
        yield {**environment, "PYTHONPYCACHEPREFIX": folder}


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """The ratio of each turn."""
    return [a / b for a, b in zip(above, below, strict=True)]


def print_table(
    values: Mapping[str, Sequence[float]], unit: str, note: str = "", digits: int = 3
) -> None:
    """Print the hardware, and median, minimum and maximum of each side as a Markdown table."""
    n = max(map(len, values.values()))
    print(f"{hardware()}, n = {n}{', ' if note else ''}{note}")
    print(f"| | median {unit} | min | max |\n| --- | --- | --- | --- |")
    for name, side in values.items():
        cells = (statistics.median(side), min(side), max(side))
        print(f"| {name} | {' | '.join(f'{cell:.{digits}f}' for cell in cells)} |")


def hardware() -> str:
    """A description of the hardware and the Python version."""
    words = f"{num_cores()} CPU core(s), {platform.machine()}, Python {platform.python_version()}"
    return words if _gpu() is None else f"{words}, {_gpu()}"


def _gpu() -> str | None:
    """Name of the GPU, if this process has imported PyTorch; it is not imported just for this."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    return str(torch.cuda.get_device_name())


def json_line(
    figure: float, ratio: float | None, n: int, spread: float, aim: float | None, **more: object
) -> str:
    """The last line that a benchmark prints; all benchmarks share these keys."""
    line = {"figure": figure, "ratio": ratio, "n": n, "spread": spread, "aim": aim, **more}
    rounded = {
        key: round(value, 5) if isinstance(value, float) else value for key, value in line.items()
    }
    return json.dumps(rounded)


def spread(values: Sequence[float]) -> float:
    """Sample standard deviation; 0 for a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0
