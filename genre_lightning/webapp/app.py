"""The page and its API as an ASGI application.

The page is the plain HTML, CSS and JavaScript of ``webapp/page``; ``webapp/api.py`` documents the
API. A request is rejected as soon as it exceeds the size limit, and is kept in memory only: posters
are not sent as forms, whose parts would go to temporary files. Nothing is written to disk, logged
or sent anywhere.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import resources
from typing import TYPE_CHECKING, Any, TypeVar

from genre_lightning.webapp import api

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from genre_lightning.predicting.predictor import GenrePredictor

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
    # For privacy, and so that a new version of the page is shown at once.
    "Cache-Control": "no-store",
}

#: Maximum seconds for which the rest of a request that is too large is discarded.
_DISCARD_SECONDS = 10.0

_Result = TypeVar("_Result")


def build_app(predictor: GenrePredictor, checkpoint: str, hosts: Sequence[str] = ()) -> ASGIApp:
    """The page and its API as an ASGI application.

    Args:
        predictor: of the model to try.
        checkpoint: name of the model on the page.
        hosts: host names of this machine, besides localhost and IP addresses.
    """
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    # More concurrent requests would only compete for the cores, each with a decoded poster in
    # memory.
    slots = asyncio.Semaphore(predictor.workers)

    async def in_thread(work: Callable[..., _Result], *arguments: Any) -> _Result:
        from starlette.concurrency import run_in_threadpool

        async with slots:
            return await run_in_threadpool(work, *arguments)

    def page_file(name: str, kind: str) -> Callable[[Request], Response]:
        content = (resources.files("genre_lightning.webapp") / "page" / name).read_bytes()
        return lambda request: Response(content, media_type=kind)

    def model(request: Request) -> Response:
        return JSONResponse(api.describe(predictor, checkpoint))

    async def predict(request: Request) -> Response:
        too_large = api.request_too_large(predictor)
        body = await _read_body(request, api.max_body_bytes(predictor), too_large)
        movie = await in_thread(api.read_movie, predictor, body)
        return JSONResponse(await in_thread(api.predict_movie, predictor, movie))

    async def heat(request: Request) -> Response:
        branch, genre = (request.query_params.get(name, "") for name in ("branch", "genre"))
        image = await _read_body(request, api.MAX_POSTER_BYTES, api.poster_too_large())
        picture = await in_thread(api.heat_picture, predictor, branch, genre, image)
        return Response(picture, media_type="image/png")

    def handle_api_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, api.ApiError)
        answer = _error(error.status, error.code, error.message)
        return _discarding_the_body(answer) if error.status == 413 else answer

    def handle_http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        # The headers include the allowed methods.
        return _error(error.status_code, "http", f"{error.detail}.", error.headers)

    def handle_disconnect(request: Request, error: Exception) -> Response:
        return Response(status_code=400)  # the client is gone: nobody reads this

    def handle_failure(request: Request, error: Exception) -> Response:
        return _error(500, "failed", "The model failed on this movie; the terminal says more.")

    app = Starlette(
        routes=[
            *(Route(path, page_file(*file)) for path, file in _FILES.items()),
            Route("/api/model", model),
            Route("/api/predict", predict, methods=["POST"]),
            Route("/api/heat", heat, methods=["POST"]),
        ],
        exception_handlers={
            api.ApiError: handle_api_error,
            HTTPException: handle_http_error,
            ClientDisconnect: handle_disconnect,
            Exception: handle_failure,
        },
    )
    return _Guard(app, hosts)  # outermost, so that failures also get its headers


class _Guard:
    """Rejects requests from other web pages, and adds the security headers to every response.

    A foreign page can point its own domain name at this machine and then read the responses (DNS
    rebinding). Only hosts that are an IP address or one of our names are therefore accepted. A
    foreign page can also send requests without reading the responses: their Origin header gives
    them away.
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
        if not self._is_own_host(host):
            message = (
                "This page can only be opened by its IP address or by localhost, not by this name."
            )
            app = _error(400, "wrong_host", message)
        elif origin is not None and origin.partition("://")[2].lower() != host.lower():
            app = _error(403, "wrong_origin", "Only this page itself may send requests.")
        await app(scope, receive, send_with_headers)

    def _is_own_host(self, host: str) -> bool:
        match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]]+)(:\d+)?", host)
        if match is None:
            return False
        name = match[1].lower().rstrip(".")
        if name in self.names:
            return True
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return False
        return True


def _error(
    status: int, code: str, message: str, headers: Mapping[str, str] | None = None
) -> Response:
    from starlette.responses import JSONResponse

    return JSONResponse({"error": {"code": code, "message": message}}, status, headers)


def _discarding_the_body(answer: ASGIApp) -> Any:
    """The answer, complete at once, and what the client still sends is discarded for some seconds.

    A client that sends all before it reads, as urllib does, would lose an answer after which the
    connection is closed.
    """

    async def respond(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_before_discarding(message: Message) -> None:
            if message["type"] == "http.response.body":
                await send({**message, "more_body": True})
                with suppress(TimeoutError):
                    async with asyncio.timeout(_DISCARD_SECONDS):
                        while (await receive()).get("more_body"):
                            pass
                message = {"type": "http.response.body"}
            await send(message)

        await answer(scope, receive, send_before_discarding)

    return respond


async def _read_body(request: Request, max_bytes: int, too_large: api.ApiError) -> bytes:
    """Read the body; raises ``too_large`` as soon as it exceeds ``max_bytes`` bytes."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > max_bytes:
        raise too_large
    received = bytearray()
    async for chunk in request.stream():
        received += chunk
        if len(received) > max_bytes:
            raise too_large
    return bytes(received)
