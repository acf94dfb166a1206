"""The client of chat servers: misbehaving servers, and the messages about them."""

from __future__ import annotations

import asyncio
import email.utils
import json
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

from genre_lightning.ask.rate_limit import RateLimit
from genre_lightning.ask.server import (
    ChatServer,
    Reply,
    RequestRefused,
    RetriesExhausted,
    ServerError,
    check_url,
    read_key,
    retry_after,
    server_message,
)
from genre_lightning.errors import UserError
from tests.ask.loopback import Answer, Loopback, completion, reply

BODY = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
KEY = "sk-test-0123456789abcdef"


def chat(loopback: Loopback | str, before: int = 0, **settings: Any) -> Reply:
    """Send ``before`` requests, and return the reply to the next one."""

    async def run() -> Reply:
        url = loopback if isinstance(loopback, str) else loopback.url
        async with ChatServer(url, **settings) as server:
            for _ in range(before):
                await server.chat(BODY)
            return await server.chat(BODY)

    return asyncio.run(run())


def fail_first(bad: Answer, then: Answer | None = None) -> Callable[[int, Any], Answer]:
    return lambda number, body: (then or reply("well")) if number else bad


def test_request_and_reply(loopback: Loopback) -> None:
    loopback.answer = lambda number, body: reply("well", tokens={"yes": -0.5, "no": -1.0})
    received = chat(loopback, api_key=KEY)
    assert (received.content, received.finish_reason) == ("well", "stop")
    assert (received.prompt_tokens, received.completion_tokens) == (100, 20)
    assert received.first_tokens == [("yes", -0.5), ("no", -1.0)] and 0 < received.seconds < 5
    assert loopback.requests == [BODY]
    assert loopback.headers[0]["Authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    "bad",
    [
        Answer(500, body=b"out of memory"),
        Answer(502),
        Answer(503, body=b'{"error": {"message": "Loading model"}}'),
        Answer(429),
        Answer(408),
        Answer(drop=True),
        Answer(body=json.dumps(completion("well")).encode(), sent=30),
        Answer(body=b'{"choices": [{"mess'),
        Answer(body=b'{"choices": []}'),
        Answer(body=b'{"error": {"message": "overloaded", "code": 529}}'),
        Answer(body=b"[]"),
        Answer(stall=1.5, body=json.dumps(completion("late")).encode()),
    ],
    ids=[
        "500", "502", "503", "429", "408", "dropped", "cut", "half a JSON", "no choices",
        "error with 200", "a list", "stalled",
    ],
)  # fmt: skip
def test_temporary_failures_are_retried(
    bad: Answer, loopback: Loopback, short_backoff: None
) -> None:
    loopback.answer = fail_first(bad)
    assert chat(loopback, timeout=0.5).content == "well"
    assert len(loopback.requests) == 2


def test_web_page_after_a_good_reply_is_retried(loopback: Loopback, short_backoff: None) -> None:
    page = Answer(body=b"<!DOCTYPE html><html><title>Bad gateway</title></html>")
    loopback.answer = lambda number, body: page if number == 1 else reply("well")
    assert chat(loopback, before=1).content == "well"


def test_retries_are_limited(loopback: Loopback, short_backoff: None) -> None:
    loopback.answer = lambda number, body: Answer(500, body=b'{"error": {"message": "no VRAM"}}')
    with pytest.raises(RetriesExhausted, match=r"^the server says: 500, no VRAM$"):
        chat(loopback, retries=3)
    assert len(loopback.requests) == 4


def test_backoff_doubles(loopback: Loopback, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    async def record_wait(self: RateLimit, seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr(RateLimit, "pause", record_wait)
    loopback.answer = lambda number, body: Answer(500)
    with pytest.raises(RetriesExhausted):
        chat(loopback, retries=9)
    for number, seconds in enumerate(waits):
        longest = min(60, 2**number)
        assert longest / 2 <= seconds <= longest
    assert len(waits) == 9


def test_retry_after_delays_every_request(loopback: Loopback) -> None:
    loopback.answer = fail_first(Answer(429, {"Retry-After": "1"}))

    async def run() -> None:
        async with ChatServer(loopback.url) as server:
            await asyncio.gather(server.chat(BODY), chat_later(server))

    async def chat_later(server: ChatServer) -> None:
        await asyncio.sleep(0.3)
        await server.chat(BODY)

    asyncio.run(run())
    start, *others = loopback.times
    assert len(others) == 2 and all(moment - start >= 1.0 for moment in others)


def test_formats_of_retry_after() -> None:
    assert retry_after({"Retry-After": "17"}) == 17.0
    assert retry_after({"retry-after-ms": "250", "Retry-After": "1"}) == 0.25
    date = email.utils.formatdate(time.time() + 40, usegmt=True)
    assert 35 < (retry_after({"Retry-After": date}) or 0) <= 40
    past = email.utils.formatdate(time.time() - 40, usegmt=True)
    assert retry_after({"Retry-After": past}) == 0.0
    for invalid in ("", "soon", "-3", "1e9"):
        assert retry_after({"Retry-After": invalid}) is None


def test_retry_after_of_a_day_ends_the_command(loopback: Loopback) -> None:
    message = {"error": {"message": "Daily quota exceeded"}}
    loopback.answer = lambda number, body: Answer(
        429, {"Retry-After": "86400"}, json.dumps(message).encode()
    )
    with pytest.raises(ServerError, match=r"asks to wait 86,400 seconds.*Daily quota exceeded"):
        chat(loopback)
    assert len(loopback.requests) == 1


@pytest.mark.parametrize(
    ("bad", "key", "message"),
    [
        (401, None, r"it may need a key: .* api_key_env \(the server says: 401, its words\)"),
        (401, KEY, r"it refuses the key in THE_KEY \(the server says: 401, its words\)"),
        (403, KEY, r"it refuses the key in THE_KEY .*403, its words"),
        (404, None, r"no such model, or no chat/completions \(it has a/b, c\); .* 404, its words"),
    ],
)
def test_rejected_key_or_model_ends_the_command_at_once(
    bad: int, key: str | None, message: str, loopback: Loopback
) -> None:
    loopback.models = ["a/b", "c"]
    loopback.answer = lambda number, body: Answer(bad, body=b'{"error": {"message": "its words"}}')
    with pytest.raises(ServerError, match=message) as caught:
        chat(loopback, api_key=key, key_name="THE_KEY")
    assert loopback.url in str(caught.value) and "\n" not in str(caught.value)
    assert len(loopback.requests) == 1


def test_wrong_path_is_reported(loopback: Loopback) -> None:
    with pytest.raises(ServerError, match=r"usually ends in /v1 .*404, no such path"):
        chat(loopback.address)


def test_web_page_is_reported(loopback: Loopback) -> None:
    page = b"<!doctype html><html><style>a{}</style><title>Welcome</title><p>to nginx</p></html>"
    loopback.answer = lambda number, body: Answer(body=page)
    with pytest.raises(ServerError, match=r"a web page, not with JSON \(Welcome to nginx\)"):
        chat(loopback)


def test_a_redirect_is_not_followed(loopback: Loopback) -> None:
    loopback.answer = lambda number, body: Answer(308, {"Location": "https://elsewhere.invalid/v1"})
    with pytest.raises(ServerError, match=r"308, .*go to https://elsewhere.invalid/v1"):
        chat(loopback, api_key=KEY)


def test_unreachable_server_is_reported() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        with pytest.raises(ServerError, match=r"can't be reached .*is the server running"):
            chat(url)


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (400, "context length exceeded"),
        (413, "too large"),
        (422, "unknown field"),
        (500, "image input is not supported - hint: you may need to provide the mmproj"),
    ],
)
def test_a_refused_request_is_not_sent_again(status: int, text: str, loopback: Loopback) -> None:
    body = json.dumps({"error": {"message": text}}).encode()
    loopback.answer = lambda number, _: Answer(status, body=body)
    with pytest.raises(RequestRefused, match=rf"^the server says: {status}, {text}$"):
        chat(loopback)
    assert len(loopback.requests) == 1


@pytest.mark.parametrize("status", [401, 400, 404, 500])
def test_the_key_is_in_no_message(status: int, loopback: Loopback, short_backoff: None) -> None:
    words = {"error": {"message": f"Incorrect API key provided: {KEY}."}}
    loopback.answer = lambda number, body: Answer(status, body=json.dumps(words).encode())
    with pytest.raises((ServerError, RequestRefused, RetriesExhausted)) as caught:
        chat(loopback, api_key=KEY, key_name="THE_KEY", retries=1)
    error: BaseException | None = caught.value
    assert "[key]" in str(error)
    while error is not None:
        assert KEY not in f"{error!r} {error}"
        error = error.__cause__ or error.__context__


def test_the_key_is_in_no_answer(loopback: Loopback) -> None:
    loopback.answer = lambda number, body: reply(f"You sent {KEY}")
    assert chat(loopback, api_key=KEY).content == "You sent [key]"


def test_limits_count_retries(loopback: Loopback, short_backoff: None) -> None:
    loopback.answer = fail_first(Answer(500))
    rate_limit = RateLimit()
    chat(loopback, rate_limit=rate_limit)
    assert (rate_limit.requests, rate_limit.tokens) == (2, 120)


@pytest.mark.parametrize(
    "url",
    [
        "", "localhost:8000", "ftp://host/v1", "http://", "http:///v1", "http://host:port/v1",
        "http://host/v1?key=abc", "http://host/v1#x", "http://ho st/v1", "http://host/\x1b[31m",
    ],
)  # fmt: skip
def test_invalid_urls_are_refused(url: str) -> None:
    with pytest.raises(UserError, match=r"base_url"):
        check_url(url)


def test_a_password_in_the_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(UserError, match=r"base_url contains a user name or password") as caught:
        check_url("http://me:secret@host/v1")
    assert "secret" not in str(caught.value)


def test_a_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THE_KEY", f" {KEY}\n")
    assert read_key("THE_KEY") == KEY and read_key(None) is None
    with pytest.raises(UserError, match=r"api_key_env=ANOTHER: this environment variable is not"):
        read_key("ANOTHER")
    for key in (KEY, "gsk_abc", "", "A" * 65):
        with pytest.raises(UserError, match=r"api_key_env must name") as caught:
            read_key(key)
        assert not key or key not in str(caught.value)
    monkeypatch.setenv("THE_KEY", "two words")
    with pytest.raises(
        UserError, match=r"api_key_env=THE_KEY: the .* value is not a key"
    ) as caught:
        read_key("THE_KEY")
    assert "two words" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"error": {"message": "a\\nb"}}', "a b"),
        ('{"error": "a"}', "a"),
        ('{"detail": "a"}', "a"),
        ('{"message": "a"}', "a"),
        ('{"other": 1}', '{"other": 1}'),
        ("\x1b[31mred", "?[31mred"),
        ("x" * 1000, "x" * 299 + "…"),
    ],
)
def test_server_message_is_extracted_and_cleaned(text: str, words: str) -> None:
    assert server_message(text) == words
