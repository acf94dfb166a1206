"""Which requests the server accepts, up to which size, and the headers of its responses."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from genre_lightning import GenrePredictor
from genre_lightning.webapp import api
from genre_lightning.webapp.api import MAX_POSTER_BYTES, max_body_bytes
from tests.webapp.serving import Answer, Served, movie, serving


def test_a_declared_size_above_the_limit_is_refused_before_the_body(
    served: Served, predictor: GenrePredictor
):
    with socket.create_connection(("127.0.0.1", served.port), 20) as connection:
        connection.sendall(
            b"POST /api/predict HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Length: %d\r\n\r\n" % (max_body_bytes(predictor) + 1)
        )
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert answer.status == 413
        message = json.load(answer)["error"]["message"]
    limits = "a poster may have up to 16 MB and a text up to 20,000 characters."
    assert message == f"This request is too large: {limits}"


def test_an_undeclared_size_is_refused_once_it_exceeds_the_limit(
    served: Served, predictor: GenrePredictor
):
    chunk = b"\0" * 2**20
    with socket.create_connection(("127.0.0.1", served.port), 20) as connection:
        connection.sendall(
            b"POST /api/predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        # The body never ends: the server answers because the limit is exceeded.
        for _ in range(max_body_bytes(predictor) // len(chunk) + 1):
            connection.sendall(b"%x\r\n%b\r\n" % (len(chunk), chunk))
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")


def test_a_poster_just_within_the_limit_is_read_without_temporary_files(
    served: Served, poster: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a temporary file was opened")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    monkeypatch.setattr("tempfile.NamedTemporaryFile", refuse)
    padded = poster + b"\0" * (MAX_POSTER_BYTES - len(poster))
    answer = served.ask("POST", "/api/predict", movie(poster=padded))
    assert answer.status == 200 and answer.json()["problems"] == {}
    answer = served.ask("POST", "/api/predict", movie(poster=padded + b"\0"))
    assert (answer.status, answer.code) == (413, "too_large")
    query = "/api/heat?branch=poster_resnet&genre=Action"
    assert served.ask("POST", query, padded).status == 200
    assert served.ask("POST", query, padded + b"\0").status == 413


def test_a_client_that_sends_all_before_it_reads_gets_the_refusal(
    served: Served, predictor: GenrePredictor
):
    # As urllib does, with "Connection: close": the system resets a connection that the server
    # closes while data arrive, and the client loses the answer.
    for size in (max_body_bytes(predictor) + 1, 2 * max_body_bytes(predictor)):
        with pytest.raises(HTTPError) as refused:
            urlopen(f"{served.url}api/predict", b" " * size, timeout=60)
        with refused.value as answer:
            assert (answer.status, json.load(answer)["error"]["code"]) == (413, "too_large")


def test_a_client_may_disconnect_early(served: Served, capfd: pytest.CaptureFixture[str]):
    with socket.create_connection(("127.0.0.1", served.port), 20) as connection:
        connection.sendall(
            b"POST /api/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nhalf"
        )
    assert served.ask("POST", "/api/predict", movie(title="Heat")).status == 200
    assert "Traceback" not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:7860", 200),
        ("localhost", 200),
        ("LOCALHOST:1", 200),
        ("[::1]:7860", 200),
        ("192.168.7.7:80", 200),
        ("movies.example:7860", 200),
        ("evil.example", 400),
        ("127.0.0.1.evil.example", 400),
        ("localhost.evil.example:7860", 400),
        ("evil.example:7860@127.0.0.1", 400),
        ("", 400),
    ],
)
def test_only_host_names_of_this_machine_are_accepted(served: Served, host: str, status: int):
    answer = served.ask("GET", "/api/model", headers={"Host": host})
    assert answer.status == status
    assert status == 200 or answer.code == "wrong_host"


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://127.0.0.1:7860", 200),
        ("https://evil.example", 403),
        ("null", 403),
        ("http://[evil.example", 403),
    ],
)
def test_requests_of_other_web_pages_are_refused(served: Served, origin: str, status: int):
    headers = {"Host": "127.0.0.1:7860", "Origin": origin}
    answer = served.ask("POST", "/api/predict", movie(title="Heat"), headers)
    assert answer.status == status
    assert status == 200 or answer.code == "wrong_origin"


@pytest.mark.parametrize("path", ["/", "/page.css", "/page.js", "/api/model", "/nowhere"])
def test_every_response_has_security_headers(served: Served, path: str):
    headers = {name.lower(): value for name, value in served.ask("GET", path).headers.items()}
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"
    assert "access-control-allow-origin" not in headers and "server" not in headers


def test_an_internal_error_is_reported_and_does_not_stop_the_server(
    make_checkpoint: Callable[..., Path], capfd: pytest.CaptureFixture[str]
):
    broken = GenrePredictor.from_checkpoint(make_checkpoint(), "cpu")
    for value in broken.model.network.branches["title_tfidf"].parameters():
        value.data = value.data[:0]
    with serving(broken) as server:
        answer = server.ask("POST", "/api/predict", movie(title="Heat"))
        assert (answer.status, answer.code) == (500, "failed")
        assert "content-security-policy" in {name.lower() for name in answer.headers}
        assert server.ask("GET", "/").status == 200
    assert "Traceback" in capfd.readouterr().err


def test_other_requests_are_answered_while_a_prediction_runs(
    served: Served, poster: bytes, predictor: GenrePredictor, monkeypatch: pytest.MonkeyPatch
):
    started, resume = threading.Event(), threading.Event()

    def wait(*_: Any) -> Any:
        started.set()
        assert resume.wait(20)
        return {"waited": True}

    monkeypatch.setattr(api, "predict_movie", wait)
    answers: list[Answer] = []
    thread = threading.Thread(
        target=lambda: answers.append(served.ask("POST", "/api/predict", movie(poster=poster)))
    )
    thread.start()
    assert started.wait(20)
    assert served.ask("GET", "/api/model").status == 200
    assert not answers
    resume.set()
    thread.join(20)
    assert answers[0].json() == {"waited": True}
