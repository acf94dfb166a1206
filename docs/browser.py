"""The page of ``genre-demo`` served from a thread, and the Chromium that is installed here."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from genre_lightning.errors import UserError

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from genre_lightning.predicting.predictor import GenrePredictor

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


class BrowserError(UserError):
    """There is no browser to look with; the message says what to install."""


def find_chromium() -> str:
    """The path of the first of ``CHROMIUM`` that is installed.

    Raises:
        BrowserError: there is none.
    """
    found = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if found is None:
        raise BrowserError(
            f"no Chromium here: none of {', '.join(CHROMIUM)} is on the PATH; install one, "
            "e.g. apt-get install chromium"
        )
    return found


@contextmanager
def open_chromium() -> Iterator[Browser]:
    """A headless Chromium, closed at the end.

    Raises:
        BrowserError: there is none.
    """
    path = find_chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # what else a browser does on its own behalf would be noise among a page's requests
        quiet = ["--disable-quic", "--no-first-run", "--disable-background-networking"]
        chromium = playwright.chromium.launch(executable_path=path, args=quiet)
        try:
            yield chromium
        finally:
            chromium.close()


@contextmanager
def serve_demo(
    predictor: GenrePredictor, checkpoint: str, hosts: Sequence[str] = ()
) -> Iterator[tuple[int, Callable[[], None]]]:
    """Serve the page of genre-demo on this machine, on a port that is free.

    Args:
        predictor: of the model to try.
        checkpoint: what the page calls the model.
        hosts: names this machine is called by, besides localhost and IP addresses.

    Yields:
        The port on 127.0.0.1, and what ends the server; it is ended anyway.
    """
    from genre_lightning.webapp.app import build_app
    from genre_lightning.webapp.server import build_server, open_port

    listener = open_port("127.0.0.1", 0)
    server = build_server(build_app(predictor, checkpoint, hosts))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})

    def stop() -> None:
        server.should_exit = True
        thread.join(20)
        listener.close()

    thread.start()
    try:
        yield listener.getsockname()[1], stop
    finally:
        stop()
    if thread.is_alive():
        raise RuntimeError("the server was told to end and has not")
