"""The page to try a model with: its API over real connections, its look in a real browser."""

from __future__ import annotations

import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np
import pytest
from PIL import Image, ImageDraw
from playwright.sync_api import Browser, Page, Request, expect

from docs.browser import serve_demo
from genre_lightning import GenrePredictor
from genre_lightning.webapp import server as demo
from genre_lightning.webapp.server import MAX_POSTER_BYTES, MAX_TITLE_CHARACTERS

HOSTILE = '<img src=x onerror="window.hit=1"><script>window.hit=1</script> & "Heat" (1995)'


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
    """A server in a thread of its own."""

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


@pytest.fixture(scope="module")
def predictor(tiny_checkpoint: Path) -> GenrePredictor:
    return GenrePredictor.from_checkpoint(tiny_checkpoint, "cpu")


@pytest.fixture(scope="module")
def served(predictor: GenrePredictor) -> Iterator[Served]:
    with serving(predictor) as server:
        yield server


@pytest.fixture(scope="module")
def poster() -> bytes:
    """A drawn poster, 120 x 180."""
    image = Image.new("RGB", (120, 180), "#223355")
    draw = ImageDraw.Draw(image)
    draw.ellipse((20, 30, 100, 110), fill="#dd8833")
    draw.rectangle((10, 130, 110, 165), fill="#eeeecc")
    png = io.BytesIO()
    image.save(png, "PNG")
    return png.getvalue()


@pytest.fixture(scope="module")
def poster_file(poster: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("posters") / "drawn.png"
    path.write_bytes(poster)
    return path


# ---- the API


@pytest.mark.parametrize(
    ("with_title", "with_poster"),
    [(True, True), (True, False), (False, True)],
    ids=["both", "title", "poster"],
)
def test_scores_are_the_predictors_and_parts_add_up(
    served: Served, predictor: GenrePredictor, poster: bytes, with_title: bool, with_poster: bool
):
    title = "Léon: The Professional (1994)" if with_title else None
    body = poster if with_poster else None
    answer = served.ask("POST", f"/api/predict?title={quote(title or '')}", body)
    assert answer.status == 200
    found = answer.json()
    (wanted,) = predictor.predict([title], [body])
    assert found["title"] == title
    assert found["poster"] is with_poster
    assert found["predicted"] == list(wanted.genres)
    assert [genre["name"] for genre in found["genres"]] == [name for name, _ in wanted.ranked()]
    for genre in found["genres"]:
        name = genre["name"]
        assert genre["score"] == pytest.approx(wanted.scores[name], abs=1e-6)
        assert genre["threshold"] == predictor.thresholds[name]
        assert genre["predicted"] == (name in wanted.genres)
        parts = genre["bias"] + genre["title"] + genre["poster"]
        assert parts == pytest.approx(genre["logit"], abs=1e-9)
        assert 1 / (1 + np.exp(-parts)) == pytest.approx(genre["score"], abs=1e-5)
        assert (genre["poster"] != 0) == with_poster
        if with_title:
            words = sum(word["adds"][name] for word in found["words"])
            assert words == pytest.approx(genre["title"], abs=1e-4)
    if title is None:
        assert found["words"] is None
    else:
        assert [word["text"] for word in found["words"] if word["kind"] == "word"] == [
            "Léon",
            "The",
            "Professional",
        ]
        assert all(title[slice(*word["span"])] in word["text"] for word in found["words"])


def test_what_the_model_is(served: Served, predictor: GenrePredictor):
    found = served.ask("GET", "/api/model").json()
    assert found["genres"] == list(predictor.genres)
    assert found["checkpoint"] == "tiny.ckpt"
    assert found["uses_titles"] and found["uses_posters"]
    assert found["max_poster_bytes"] == MAX_POSTER_BYTES


def test_heat_maps_have_the_posters_proportions_and_differ(served: Served, poster: bytes):
    pictures = []
    for genre in ("Action", "Comedy"):
        answer = served.ask("POST", f"/api/heat?genre={genre}", poster)
        assert answer.status == 200 and answer.headers["content-type"] == "image/png"
        with Image.open(io.BytesIO(answer.body)) as image:
            assert image.width / image.height == pytest.approx(120 / 180, abs=0.01)
            pictures.append(np.asarray(image))
    assert (pictures[0] != pictures[1]).any()


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/api/predict", None, 400, "nothing_given"),
        ("/api/predict?title=%20%20", b"", 400, "nothing_given"),
        ("/api/predict?title=" + "a" * (MAX_TITLE_CHARACTERS + 1), None, 400, "title_too_long"),
        ("/api/predict", b"a text and no picture", 415, "not_an_image"),
        ("/api/predict?title=Heat", b"\x89PNG\r\n\x1a\n", 415, "not_an_image"),
        ("/api/heat?genre=Action", b"a text and no picture", 415, "not_an_image"),
        ("/api/heat?genre=Action", None, 400, "nothing_given"),
        ("/api/heat?genre=Tragedy", b"x", 404, "unknown_genre"),
        ("/api/heat", b"x", 404, "unknown_genre"),
        ("/api/other", None, 404, "http"),
        ("/", None, 405, "http"),
        ("/../demo.py", None, 404, "http"),
    ],
)
def test_what_can_not_be_answered(
    served: Served, path: str, body: bytes | None, status: int, code: str
):
    answer = served.ask("POST", path, body)
    assert (answer.status, answer.code) == (status, code)


@pytest.mark.parametrize(
    ("branch", "query", "with_poster"),
    [("title", "", True), ("poster", "?title=Heat", False)],
    ids=["poster for titles only", "title for posters only"],
)
def test_a_branch_that_the_model_has_not(
    make_checkpoint: Callable[..., Path], poster: bytes, branch: str, query: str, with_poster: bool
):
    without = {"title": "poster", "poster": "title"}[branch]
    only = GenrePredictor.from_checkpoint(make_checkpoint(**{without: None}), "cpu")
    with serving(only) as server:
        answer = server.ask("POST", f"/api/predict{query}", poster if with_poster else None)
        assert (answer.status, answer.code) == (422, "no_branch")
        assert f"no {without} branch" in answer.json()["error"]["message"]
        empty = server.ask("POST", "/api/predict").json()["error"]["message"]
        assert f"a {branch}" in empty and f"a {without}" not in empty


def test_a_declared_size_above_the_limit_is_refused_before_any_of_it_is_sent(served: Served):
    with socket.create_connection(("127.0.0.1", served.port), 20) as connection:
        connection.sendall(
            b"POST /api/predict HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Length: %d\r\n\r\n" % (MAX_POSTER_BYTES + 1)
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")


def test_an_undeclared_size_is_refused_once_above_the_limit(served: Served):
    chunk = b"\0" * 2**20
    with socket.create_connection(("127.0.0.1", served.port), 20) as connection:
        connection.sendall(
            b"POST /api/predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        # Never ended: an answer comes because the limit is passed, not because all was read.
        for _ in range(MAX_POSTER_BYTES // len(chunk) + 1):
            connection.sendall(b"%x\r\n%b\r\n" % (len(chunk), chunk))
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")


def test_a_poster_just_within_the_limit_is_read_and_none_goes_to_disk(
    served: Served, poster: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a temporary file was asked for")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    monkeypatch.setattr("tempfile.NamedTemporaryFile", refuse)
    padded = poster + b"\0" * (MAX_POSTER_BYTES - len(poster))
    answer = served.ask("POST", "/api/predict", padded)
    assert answer.status == 200


def test_a_client_that_leaves_does_no_harm(served: Served, capfd: pytest.CaptureFixture[str]):
    with socket.create_connection(("127.0.0.1", served.port), 20) as connection:
        connection.sendall(
            b"POST /api/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nhalf"
        )
    assert served.ask("POST", "/api/predict?title=Heat").status == 200
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
def test_only_names_of_this_machine_are_answered(served: Served, host: str, status: int):
    answer = served.ask("GET", "/api/model", headers={"Host": host})
    assert answer.status == status
    assert status == 200 or answer.code == "wrong_host"


@pytest.mark.parametrize(
    ("origin", "status"),
    [("http://127.0.0.1:7860", 200), ("https://evil.example", 403), ("null", 403)],
)
def test_other_web_pages_may_not_ask(served: Served, origin: str, status: int):
    headers = {"Host": "127.0.0.1:7860", "Origin": origin}
    assert served.ask("POST", "/api/predict?title=Heat", headers=headers).status == status


@pytest.mark.parametrize("path", ["/", "/page.css", "/page.js", "/api/model", "/nowhere"])
def test_every_answer_forbids_other_sources(served: Served, path: str):
    headers = {name.lower(): value for name, value in served.ask("GET", path).headers.items()}
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"
    assert "access-control-allow-origin" not in headers and "server" not in headers


def test_a_failure_is_told_and_does_not_end_the_server(
    make_checkpoint: Callable[..., Path], capfd: pytest.CaptureFixture[str]
):
    broken = GenrePredictor.from_checkpoint(make_checkpoint(), "cpu")
    network = broken.model.network
    assert network.title is not None
    for value in network.title.parameters():
        value.data = value.data[:0]
    with serving(broken) as server:
        answer = server.ask("POST", "/api/predict?title=Heat")
        assert (answer.status, answer.code) == (500, "failed")
        assert "content-security-policy" in {name.lower() for name in answer.headers}
        assert server.ask("GET", "/").status == 200
    assert "Traceback" in capfd.readouterr().err


def test_others_are_answered_while_a_prediction_runs(
    served: Served, poster: bytes, predictor: GenrePredictor, monkeypatch: pytest.MonkeyPatch
):
    begun, go_on = threading.Event(), threading.Event()

    def wait(*_: Any) -> Any:
        begun.set()
        assert go_on.wait(20)
        return {"waited": True}

    monkeypatch.setattr(demo, "explain_movie", wait)
    answers: list[Answer] = []
    asking = threading.Thread(
        target=lambda: answers.append(served.ask("POST", "/api/predict", poster))
    )
    asking.start()
    assert begun.wait(20)
    assert served.ask("GET", "/api/model").status == 200
    assert not answers
    go_on.set()
    asking.join(20)
    assert answers[0].json() == {"waited": True}


# ---- the command


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "genre_lightning.webapp.server", *arguments]


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="Ctrl-C is sent as a signal")
def test_the_command_serves_until_ctrl_c(tiny_checkpoint: Path, repository: Path):
    process = subprocess.Popen(
        command(str(tiny_checkpoint), "--port", "0"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=repository,
        # No screen: it must not open a browser, on a terminal least of all.
        env={k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY")},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        assert process.stdout is not None
        found = re.search(r"tiny\.ckpt .* http://127\.0\.0\.1:(\d+)/", process.stdout.readline())
        assert found is not None
        served = Served(int(found[1]), process.terminate)
        assert served.ask("POST", "/api/predict?title=Heat").status == 200
        taken = subprocess.run(
            command(str(tiny_checkpoint), "--port", found[1]),
            capture_output=True,
            text=True,
            cwd=repository,
        )
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
        assert (process.returncode, out, err) == (0, "", "")
    finally:
        process.kill()
    assert taken.returncode == 1
    assert f"error: port {found[1]} is in use" in taken.stderr and "--port" in taken.stderr


def test_without_the_extra_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert demo.main(["best.ckpt"]) == 1
    assert 'pip install "genre-lightning[demo]"' in capsys.readouterr().err


def test_a_bad_checkpoint_is_an_error_without_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert demo.main([str(tmp_path / "none.ckpt"), "--port", "0"]) == 1
    assert "none.ckpt: there is no such file" in capsys.readouterr().err


@pytest.mark.parametrize("port", ["65536", "-1", "http", "٣"])
def test_a_bad_port_is_refused(port: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="2"):
        demo.main(["best.ckpt", f"--port={port}"])
    assert "from 0 to 65535" in capsys.readouterr().err


def test_an_address_of_another_machine_is_refused(capsys: pytest.CaptureFixture[str]):
    assert demo.main(["best.ckpt", "--host", "192.0.2.1"]) == 1
    assert "can't listen on 192.0.2.1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80/"),
        ("0.0.0.0", "http://127.0.0.1:80/"),
        ("::1", "http://[::1]:80/"),
        ("::", "http://[::1]:80/"),
        ("192.168.7.7", "http://192.168.7.7:80/"),
    ],
)
def test_the_address_that_is_shown(address: str, url: str):
    assert demo.page_url(address, 80) == url


# ---- the page, as a person uses it


@pytest.fixture
def page(browser: Browser, served: Served) -> Iterator[Page]:
    """The page, opened; afterwards nothing may have gone elsewhere or wrong."""
    with open_page(browser, served.url) as opened:
        yield opened


@contextmanager
def open_page(browser: Browser, url: str, **options: Any) -> Iterator[Page]:
    context = browser.new_context(**options)
    context.set_default_timeout(10_000)
    opened = context.new_page()
    asked: list[Request] = []
    errors: list[str] = []
    context.on("request", lambda request: asked.append(request))
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.on(
        "console",
        # Answers from 400 on are logged by the browser itself.
        lambda message: (
            errors.append(message.text)
            if message.type == "error" and "Failed to load resource" not in message.text
            else None
        ),
    )
    opened.goto(url)
    expect(opened.locator("#about")).to_contain_text("4 genres")
    try:
        yield opened
        here = urlsplit(url).netloc
        for request in asked:
            parts = urlsplit(request.url)
            assert parts.scheme in ("blob", "data") or parts.netloc == here, request.url
        assert errors == []
        assert not opened.evaluate("() => 'hit' in window")
    finally:
        context.close()


def ask(page: Page, title: str) -> None:
    page.get_by_label("Title").fill(title)
    page.keyboard.press("Enter")


def number(text: str) -> float:
    return float(text.replace("−", "-"))


def column(page: Page, rows: str) -> dict[str, float]:
    names = page.locator(f"{rows} .name").all_inner_texts()
    values = page.locator(f"{rows} .value").all_inner_texts()
    return dict(zip(names, map(number, values), strict=True))


def test_title_and_poster_give_bars_and_reasons(
    page: Page, poster_file: Path, poster: bytes, predictor: GenrePredictor
):
    title = "Night of the Living Dead (1968)"
    page.get_by_label("Title").fill(title)
    page.get_by_label("Poster", exact=True).set_input_files(poster_file)
    expect(page.locator("#preview")).to_be_visible()
    page.get_by_role("button", name="Name the genres").click()
    (wanted,) = predictor.predict([title], [poster])
    for name in wanted.genres:
        expect(page.get_by_role("status")).to_contain_text(name)
    expect(page.locator("#bars li")).to_have_count(4)
    assert column(page, "#bars") == {name: round(s, 2) for name, s in wanted.ranked()}
    named = page.locator("#bars .named .name").all_inner_texts()
    assert set(named) == set(wanted.genres)
    for name, score in wanted.scores.items():
        bar = page.locator("#bars li", has_text=name).locator(".bar")
        drawn = bar.evaluate("(e) => [e.style.getPropertyValue('--score'), e.offsetWidth]")
        assert float(drawn[0]) == pytest.approx(score, abs=1e-6) and drawn[1] > 50

    other = next(name for name, _ in reversed(wanted.ranked()))
    page.locator("#bars label", has_text=other).click()
    expect(page.get_by_role("heading", name=f"Why {other}")).to_be_visible()
    expect(page.locator("#why-score")).to_contain_text(f"{wanted.scores[other]:.2f}")
    parts = column(page, "#parts")
    assert list(parts) == ["Bias", "Title", "Poster", "Sum"]
    assert sum(parts.values()) - 2 * parts["Sum"] == pytest.approx(0, abs=0.021)
    assert 1 / (1 + np.exp(-parts["Sum"])) == pytest.approx(wanted.scores[other], abs=0.005)
    words = column(page, "#words")
    assert {"Living", "Dead", "Night", "the", "of"} <= set(words)
    assert sum(words.values()) == pytest.approx(parts["Title"], abs=0.005 * (len(words) + 1))
    sizes = [abs(value) for value in words.values()]
    assert sizes == sorted(sizes, reverse=True)
    assert page.locator("#marked").inner_text() == title
    assert page.locator("#marked mark", has_text="Living").count() == 1
    heat = page.get_by_alt_text(f"bright where it speaks for {other}")
    expect(heat).to_have_attribute("src", re.compile("^blob:"))
    assert heat.evaluate("(image) => image.decode().then(() => image.naturalHeight)") == 512


def test_the_keyboard_is_enough(page: Page):
    page.keyboard.press("Tab")
    expect(page.get_by_label("Title")).to_be_focused()
    page.keyboard.type("Alien (1979)")
    page.keyboard.press("Enter")
    expect(page.locator("#why-heading")).to_be_visible()
    first = page.locator("#bars .chosen .name").inner_text()
    for _ in range(3):  # poster, button, genres
        page.keyboard.press("Tab")
    expect(page.locator("#bars .chosen input")).to_be_focused()
    page.keyboard.press("ArrowDown")
    chosen = page.locator("#bars .chosen")
    expect(chosen.locator("input")).to_be_focused()
    name = chosen.locator(".name").inner_text()
    assert name != first
    expect(page.locator("#why-heading")).to_contain_text(name)
    expect(page.get_by_role("radio", name=re.compile(f"^{name} .*threshold"))).to_be_checked()


def test_a_file_that_is_no_picture(page: Page, tmp_path: Path):
    path = tmp_path / "notes.txt"
    path.write_text("no picture at all")
    ask(page, "Heat (1995)")
    expect(page.locator("#genres")).to_be_visible()
    page.get_by_label("Poster", exact=True).set_input_files(path)
    expect(page.get_by_role("alert").first).to_contain_text("can't be read as a picture")
    expect(page.locator("#genres")).to_be_hidden()
    page.get_by_role("button", name="Remove the poster").click()
    expect(page.locator("#genres")).to_be_visible()
    expect(page.get_by_role("alert").first).to_be_empty()


def test_too_large_and_empty_files_and_nothing_at_all(page: Page, tmp_path: Path):
    large, empty = tmp_path / "large.png", tmp_path / "empty.png"
    with large.open("wb") as file:
        file.truncate(MAX_POSTER_BYTES + 1)
    empty.touch()
    alert = page.get_by_role("alert").first
    page.get_by_role("button", name="Name the genres").click()
    expect(alert).to_contain_text("type a title or choose a poster")
    page.get_by_label("Poster", exact=True).set_input_files(large)
    expect(alert).to_contain_text("large.png is too large")
    page.get_by_label("Poster", exact=True).set_input_files(empty)
    expect(alert).to_contain_text("empty.png is empty")


def test_a_poster_can_be_dropped(page: Page, poster: bytes):
    data = page.evaluate_handle(
        """(bytes) => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], "dropped.png", {type: "image/png"}));
            return data;
        }""",
        list(poster),
    )
    page.dispatch_event("#drop", "drop", {"dataTransfer": data})
    expect(page.locator("#preview")).to_be_visible()
    expect(page.locator("#poster-hint")).to_have_text("dropped.png")
    expect(page.locator("#heat")).to_have_attribute("src", re.compile("^blob:"))
    assert list(column(page, "#parts")) == ["Bias", "No title", "Poster", "Sum"]
    expect(page.locator("#why-title")).to_be_hidden()


@pytest.mark.parametrize(
    "title",
    [HOSTILE, "中文 🎬🎬 Alien", "ﬁve of Łódź (1995)", "?!"],
    ids=["markup", "beyond 16 bits", "ligature", "no words"],
)
def test_any_title_is_text_and_stays_itself(page: Page, title: str):
    ask(page, title)
    expect(page.locator("#marked")).to_have_text(title)
    assert page.locator("#why img[src=x], #why script").count() == 0


def test_a_server_that_is_gone(browser: Browser, predictor: GenrePredictor):
    with serving(predictor) as server, open_page(browser, server.url) as page:
        server.stop()
        ask(page, "Heat (1995)")
        expect(page.get_by_role("alert").first).to_contain_text("Is genre-demo still running")


def test_a_slow_answer_does_not_overtake_the_next(
    page: Page, served: Served, monkeypatch: pytest.MonkeyPatch
):
    explain, slow = demo.explain_movie, threading.Event()

    def delayed(predictor: GenrePredictor, title: str, poster: bytes | None) -> Any:
        if title == "Slow":
            assert slow.wait(20)
        return explain(predictor, title, poster)

    monkeypatch.setattr(demo, "explain_movie", delayed)
    ask(page, "Slow")
    expect(page.locator("#answer")).to_have_attribute("aria-busy", "true")
    ask(page, "Quick")
    expect(page.locator("#marked")).to_have_text("Quick")
    slow.set()
    page.wait_for_load_state("networkidle")
    expect(page.locator("#marked")).to_have_text("Quick")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_the_reasons_stand_under_their_genre(
    browser: Browser, served: Served, poster_file: Path, scheme: str
):
    options = {"viewport": {"width": 375, "height": 812}, "color_scheme": scheme}
    with open_page(browser, served.url, has_touch=True, is_mobile=True, **options) as page:
        page.get_by_label("Poster", exact=True).set_input_files(poster_file)
        expect(page.locator("#genres")).to_be_visible()
        expect(page.locator("#why")).to_be_hidden()
        labels = page.locator("#bars label")
        labels.nth(0).tap()
        expect(page.locator("#bars li").nth(0).locator("#why")).to_be_visible()
        expect(page.locator("#heat")).to_have_attribute("src", re.compile("^blob:"))
        labels.nth(2).scroll_into_view_if_needed()
        before = labels.nth(2).bounding_box()
        labels.nth(2).tap()
        expect(page.locator("#bars li").nth(2).locator("#why")).to_be_visible()
        after = labels.nth(2).bounding_box()
        assert before is not None and after is not None
        assert after["y"] == pytest.approx(before["y"], abs=2), "it moved away from the finger"
        width = page.evaluate("() => document.documentElement.scrollWidth")
        assert width == 375, "the page can be pushed sideways"
        assert contrast(page, "body") >= 7
        assert contrast(page, "#why .hint") >= 4.5


def contrast(page: Page, selector: str) -> float:
    """Contrast of text to the page, by WCAG 2: (L1 + 0.05) / (L2 + 0.05)."""
    colours = page.evaluate(
        """(selector) => [
            getComputedStyle(document.querySelector(selector)).color,
            getComputedStyle(document.body).backgroundColor,
        ]""",
        selector,
    )
    light = []
    for colour in colours:
        values = np.array([int(v) for v in re.findall(r"\d+", colour)[:3]]) / 255
        linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
        light.append(float(linear @ np.array([0.2126, 0.7152, 0.0722])))
    return (max(light) + 0.05) / (min(light) + 0.05)


def test_only_what_the_model_looks_at_is_asked_for(
    browser: Browser, make_checkpoint: Callable[..., Path]
):
    titles_only = GenrePredictor.from_checkpoint(make_checkpoint(poster=None), "cpu")
    with serving(titles_only) as server, open_page(browser, server.url) as page:
        expect(page.get_by_label("Poster", exact=True)).to_be_hidden()
        ask(page, "Heat (1995)")
        expect(page.locator("#why-heading")).to_be_visible()
        assert list(column(page, "#parts")) == ["Bias", "Title", "Sum"]
