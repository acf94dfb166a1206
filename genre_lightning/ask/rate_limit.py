"""Rate limits and budgets: requests and tokens per minute, and in total."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from genre_lightning.errors import UserError

MINUTE = 60.0


class Stopped(Exception):
    """The user ended the command while a request was waiting for its turn."""


class BudgetError(UserError):
    """The budget of requests or tokens is used up."""


@dataclass
class Turn:
    """A request: when it was allowed, and its number of tokens, estimated until it is known."""

    at: float
    tokens: float


class RateLimit:
    """Limits on requests and tokens, per minute and in total. Retries count as requests.

    Args:
        requests_per_minute: maximum in any minute; None for no limit, as for all limits here.
        tokens_per_minute: maximum number of prompt and completion tokens in any minute. A new
            request's tokens are estimated by the mean of the earlier ones.
        max_requests: maximum for the whole command.
        max_tokens: maximum for the whole command; pending requests can exceed it.
        clock: returns seconds.

    Attributes:
        stop: event that ends all waiting.
        requests: number of requests so far.
        tokens: number of tokens so far, as far as it is known.
    """

    def __init__(
        self,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        max_requests: int | None = None,
        max_tokens: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.requests_per_minute = requests_per_minute
        self.tokens_per_minute = tokens_per_minute
        self.max_requests = max_requests
        self.max_tokens = max_tokens
        self.stop = asyncio.Event()
        self.requests = 0
        self.tokens = 0
        self._num_known = 0
        self._clock = clock
        self._not_before = float("-inf")
        self._recent: deque[Turn] = deque()
        self._order = asyncio.Lock()

    async def acquire(self) -> Turn:
        """Wait until a request may be sent.

        Raises:
            BudgetError: no more requests are allowed.
            Stopped: ``stop`` is set.
        """
        async with self._order:
            while True:
                self._check_total()
                seconds = self.wait()
                if seconds <= 0:
                    break
                await self.pause(seconds)
            turn = Turn(self._clock(), self._expected_tokens())
            self._recent.append(turn)
            self.requests += 1
            return turn

    def record_tokens(self, turn: Turn, tokens: int | None) -> None:
        """Record how many tokens a request took; None if the server did not report it."""
        if tokens is None:
            return
        turn.tokens = tokens
        self.tokens += tokens
        self._num_known += 1

    def hold(self, seconds: float) -> None:
        """Start no request for this number of seconds."""
        self._not_before = max(self._not_before, self._clock() + seconds)

    def wait(self) -> float:
        """Seconds until a request may be sent, by the current estimate; 0 or less for now."""
        now = self._clock()
        while self._recent and self._recent[0].at <= now - MINUTE:
            self._recent.popleft()
        free = self._not_before
        limit = self.requests_per_minute
        if limit is not None and len(self._recent) >= limit:
            free = max(free, self._recent[len(self._recent) - limit].at + MINUTE)
        if self.tokens_per_minute is not None:
            excess = sum(turn.tokens for turn in self._recent) + self._expected_tokens()
            excess -= self.tokens_per_minute
            for turn in self._recent:
                if excess <= 0:
                    break
                excess -= turn.tokens
                free = max(free, turn.at + MINUTE)
        return free - now

    async def pause(self, seconds: float) -> None:
        """Sleep.

        Raises:
            Stopped: immediately, when ``stop`` is set.
        """
        try:
            await asyncio.wait_for(self.stop.wait(), seconds)
        except TimeoutError:
            return
        raise Stopped

    def _expected_tokens(self) -> float:
        return self.tokens / self._num_known if self._num_known else 0.0

    def _check_total(self) -> None:
        if self.stop.is_set():
            raise Stopped
        for name, used, limit in (
            ("max_requests", self.requests, self.max_requests),
            ("max_tokens", self.tokens, self.max_tokens),
        ):
            if limit is not None and used >= limit:
                raise BudgetError(f"server.{name}={limit} is used up")
