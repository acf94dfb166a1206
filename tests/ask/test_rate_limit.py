"""Rate limits, with a fake clock."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest

from genre_lightning.ask.rate_limit import BudgetError, RateLimit, Stopped


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def run_requests(
    rate_limit: RateLimit, clock: Clock, count: int, tokens: int | None = None
) -> list[float]:
    """Times at which successive requests were allowed, each sent as soon as possible."""
    allowed = []

    async def run() -> None:
        async def advance(seconds: float) -> None:
            clock.now += seconds

        rate_limit.pause = advance  # type: ignore[method-assign]
        for _ in range(count):
            turn = await rate_limit.acquire()
            allowed.append(clock.now)
            rate_limit.record_tokens(turn, tokens)
            clock.now += 0.5

    asyncio.run(run())
    return allowed


def max_within_a_minute(times: list[float]) -> int:
    return max(sum(start <= time < start + 60 for time in times) for start in times)


def test_no_minute_has_more_requests_than_the_limit() -> None:
    clock = Clock()
    times = run_requests(RateLimit(requests_per_minute=7, clock=clock), clock, 30)
    assert max_within_a_minute(times) == 7
    # No request waits longer than needed.
    assert times[-1] - times[0] == pytest.approx(4 * 60 + 0.5)


def test_no_minute_has_more_tokens_than_the_limit() -> None:
    clock = Clock()
    times = run_requests(RateLimit(tokens_per_minute=1000, clock=clock), clock, 20, tokens=300)
    assert 300 * max_within_a_minute(times) <= 1000 < 300 * (max_within_a_minute(times) + 1)


def test_a_request_larger_than_the_limit_is_sent_once_the_minute_is_empty() -> None:
    clock = Clock()
    times = run_requests(RateLimit(tokens_per_minute=100, clock=clock), clock, 3, tokens=300)
    assert [round(b - a) for a, b in pairwise(times)] == [60, 60]


def test_without_limits_nothing_waits() -> None:
    clock = Clock()
    times = run_requests(RateLimit(clock=clock), clock, 100, tokens=10_000)
    assert times[-1] - times[0] == pytest.approx(99 * 0.5)


@pytest.mark.parametrize(("limits", "count"), [({"max_requests": 5}, 5), ({"max_tokens": 1000}, 4)])
def test_total_limits_are_kept(limits: dict[str, int], count: int) -> None:
    clock = Clock()
    rate_limit = RateLimit(**limits, clock=clock)
    with pytest.raises(BudgetError, match=rf"server.{next(iter(limits))}=.* is used up"):
        run_requests(rate_limit, clock, 100, tokens=300)
    assert rate_limit.requests == count


def test_hold_delays_every_request() -> None:
    clock = Clock()
    rate_limit = RateLimit(clock=clock)
    rate_limit.hold(12.0)
    assert run_requests(rate_limit, clock, 2) == [1012.0, 1012.5]


def test_a_stop_ends_waiting() -> None:
    async def run() -> None:
        rate_limit = RateLimit()
        rate_limit.hold(3600)
        waiting = asyncio.create_task(rate_limit.acquire())
        await asyncio.sleep(0)
        rate_limit.stop.set()
        with pytest.raises(Stopped):
            await asyncio.wait_for(waiting, 5)
        with pytest.raises(Stopped):
            await rate_limit.acquire()

    asyncio.run(run())
