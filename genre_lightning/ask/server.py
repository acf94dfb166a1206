"""Client of an OpenAI-compatible server: requests, retries, and errors that quote the server."""

from __future__ import annotations

import asyncio
import email.utils
import ipaddress
import json
import os
import random
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, final
from urllib.parse import urlsplit

import aiohttp

from genre_lightning.ask.answer import AnswerError
from genre_lightning.ask.rate_limit import RateLimit
from genre_lightning.errors import UserError
from genre_lightning.wording import shortened

#: Maximum size of an answer; an answer of a few hundred tokens has a few thousand bytes.
MAX_ANSWER_BYTES = 16 * 2**20
#: Maximum number of characters quoted from the server in a message.
MAX_QUOTED_CHARACTERS = 300
#: Seconds to wait before the second try, and the maximum that doubling reaches.
FIRST_BACKOFF, MAX_BACKOFF = 1.0, 60.0
#: Timeout, conflict, too early, too many: the same request may be answered later.
_RETRYABLE_STATUSES = (408, 409, 425, 429)
_HTML = re.compile(r"\s*<(?:!doctype|html)", re.IGNORECASE)
_TAGS = re.compile(r"<(?:style|script).*?</(?:style|script)>|<[^>]*>", re.DOTALL | re.IGNORECASE)


class ServerError(UserError):
    """The server can't be used: its address, key or model is wrong, or it is gone."""


class RequestRefused(Exception):
    """The server refuses this request, perhaps only this one; the message quotes the server."""


class RetriesExhausted(Exception):
    """A request failed on every try; the message is the reason of the last failure."""


class _RetryableError(Exception):
    """A try failed that may succeed later; ``wait`` is the server's wait in seconds, if any."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


@dataclass(frozen=True)
class Reply:
    """A server's answer.

    Attributes:
        content: the text; None if there is none, as for a refusal.
        finish_reason: "stop", "length", ..., as reported by the server.
        first_tokens: candidates for the first token, with log-probabilities; None if not reported.
        prompt_tokens: number of prompt tokens; None if not reported.
        completion_tokens: number of completion tokens; None if not reported.
        seconds: from sending to the end of the answer.
    """

    content: str | None
    finish_reason: str | None
    first_tokens: list[tuple[str, float]] | None
    prompt_tokens: int | None
    completion_tokens: int | None
    seconds: float


def check_url(base_url: str, setting: str = "base_url") -> str:
    """Return the address without a trailing slash.

    Args:
        base_url: the address.
        setting: name of the setting that holds the address, for messages.

    Raises:
        UserError: the address is not http or https, or contains a user name, a password, a query
            or a fragment.
    """
    if type(base_url) is not str or not base_url.isprintable() or " " in base_url:
        raise UserError(f"{setting}={base_url!r:.200} is not the address of a server")
    try:
        parts = urlsplit(base_url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise UserError(f"{setting} is not the address of a server: {error}") from None
    if parts.username is not None or parts.password is not None:
        raise UserError(
            f"{setting} contains a user name or password, which would be saved in files: leave it "
            "out; put a key into an environment variable and name the variable in api_key_env"
        )
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
        raise UserError(
            f"{setting}={base_url} is not the address of a server, such as http://127.0.0.1:8000/v1"
        )
    return base_url.rstrip("/")


def read_key(variable: str | None, setting: str = "api_key_env") -> str | None:
    """Return the API key in an environment variable; None if ``variable`` is None.

    Raises:
        UserError: the variable is not set or holds no key. The message never contains the key,
            nor the given name if that could be the key itself.
    """
    if variable is None:
        return None
    if type(variable) is not str or not re.fullmatch(r"[A-Z_][A-Z0-9_]{0,63}", variable):
        raise UserError(
            f"{setting} must name an environment variable in capitals, such as OPENAI_API_KEY; "
            "don't give the key itself"
        )
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UserError(f"{setting}={variable}: this environment variable is not set, or empty")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UserError(f"{setting}={variable}: the variable's value is not a key")
    return key


@final
class ChatServer:
    """Async context manager for requests to ``BASE_URL/chat/completions``.

    Temporary failures, such as a dropped connection or status 429 or 503, are retried after a wait
    that doubles, or after the time that the server names. Failed requests are retried nowhere else.

    Args:
        base_url: up to and including ``/v1``.
        api_key: sent to this address only; removed from everything quoted from the server.
        rate_limit: limits on requests and tokens; None for no limits.
        timeout: maximum seconds for one answer.
        retries: further tries of a failed request.
        longest_wait: maximum seconds to wait; if the server asks for more, the command ends.
        key_name: name of the environment variable with the key, for messages.
        url_setting: name of the setting that holds the address, for messages.

    Attributes:
        answered: whether the server has answered any request.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        rate_limit: RateLimit | None = None,
        timeout: float = 300.0,
        retries: int = 6,
        longest_wait: float = 600.0,
        key_name: str | None = None,
        url_setting: str = "base_url",
    ) -> None:
        self.base_url = check_url(base_url, url_setting)
        self._url_setting = url_setting
        self._key = api_key
        self._key_name = key_name
        self.rate_limit = rate_limit or RateLimit()
        self.timeout = timeout
        self.retries = retries
        self.longest_wait = longest_wait
        self.answered = False
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        headers = {} if self._key is None else {"Authorization": f"Bearer {self._key}"}
        self._session = aiohttp.ClientSession(
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=self.timeout),
            # The caller limits the number of concurrent requests.
            connector=aiohttp.TCPConnector(limit=0),
            # Use the environment's proxy, except for a server on this machine.
            trust_env=not _is_local(self.base_url),
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._session is not None
        await self._session.close()

    async def chat(self, body: Mapping[str, Any]) -> Reply:
        """Send a request and wait for the answer.

        Args:
            body: JSON body of the request.

        Raises:
            ServerError: the server can't be used.
            RequestRefused: the server refuses this request.
            AnswerError: the server rejects the model's answer.
            RetriesExhausted: all tries failed.
            BudgetError: the budget of requests or tokens is used up.
            Stopped: the user ended the command while the request was waiting.
        """
        for attempt in range(self.retries + 1):
            turn = await self.rate_limit.acquire()
            started = time.monotonic()
            try:
                data = await self._post(body)
                reply = _reply(data, time.monotonic() - started)
            except _RetryableError as error:
                if attempt == self.retries:
                    raise RetriesExhausted(str(error)) from None
                await self._wait(error, attempt)
                continue
            self.answered = True
            counts = (reply.prompt_tokens, reply.completion_tokens)
            tokens = None if counts == (None, None) else sum(filter(None, counts))
            self.rate_limit.record_tokens(turn, tokens)
            return reply
        raise AssertionError("unreachable")

    async def _wait(self, error: _RetryableError, attempt: int) -> None:
        if error.wait is None:
            max_wait = min(MAX_BACKOFF, FIRST_BACKOFF * 2**attempt)
            # Jitter, so that requests that failed together are not retried together.
            await self.rate_limit.pause(max_wait * random.uniform(0.5, 1.0))
            return
        if error.wait > self.longest_wait:
            raise ServerError(
                f"{self.base_url} asks to wait {error.wait:,.0f} seconds, longer than "
                f"server.longest_wait={self.longest_wait:g}: {error}"
            )
        self.rate_limit.hold(error.wait)
        await self.rate_limit.pause(error.wait)

    async def _post(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """Send a request once and return the server's JSON object."""
        assert self._session is not None
        url = f"{self.base_url}/chat/completions"
        try:
            async with self._session.post(url, json=body, allow_redirects=False) as response:
                text = await self._text(response)
                status, headers = response.status, response.headers
        except TimeoutError:
            raise _RetryableError(f"no answer within {self.timeout:g} seconds") from None
        except (aiohttp.ClientConnectorError, aiohttp.InvalidURL) as error:
            reason = self._redact(f"{self.base_url} can't be reached ({error})")
            if not self.answered:
                raise ServerError(
                    f"{reason}: is the server running, and is {self._url_setting} its address?"
                ) from None
            raise _RetryableError(reason) from None
        except (aiohttp.ClientError, ConnectionError) as error:
            reason = self._redact(str(error) or type(error).__name__)
            raise _RetryableError(f"the connection broke ({reason})") from None
        if status != 200:
            raise await self._refusal(status, text, headers)
        return self._json(text)

    async def _text(self, response: aiohttp.ClientResponse) -> str:
        parts: list[bytes] = []
        size = 0
        async for part in response.content.iter_chunked(2**16):
            size += len(part)
            if size > MAX_ANSWER_BYTES:
                raise _RetryableError(f"its answer has more than {MAX_ANSWER_BYTES:,} bytes")
            parts.append(part)
        return self._redact(b"".join(parts).decode("utf-8", "replace"))

    def _json(self, text: str) -> Mapping[str, Any]:
        try:
            data = json.loads(text)
        except (ValueError, RecursionError):
            if _HTML.match(text) and not self.answered:
                raise ServerError(
                    f"{self.base_url} answers with a web page, not with JSON "
                    f"({_plain_text(text)}): is base_url right? It usually ends in /v1"
                ) from None
            raise _RetryableError(
                f"its answer is not valid JSON: {_plain_text(text) or 'empty'}"
            ) from None
        if not isinstance(data, dict):
            raise _RetryableError(f"its answer is not a JSON object: {_plain_text(text)}")
        if data.get("error"):
            raise _RetryableError(f"the server says: {server_message(text)}")
        return data

    async def _refusal(self, status: int, text: str, headers: Mapping[str, str]) -> Exception:
        """Return the exception for a status other than 200."""
        message = f"{status}, {server_message(text) or 'without a message'}"
        if status in (401, 403):
            key = (
                "it may need a key: name the environment variable that holds one in api_key_env"
                if self._key is None
                else f"it refuses the key in {self._key_name or 'the environment'}"
            )
            return ServerError(f"{self.base_url}: {key} (the server says: {message})")
        if status in (404, 405, 501) or 300 <= status < 400:
            if location := headers.get("Location"):
                message += f", go to {self._redact(location)[:MAX_QUOTED_CHARACTERS]}"
            return ServerError(
                f"{self.base_url} has no such model, or no chat/completions{await self._models()}; "
                f"base_url usually ends in /v1 (the server says: {message})"
            )
        # llama.cpp reports an invalid answer with status 500, also if the answer was cut off.
        if re.search(r"model produced output", text):
            return AnswerError(f"the server says: {message}")
        # llama.cpp also uses status 500 to refuse an image.
        if (status < 500 and status not in _RETRYABLE_STATUSES) or re.search(r"not support", text):
            return RequestRefused(f"the server says: {message}")
        return _RetryableError(f"the server says: {message}", retry_after(headers))

    async def _models(self) -> str:
        """List the server's models for a message about a missing one; "" if not available."""
        assert self._session is not None
        try:
            async with self._session.get(
                f"{self.base_url}/models",
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=min(10.0, self.timeout)),
            ) as response:
                listed = json.loads(await self._text(response))["data"]
            names = [str(entry["id"])[:80] for entry in listed][:8]
        except (aiohttp.ClientError, TimeoutError, OSError, LookupError, TypeError, ValueError):
            return ""
        except _RetryableError:
            return ""
        return f" (it has {', '.join(names)})" if names else ""

    def _redact(self, text: str) -> str:
        """Return the text without the key, which a server may repeat."""
        return text if self._key is None else text.replace(self._key, "[key]")


def _is_local(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def server_message(text: str) -> str:
    """Return a server's error in one line: the message in the JSON, or else the whole text."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return _plain_text(text)
    for key in ("error", "detail", "message"):
        if isinstance(data, dict) and data.get(key):
            data = data[key]
    return _plain_text(data if isinstance(data, str) else json.dumps(data))


def _plain_text(text: str) -> str:
    """Return the text without tags and control characters, shortened."""
    words = " ".join(_TAGS.sub(" ", text).split())
    shown = "".join(c if c.isprintable() else "?" for c in words)
    return shortened(shown, MAX_QUOTED_CHARACTERS)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait, given as a number or a date; None if not given."""
    for name, unit in (("retry-after-ms", 1000.0), ("Retry-After", 1.0)):
        value = headers.get(name, "").strip()
        if re.fullmatch(r"\d{1,12}(\.\d+)?", value):
            return float(value) / unit
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _reply(data: Mapping[str, Any], seconds: float) -> Reply:
    """Make a reply from the server's JSON, without trusting any part of it."""
    choices = data.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise _RetryableError("its answer has no choices")
    choice = choices[0]
    message = choice.get("message")
    content = message.get("content") if isinstance(message, dict) else None
    usage = data.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    finish = choice.get("finish_reason")
    return Reply(
        content=content if isinstance(content, str) else None,
        finish_reason=finish if isinstance(finish, str) else None,
        first_tokens=_first_tokens(choice.get("logprobs")),
        prompt_tokens=_count(usage.get("prompt_tokens")),
        completion_tokens=_count(usage.get("completion_tokens")),
        seconds=seconds,
    )


def _count(value: Any) -> int | None:
    return value if type(value) is int and value >= 0 else None


def _first_tokens(logprobs: Any) -> list[tuple[str, float]] | None:
    """The likeliest first tokens, read from OpenAI's format; None if it can't be read."""
    try:
        listed = logprobs["content"][0]["top_logprobs"]
        return [(str(entry["token"]), float(entry["logprob"])) for entry in listed] or None
    except (LookupError, TypeError, ValueError):
        return None


async def cancel_all(tasks: list[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait until they have ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
