"""Fixtures: a scripted server on loopback, and llama.cpp's server with a tiny model."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from genre_lightning.ask import server as server_module
from tests.ask.loopback import Loopback, serving


@pytest.fixture
def loopback() -> Iterator[Loopback]:
    with serving(Loopback()) as server:
        yield server


@pytest.fixture
def short_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes retries wait only milliseconds."""
    monkeypatch.setattr(server_module, "FIRST_BACKOFF", 0.01)


@pytest.fixture(scope="session")
def start_llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., str]]:
    """`start_llama()` starts llama.cpp's server with a tiny model, and gives its URL up to /v1.

    `start_llama("--text-only")` starts it with a model that takes no images.
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
    """URL of llama.cpp's server with a tiny multimodal model."""
    return start_llama()
