"""A scripted server on loopback, which can also misbehave."""

from __future__ import annotations

import hashlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

GENRES = ("Action", "Comedy", "Drama", "Horror")


@dataclass
class Answer:
    """A response to send.

    Attributes:
        status, headers, body: parts of the response.
        after: seconds to wait before the response.
        sent: number of bytes of the body to send before closing the connection; None for all.
        drop: close the connection before anything is sent.
        stall: seconds to wait between the headers and the body.
    """

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    after: float = 0.0
    sent: int | None = None
    drop: bool = False
    stall: float = 0.0


def completion(
    content: str | None, finish: str = "stop", tokens: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """A chat completion; ``tokens`` are log-probabilities of its first token."""
    choice: dict[str, Any] = {
        "index": 0,
        "message": {"role": "assistant", "content": content},
        "finish_reason": finish,
    }
    if tokens is not None:
        top = [{"token": token, "logprob": value} for token, value in tokens.items()]
        choice["logprobs"] = {"content": [{**top[0], "top_logprobs": top}]}
    usage = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
    return {"choices": [choice], "usage": usage}


def scores_of(body: Mapping[str, Any]) -> dict[str, Any]:
    """A valid answer to a request, determined by the last message of the request alone."""
    properties = body["response_format"]["json_schema"]["schema"]["properties"]
    digest = hashlib.sha256(json.dumps(body["messages"][-1]).encode()).digest()
    numbers = {name: digest[k % 32] % 101 for k, name in enumerate(properties) if name != "why"}
    return {**numbers, "why": f"by {digest[:3].hex()}"}


def good(body: Mapping[str, Any], after: float = 0.0) -> Answer:
    """A response with a valid answer."""
    text = json.dumps(completion(json.dumps(scores_of(body))))
    return Answer(body=text.encode(), after=after)


def reply(content: str | None, **more: Any) -> Answer:
    """A response with this content."""
    return Answer(body=json.dumps(completion(content, **more)).encode())


class Loopback:
    """Script and record of the server.

    Attributes:
        answer: maps the number of a request, from 0, and its body to the response.
        requests: bodies of the requests, in order of arrival.
        headers: headers of each request.
        times: time of arrival of each request, on the monotonic clock.
        max_concurrent: largest number of requests in progress at once.
        models: names at /v1/models; None to answer 404 there.
    """

    def __init__(self) -> None:
        self.answer: Callable[[int, dict[str, Any]], Answer] = lambda number, body: good(body)
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.max_concurrent = 0
        self.models: list[str] | None = None
        self.address = ""
        self._in_progress = 0
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"{self.address}/v1"

    def shown(self) -> list[str]:
        """The text of the last message of each request."""
        texts = []
        for body in self.requests:
            content = body["messages"][-1]["content"]
            texts.append(content if isinstance(content, str) else content[0]["text"])
        return texts

    def respond(self, body: dict[str, Any], headers: dict[str, str]) -> Answer:
        with self._lock:
            number = len(self.requests)
            self.requests.append(body)
            self.headers.append(headers)
            self.times.append(time.monotonic())
            self._in_progress += 1
            self.max_concurrent = max(self.max_concurrent, self._in_progress)
        try:
            answer = self.answer(number, body)
            time.sleep(answer.after)
            return answer
        finally:
            with self._lock:
                self._in_progress -= 1


@contextmanager
def serving(loopback: Loopback) -> Iterator[Loopback]:
    """Serve on a free port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path != "/v1/chat/completions":
                self.send(Answer(404, body=b'{"error": {"message": "no such path"}}'))
                return
            self.send(loopback.respond(json.loads(data), dict(self.headers)))

        def do_GET(self) -> None:
            if loopback.models is None or self.path != "/v1/models":
                self.send(Answer(404))
                return
            listed = {"data": [{"id": name} for name in loopback.models]}
            self.send(Answer(body=json.dumps(listed).encode()))

        def send(self, answer: Answer) -> None:
            if answer.drop:
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            if answer.stall:
                self.wfile.flush()
                time.sleep(answer.stall)
            self.wfile.write(answer.body[: answer.sent])
            if answer.sent is not None:
                self.close_connection = True

        def log_message(self, *arguments: Any) -> None:
            pass

        def handle(self) -> None:
            with suppress(ConnectionError):  # the client has disconnected
                super().handle()

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass

    with Server(("127.0.0.1", 0), Handler) as server:
        loopback.address = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield loopback
        server.shutdown()
