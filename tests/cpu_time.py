"""A pytest plugin that measures the CPU seconds of each test: ``-p tests.cpu_time``.

CPU time includes child processes, and unlike wall time hardly depends on the load of the machine.
Prints the sums by file, the most expensive tests, and the tests that lack the mark `slow`.
"""

from __future__ import annotations

import os
import resource
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

#: A test whose call takes more CPU seconds, without its fixtures, is slow.
SLOW = 2.0

TICK = os.sysconf("SC_CLK_TCK")
COSTS = pytest.StashKey[dict[str, float]]()


def spent() -> float:
    """CPU seconds of this process and its descendants, including those that have ended."""
    total = sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )
    return total + sum(map(_spent_by, _children(os.getpid())))


def _children(pid: int) -> list[int]:
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:  # the process has ended
        return []


def _spent_by(pid: int) -> float:
    below = sum(map(_spent_by, _children(pid)))
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return below
    return below + sum(map(int, fields[11:15])) / TICK


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    yield from _measured(item, "setup")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    yield from _measured(item, "call")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    yield from _measured(item, "teardown")


def _measured(item: pytest.Item, phase: str) -> Iterator[None]:
    begin = spent()
    try:
        return (yield)
    finally:
        item.stash.setdefault(COSTS, {})[phase] = spent() - begin


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    # xdist's workers send their reports to the process that prints them.
    report: Any = yield
    report.user_properties.append((f"cpu_{report.when}", item.stash[COSTS][report.when]))
    report.user_properties.append(("slow", item.get_closest_marker("slow") is not None))
    return report


def pytest_terminal_summary(terminalreporter: Any) -> None:
    costs: dict[str, dict[str, Any]] = defaultdict(dict)
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                costs[report.nodeid].update(report.user_properties)

    def total(cost: dict[str, Any]) -> float:
        return sum(value for name, value in cost.items() if name.startswith("cpu_"))

    by_file: dict[str, float] = defaultdict(float)
    for name, cost in costs.items():
        by_file[name.partition("::")[0]] += total(cost)
    write = terminalreporter.write_line
    terminalreporter.write_sep("=", f"{sum(by_file.values()):.0f} CPU seconds")
    for path, seconds in sorted(by_file.items(), key=lambda pair: -pair[1]):
        if seconds >= 1:
            write(f"{seconds:7.1f}  {path}")
    terminalreporter.write_sep("-", "tests")
    for name, cost in sorted(costs.items(), key=lambda pair: -total(pair[1]))[:40]:
        write(f"{total(cost):7.1f}  {name}")
    for name, cost in costs.items():
        if not cost["slow"] and cost.get("cpu_call", 0) > SLOW:
            write(f"not marked as slow: {name} ({cost['cpu_call']:.1f} s)")
