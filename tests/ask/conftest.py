"""Fixtures: a scripted server on loopback, and a llama.cpp server."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from genre_lightning.ask import server as asked_server
from tests.ask.loopback import Loopback, serving


@pytest.fixture
def loopback() -> Iterator[Loopback]:
    with serving(Loopback()) as server:
        yield server


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make retries wait only milliseconds."""
    monkeypatch.setattr(asked_server, "FIRST_BACKOFF", 0.01)


@pytest.fixture(scope="session")
def start_llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., str]]:
    """Starts llama.cpp's server with a tiny model; `start_llama("--blind")` for one without images.

    Gives its address, up to /v1.
    """
    processes: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> str:
        script = Path(__file__).with_name("tiny_llama.py")
        folder = tmp_path_factory.mktemp("llama")
        process = subprocess.Popen(
            [sys.executable, str(script), str(folder), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(folder / "log").open("w"),
            text=True,
        )
        processes.append(process)
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:"), (folder / "log").read_text()
        return f"{address}/v1"

    yield start
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(30)


@pytest.fixture(scope="session")
def llama(start_llama: Callable[..., str]) -> str:
    """Address of llama.cpp's server with a tiny multimodal model."""
    return start_llama()
