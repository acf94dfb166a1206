"""The command that serves the page."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from genre_lightning.inputs.vectors import VectorsInput
from genre_lightning.webapp import server as demo
from tests.webapp.serving import Served, movie


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
        # Without a screen, the command opens no browser, not even one in the terminal.
        env={k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY")},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        assert process.stdout is not None
        found = re.search(r"tiny\.ckpt .* http://127\.0\.0\.1:(\d+)/", process.stdout.readline())
        assert found is not None
        served = Served(int(found[1]), process.terminate)
        assert served.ask("POST", "/api/predict", movie(title="Heat")).status == 200
        second = subprocess.run(
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
    assert second.returncode == 1
    assert f"error: port {found[1]} is in use" in second.stderr and "--port" in second.stderr


def test_a_missing_extra_is_reported_with_the_command_to_install_it(
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


def test_a_model_of_vectors_alone_is_refused(
    make_checkpoint: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    np.savez(tmp_path / "own.npz", ids=["1", "2"], x=np.ones((2, 3)))
    vectors = VectorsInput(str(tmp_path / "own.npz"))
    vectors.width = 3
    branch = {"own": (vectors, {"name": "embedding_head"})}
    checkpoint = make_checkpoint(title=None, poster=None, more=branch)
    assert demo.main([str(checkpoint), "--port", "0"]) == 1
    error = capsys.readouterr().err
    assert f"error: {checkpoint}: the model looks at vectors by movie id alone" in error


@pytest.mark.parametrize("port", ["65536", "-1", "http", "٣"])
def test_a_bad_port_is_refused(port: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="2"):
        demo.main(["best.ckpt", f"--port={port}"])
    assert "from 0 to 65535" in capsys.readouterr().err


def test_the_address_of_another_machine_is_refused(capsys: pytest.CaptureFixture[str]):
    assert demo.main(["best.ckpt", "--host", "192.0.2.1"]) == 1
    assert "can't listen on 192.0.2.1" in capsys.readouterr().err


def test_a_port_in_use_is_refused_before_the_model_is_loaded():
    with demo.open_port("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(demo.DemoError, match=f"port {port} is in use"):
            demo.open_port("127.0.0.1", port)


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
def test_the_page_url_of_an_address(address: str, url: str):
    assert demo.page_url(address, 80) == url
