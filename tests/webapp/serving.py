"""A server of the page in a thread of its own, and requests to it."""

from __future__ import annotations

import base64
import http.client
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from docs.browser import serve_demo
from genre_lightning import GenrePredictor


def movie(**columns: str | bytes | None) -> str:
    """The JSON body of a prediction request. Values of type bytes are images."""
    return json.dumps(
        {
            name: base64.b64encode(value).decode() if isinstance(value, bytes) else value
            for name, value in columns.items()
        }
    )


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        found = self.json()["error"]
        assert found["message"].endswith(".")
        return str(found["code"])


@dataclass(frozen=True)
class Served:
    """A running server of the page."""

    port: int
    stop: Callable[[], None]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return Answer(response.status, dict(response.getheaders()), response.read())
        finally:
            connection.close()


@contextmanager
def serving(predictor: GenrePredictor) -> Iterator[Served]:
    with serve_demo(predictor, "tiny.ckpt", ["movies.example"]) as (port, stop):
        yield Served(port, stop)
