"""The command ``genre-demo``: a page on this machine to try a trained model with.

The page is the plain HTML, CSS and JavaScript of ``demo_page``. It talks to a JSON API that other
programs can use as well:

``GET /api/model``
    What the model is: ``checkpoint`` (the file's name), ``genres`` (G names), ``activation``,
    ``uses_titles``, ``uses_posters``, ``max_poster_bytes``, ``max_title_characters``.

``POST /api/predict?title=TITLE``, an image file's bytes or nothing as the body
    ``title`` (null for none), ``poster`` (true or false), ``predicted`` (names of the genres whose
    score reaches their threshold, the highest score first) and ``genres``: for each of the G, the
    highest score first, ``name``, ``score``, ``threshold``, ``predicted``, and the exact parts of
    its logit: ``logit`` = ``bias`` + ``title`` + ``poster``. ``words`` is null without a title, and
    else has for each word, and the year where the model knows about it, ``text``, ``kind``
    ("word" or "year"), ``span`` (its characters in the title, or null) and ``adds`` (to the logit
    of each genre, by name; the sum is the genre's ``title``). Where the model's title branch can't
    be taken apart ``words`` is null and ``words_problem`` says why.

``POST /api/heat?genre=NAME``, an image file's bytes as the body
    A PNG: the poster with the heat map (Grad-CAM) of this genre laid over it.

Errors have a status from 400 on and the body ``{"error": {"code": ..., "message": ...}}``; codes:
``nothing_given``, ``no_branch``, ``title_too_long``, ``too_large``, ``not_an_image``,
``unknown_genre``, ``not_explained``, ``wrong_host``, ``wrong_origin``, ``http`` and ``failed``.
With curl: ``curl --data-binary @heat.jpg "http://127.0.0.1:7860/api/predict?title=Heat+(1995)"``.

A poster is the whole body, not a part of a form: so it is counted as it comes in, refused as soon
as it is too large, and kept in memory alone, where a form's parts would go to temporary files.
Nothing is written to disk, logged or sent anywhere.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import importlib
import io
import ipaddress
import os
import re
import socket
import sys
import threading
import webbrowser
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from genre_lightning.errors import UserError

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send
    from uvicorn import Server

    from genre_lightning.predicting.predictor import GenrePredictor

MAX_POSTER_BYTES = 16 * 2**20
MAX_TITLE_CHARACTERS = 500

#: Longer side of a heat map's picture in pixels: twice as large as it is shown, for sharp screens.
_PICTURE_SIDE = 512

#: How long requests under way may take once the command is told to end.
_SECONDS_TO_END = 3

_FILES = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    # What people look up is nobody's business later on; and a new version's page is seen at once.
    "Cache-Control": "no-store",
}

_Answer = TypeVar("_Answer")


class DemoError(UserError):
    """What keeps the command from serving the page."""


class ApiError(Exception):
    """A request that can't be answered.

    Args:
        status: of HTTP.
        code: for programs, one of those in the module's docstring.
        message: for people.
    """

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command until Ctrl-C.

    Returns:
        0 after Ctrl-C, 130 for one before the page was there; 1 for what the user can mend, with a
        message on standard error. Exits with 2 where the arguments make no sense.
    """
    options = _parser().parse_args(arguments)
    try:
        return _serve(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="genre-demo",
        description="Open a page on this machine to try a trained model: title, poster, genres "
        "and why. It sends nothing anywhere and keeps nothing. Ctrl-C ends it.",
        allow_abbrev=False,
    )
    parser.add_argument("checkpoint", metavar="CKPT", type=Path, help="such as .../best.ckpt")
    parser.add_argument(
        "--port", type=_port, default=7860, help="default 7860; 0 takes any that is free"
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; any but the default lets other machines in, who need no "
        "password",
    )
    parser.add_argument(
        "--device", default="cpu", help="cpu (default), cuda, or auto for a GPU where there is one"
    )
    parser.add_argument(
        "--no-browser",
        dest="browser",
        action="store_false",
        help="only print the address, open no browser",
    )
    return parser


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 65535")
    return int(text)


def _serve(options: argparse.Namespace) -> int:
    _check_extra()
    # Before the model is loaded: a port in use is then known at once.
    listener = open_port(options.host, options.port)
    with listener:
        from genre_lightning.predicting.predictor import GenrePredictor

        predictor = GenrePredictor.from_checkpoint(options.checkpoint, options.device)
        app = build_app(predictor, options.checkpoint.name, [options.host, socket.gethostname()])
        address, port = listener.getsockname()[:2]
        url = page_url(address, port)
        if not ipaddress.ip_address(address).is_loopback:
            print(
                f"warning: {options.host} can be reached by other machines, without a password",
                file=sys.stderr,
            )
        # From here on a browser that comes too early waits instead of being turned away.
        listener.listen()
        print(f"{options.checkpoint.name} can be tried at {url} (Ctrl-C ends)", flush=True)
        if options.browser and _has_screen():
            # On its own thread: some browsers are waited for.
            threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
        with contextlib.suppress(KeyboardInterrupt):  # raised once all is ended in order
            build_server(app).run(sockets=[listener])
    return 0


def _check_extra() -> None:
    for name in ("starlette", "uvicorn"):
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise DemoError(
                f"genre-demo needs {error.name}, which is not installed: "
                'pip install "genre-lightning[demo]"'
            ) from error


def open_port(host: str, port: int) -> socket.socket:
    """A socket bound to an address, not yet listening.

    Raises:
        DemoError: there is no such address here, or the port is in use.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError) as error:
        raise DemoError(f"--host {host}: there is no such address ({error})") from error
    listener = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":  # elsewhere it would let two programs have the same port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise DemoError(
                f"port {port} is in use: is genre-demo running already? "
                "Choose another with --port, or --port 0 for any that is free"
            ) from error
        raise DemoError(f"can't listen on {host}, port {port}: {error.strerror}") from error
    return listener


def page_url(address: str, port: int) -> str:
    """Where a browser on this machine finds the page of a server listening on an IP address."""
    ip = ipaddress.ip_address(address)
    if ip.is_unspecified:
        ip = ipaddress.ip_address("127.0.0.1" if ip.version == 4 else "::1")
    return f"http://{ip if ip.version == 4 else f'[{ip}]'}:{port}/"


def _has_screen() -> bool:
    """Whether a browser would open a window, not take over the terminal."""
    if sys.platform in ("win32", "darwin"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def build_server(app: ASGIApp) -> Server:
    """The server of the page, for sockets handed to its ``run``. It logs nothing but failures."""
    import uvicorn

    return uvicorn.Server(
        uvicorn.Config(
            app,
            http="h11",
            loop="asyncio",
            ws="none",
            lifespan="off",
            access_log=False,
            log_level="warning",
            server_header=False,
            timeout_graceful_shutdown=_SECONDS_TO_END,
        )
    )


def build_app(predictor: GenrePredictor, checkpoint: str, hosts: Sequence[str] = ()) -> ASGIApp:
    """The page and its API as an ASGI application.

    Args:
        predictor: of the model to try.
        checkpoint: what the page calls the model.
        hosts: names this machine is called by, besides localhost and IP addresses.
    """
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    # More at once would only take turns on the cores, each with a decoded poster in memory.
    turns = asyncio.Semaphore(predictor.workers)

    async def in_thread(work: Callable[..., _Answer], *arguments: Any) -> _Answer:
        from starlette.concurrency import run_in_threadpool

        async with turns:
            return await run_in_threadpool(work, *arguments)

    def page_file(name: str, kind: str) -> Callable[[Request], Response]:
        content = (resources.files("genre_lightning.webapp") / "page" / name).read_bytes()
        return lambda request: Response(content, media_type=kind)

    def model(request: Request) -> Response:
        return JSONResponse(_describe(predictor, checkpoint))

    async def predict(request: Request) -> Response:
        title = request.query_params.get("title", "")
        poster = await _read_poster(request)
        return JSONResponse(await in_thread(explain_movie, predictor, title, poster))

    async def heat(request: Request) -> Response:
        genre = request.query_params.get("genre", "")
        poster = await _read_poster(request)
        picture = await in_thread(heat_picture, predictor, genre, poster)
        return Response(picture, media_type="image/png")

    def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return _error(error.status, error.code, error.message)

    def not_found(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return _error(error.status_code, "http", f"{error.detail}.")

    def gone(request: Request, error: Exception) -> Response:
        return Response(status_code=400)  # nobody reads it

    def failed(request: Request, error: Exception) -> Response:
        return _error(500, "failed", "The model failed on this movie; the terminal says more.")

    app = Starlette(
        routes=[
            *(Route(path, page_file(*file)) for path, file in _FILES.items()),
            Route("/api/model", model),
            Route("/api/predict", predict, methods=["POST"]),
            Route("/api/heat", heat, methods=["POST"]),
        ],
        exception_handlers={
            ApiError: refused,
            HTTPException: not_found,
            ClientDisconnect: gone,
            Exception: failed,
        },
    )
    return _Guard(app, hosts)  # outermost, so that failures too have its headers


class _Guard:
    """Turns away what other web pages send here, and adds the headers to every answer.

    A page elsewhere can point a name of its own at this machine and then read what it is served
    (DNS rebinding). That takes a name, so a host is let through if it is an IP address or a name
    we go by. Such a page can also send without reading: that says so in its Origin.
    """

    def __init__(self, app: ASGIApp, names: Sequence[str]) -> None:
        self.app = app
        self.names = {"localhost", *(name.lower() for name in names)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host, origin = headers.get(b"host", ""), headers.get(b"origin")
        app = self.app
        if not self._is_ours(host):
            message = "This page goes by its IP address or localhost, and not by this name."
            app = _error(400, "wrong_host", message)
        elif origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            app = _error(403, "wrong_origin", "Only this page itself may ask.")
        await app(scope, receive, send_with_headers)

    def _is_ours(self, host: str) -> bool:
        found = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]]+)(:\d+)?", host)
        if found is None:
            return False
        name = found[1].lower().rstrip(".")
        if name in self.names:
            return True
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return False
        return True


def _error(status: int, code: str, message: str) -> Response:
    from starlette.responses import JSONResponse

    return JSONResponse({"error": {"code": code, "message": message}}, status)


async def _read_poster(request: Request) -> bytes | None:
    """The body, None if there is none; refused as soon as it is known to be too large."""
    too_large = ApiError(
        413,
        "too_large",
        f"This file is too large: a poster may have up to {MAX_POSTER_BYTES // 2**20} MB.",
    )
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > MAX_POSTER_BYTES:
        raise too_large
    received = bytearray()
    async for chunk in request.stream():
        received += chunk
        if len(received) > MAX_POSTER_BYTES:
            raise too_large
    return bytes(received) or None


def _describe(predictor: GenrePredictor, checkpoint: str) -> dict[str, Any]:
    return {
        "checkpoint": checkpoint,
        "genres": list(predictor.genres),
        "activation": predictor.model.activation,
        "uses_titles": predictor.uses_titles,
        "uses_posters": predictor.uses_posters,
        "max_poster_bytes": MAX_POSTER_BYTES,
        "max_title_characters": MAX_TITLE_CHARACTERS,
    }


def explain_movie(predictor: GenrePredictor, title: str, poster: bytes | None) -> dict[str, Any]:
    """What ``/api/predict`` answers, see the module's docstring.

    Args:
        predictor: of the model.
        title: blank for none.
        poster: an encoded image, None for none.

    Raises:
        ApiError: it can't be answered.
    """
    from genre_lightning.explain.parts import score_parts, title_contributions

    _check_movie(predictor, title, poster)
    given = title if title.strip() else None
    pixels = None if poster is None else _decode(predictor, poster)
    prediction = predictor.predict([given], [poster])[0]
    parts = score_parts(predictor.model, given, pixels)
    answer: dict[str, Any] = {
        "title": given,
        "poster": poster is not None,
        "predicted": list(prediction.genres),
        "genres": [],
        "words": None,
    }
    thresholds = predictor.thresholds
    for name, score in prediction.ranked():
        place = predictor.genres.index(name)
        answer["genres"].append(
            {
                "name": name,
                "score": score,
                "threshold": thresholds[name],
                "predicted": name in prediction.genres,
                "logit": float(parts.logits[place]),
                "bias": float(parts.bias[place]),
                "title": float(parts.title[place]),
                "poster": float(parts.poster[place]),
            }
        )
    if given is not None:
        try:
            found = title_contributions(predictor.model, given)
        except TypeError as error:
            answer["words_problem"] = str(error)
        else:
            answer["words"] = [
                {
                    "text": part.text,
                    "kind": part.kind,
                    "span": part.span,
                    "adds": dict(zip(predictor.genres, part.contributions.tolist(), strict=True)),
                }
                for part in found.parts
            ]
    return answer


def heat_picture(predictor: GenrePredictor, genre: str, poster: bytes | None) -> bytes:
    """What ``/api/heat`` answers: a PNG.

    Raises:
        ApiError: it can't be answered.
    """
    from genre_lightning.explain.parts import heat_pictures

    if genre not in predictor.genres:
        raise ApiError(404, "unknown_genre", f"The model knows no genre {genre!r:.100}.")
    _check_movie(predictor, "", poster)
    assert poster is not None
    _decode(predictor, poster)
    try:
        pictures = heat_pictures(
            predictor.model, poster, [predictor.genres.index(genre)], _PICTURE_SIDE
        )
    except TypeError as error:
        raise ApiError(422, "not_explained", str(error)) from error
    png = io.BytesIO()
    pictures[0].save(png, "PNG", compress_level=1)  # it goes no further than this machine
    return png.getvalue()


def _check_movie(predictor: GenrePredictor, title: str, poster: bytes | None) -> None:
    if len(title) > MAX_TITLE_CHARACTERS:
        raise ApiError(
            400,
            "title_too_long",
            f"This title has {len(title)} characters; up to {MAX_TITLE_CHARACTERS} are read.",
        )
    if not title.strip() and poster is None:
        wanted = " or ".join(
            text
            for text, used in (
                ("type a title", predictor.uses_titles),
                ("choose a poster", predictor.uses_posters),
            )
            if used
        )
        raise ApiError(400, "nothing_given", f"There is nothing to go by yet: {wanted}.")
    for what, given, used in (
        ("title", bool(title.strip()), predictor.uses_titles),
        ("poster", poster is not None, predictor.uses_posters),
    ):
        if given and not used:
            raise ApiError(
                422, "no_branch", f"This model has no {what} branch: leave the {what} out."
            )


def _decode(predictor: GenrePredictor, poster: bytes) -> Any:
    """(H, W, 3) uint8 RGB, as the model takes it."""
    from genre_lightning.inputs.decode import PosterError, decode_poster

    try:
        model = predictor.model
        return decode_poster(poster, model.poster_size, model.poster_shrink)
    except PosterError as error:
        raise ApiError(
            415, "not_an_image", f"This file can't be read as a picture: {error}."
        ) from error


if __name__ == "__main__":
    sys.exit(main())
