"""The command ``genre-demo``: a local web page to try a trained model."""

from __future__ import annotations

import argparse
import contextlib
import errno
import importlib
import ipaddress
import os
import socket
import sys
import threading
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from genre_lightning.errors import UserError
from genre_lightning.predicting.arguments import add_checkpoint, add_encoder
from genre_lightning.runs.ckpt_path import best_checkpoint

if TYPE_CHECKING:
    from starlette.types import ASGIApp
    from uvicorn import Server

    from genre_lightning.predicting.predictor import GenrePredictor

#: How many seconds running requests may take after the command is asked to end.
_SHUTDOWN_SECONDS = 3


class DemoError(UserError):
    """A reason why the command can't serve the page."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command until Ctrl-C.

    Returns:
        0 after Ctrl-C, or 130 if pressed before the page is served; 1 for an error that the user
        can fix, with a message on standard error. Exits with 2 if the arguments are invalid.
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
        description="Open a page on this machine to try a trained model: titles, posters, "
        "genres, and the reasons for them. It sends nothing to other machines and stores nothing. "
        "Ctrl-C ends it.",
        allow_abbrev=False,
    )
    add_checkpoint(parser)
    parser.add_argument(
        "--port", type=_port, default=7860, help="port (default: 7860); 0 takes any free port"
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default: 127.0.0.1). With any other address, other machines "
        "can use the page without a password",
    )
    parser.add_argument(
        "--device",
        default="cpu",
        help="cpu (default), cuda, or auto, which takes a GPU if there is one",
    )
    add_encoder(parser)
    parser.add_argument(
        "--no-browser",
        dest="browser",
        action="store_false",
        help="print the address and don't open a browser",
    )
    return parser


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 65535")
    return int(text)


def _serve(options: argparse.Namespace) -> int:
    _check_extra()
    # Opened before the model is loaded, so that a port in use is reported at once.
    listener = open_port(options.host, options.port)
    with listener:
        from genre_lightning.predicting.predictor import GenrePredictor
        from genre_lightning.webapp.app import build_app

        checkpoint = best_checkpoint(options.checkpoint)
        predictor = GenrePredictor.from_checkpoint(
            checkpoint, options.device, encoders=options.encoder
        )
        _check_columns(checkpoint, predictor)
        app = build_app(predictor, checkpoint.name, [options.host, socket.gethostname()])
        address, port = listener.getsockname()[:2]
        url = page_url(address, port)
        if not ipaddress.ip_address(address).is_loopback:
            print(
                f"warning: {options.host} can be reached by other machines, without a password",
                file=sys.stderr,
            )
        print(f"{checkpoint.name} can be tried at {url} (Ctrl-C ends)", flush=True)
        if options.browser and _has_screen():
            # In its own thread, as some browsers block until they are closed.
            threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
        with contextlib.suppress(KeyboardInterrupt):  # raised after a clean shutdown
            build_server(app).run(sockets=[listener])
    return 0


def _check_columns(checkpoint: Path, predictor: GenrePredictor) -> None:
    if not predictor.model.given_columns:
        raise DemoError(
            f"{checkpoint}: the model looks at vectors by movie id alone, which a page can't ask "
            "for; in Python, GenrePredictor.predict(id=[...]) takes them"
        )


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
    """Open a socket that listens on an address.

    From then on no other program can use the port, and early connections wait.

    Raises:
        DemoError: the address does not exist here, or the port is in use.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError) as error:
        raise DemoError(f"--host {host}: there is no such address ({error})") from error
    listener = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":  # on Windows, two programs could then share the port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()  # two sockets can bind one address, but only one can listen
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
    """The page's URL for a browser on this machine, for a server that listens on an IP address."""
    ip = ipaddress.ip_address(address)
    if ip.is_unspecified:
        ip = ipaddress.ip_address("127.0.0.1" if ip.version == 4 else "::1")
    return f"http://{ip if ip.version == 4 else f'[{ip}]'}:{port}/"


def _has_screen() -> bool:
    """Whether a browser would open a window instead of taking over the terminal."""
    if sys.platform in ("win32", "darwin"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def build_server(app: ASGIApp) -> Server:
    """The page's server, whose ``run`` takes sockets. It logs only warnings and errors."""
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
            timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
        )
    )


if __name__ == "__main__":
    sys.exit(main())
