"""Runs code blocks of the documentation as a reader does: in bash, in a folder like a clone.

``python`` and the commands of the package are forked from a process that has imported PyTorch;
see ``tests/forking.py``. Trainings are made small; see :func:`shrink_training`.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.forking import REPOSITORY, run_as_python, start_process

#: Overrides appended to each training, to finish in a second; the last value of a key counts.
SMALL = (
    "trainer.max_epochs=1",
    "trainer.accelerator=cpu",
    "data.workers=1",
    "callbacks.progress_bar=null",
    "++trainer.enable_progress_bar=false",
)
SMALL_DEMO = ("++data.num_movies=60", "++data.poster_height=48")
#: For the default model.
SMALL_FUSION = (
    "model.branches.title_tfidf.input.vocabulary_size=256",
    "model.branches.title_tfidf.network.hidden=8",
    "model.branches.poster_resnet.network.widths=[4,8]",
    "model.branches.poster_resnet.network.blocks=[1,1]",
)
#: Slow imports of the commands with such an argument; the server does them once, before it forks.
SLOW_IMPORTS = {
    "export": (
        *("onnxruntime", "onnxscript.optimizer", "torch.onnx.ops", "torch.export._trace"),
        *("torch.onnx._internal.exporter._core", "onnxscript.function_libs.torch_lib.ops"),
        "sympy.tensor.tensor",
    ),
    "sweep=optuna": (
        *("genre_lightning.sweeps.study", "alembic.command", "alembic.migration"),
        *("alembic.config", "sqlalchemy.dialects.sqlite"),
    ),
}
#: Sends its arguments, folder, environment and standard streams; exits with the command's status.
CLIENT = """\
#!/bin/sh
''':'
# A shebang line takes no path with a space.
exec '{python}' -IS "$0" "$@"
'''
import json, os, socket, sys
connection = socket.socket(socket.AF_UNIX)
connection.connect({address!r})
request = [os.path.basename(sys.argv[0]), sys.argv[1:], os.getcwd(), dict(os.environ)]
data = json.dumps(request).encode()
socket.send_fds(connection, [len(data).to_bytes(8, "big")], [0, 1, 2])
connection.sendall(data)
sys.exit(int(connection.recv(1)[0]))
"""


def shrink_training(arguments: list[str]) -> list[str]:
    """Append the overrides that make a training small to the arguments of ``python``."""
    if arguments[:1] != ["train.py"] or {"--help", "--cfg"} & set(arguments):
        return arguments
    overrides = dict(argument.partition("=")[::2] for argument in arguments[1:])
    added = list(SMALL)
    if overrides.get("data", "demo") == "demo":
        added += SMALL_DEMO
    if not {"model", "model/branch"} & set(overrides):
        added += SMALL_FUSION
    if "ckpt_path" in overrides:
        added.append("trainer.max_epochs=3")
    if overrides.get("sweep") == "optuna":
        added.append("sweep.n_trials=2")
    return [*arguments, *added]


class Shell:
    """Runs blocks of shell commands."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="shell-")
        self._bin = Path(self._folder.name, "bin")
        self._bin.mkdir()
        address = self._address = str(Path(self._folder.name, "socket"))
        project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
        for name in ("python", *project["scripts"]):
            path = self._bin / name
            path.write_text(CLIENT.format(python=sys.executable, address=address), "utf-8")
            path.chmod(0o755)
        self._server = start_process(_serve, address, project["scripts"])
        while not os.path.exists(address):
            self._server.join(0.01)
            assert self._server.is_alive()

    def run(self, block: str, folder: Path) -> subprocess.CompletedProcess[str]:
        """Run a block, which stops at the first command that fails."""
        env = {**os.environ, "PATH": f"{self._bin}{os.pathsep}{os.environ['PATH']}"}
        env.pop("HYDRA_FULL_ERROR", None)
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block],
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
        )

    def write_kernel(self, folder: Path) -> Path:
        """Write a kernel that is forked, as are its commands: the folder for ``JUPYTER_PATH``.

        Its ``sys.executable`` is the client, since notebooks look for commands beside it.
        """
        kernel = folder / "kernels" / "python3"
        kernel.mkdir(parents=True)
        python = str(self._bin / "python")
        code = f"import sys; sys.executable = {python!r}\n"
        code += "from ipykernel.kernelapp import launch_new_instance\nlaunch_new_instance()"
        argv = [python, "-c", code, "-f", "{connection_file}"]
        spec = {"argv": argv, "display_name": "Python 3", "language": "python"}
        (kernel / "kernel.json").write_text(json.dumps(spec), "utf-8")
        return folder

    def close(self) -> None:
        """End all processes. The server waits for its children, so their CPU time is counted."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(self._address)
        self._server.join(60)
        self._server.kill()
        self._server.join()
        self._folder.cleanup()


def make_clone(folder: Path) -> None:
    """Copy the parts of a clone that the blocks use."""
    folder.mkdir(parents=True)
    for name in ("train.py", "evaluate.py"):
        shutil.copy(REPOSITORY / name, folder)
    shutil.copytree(REPOSITORY / "conf", folder / "conf")


def _serve(address: str, scripts: Mapping[str, str]) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        while True:
            connection, _ = server.accept()
            header, files, _, _ = socket.recv_fds(connection, 8, 3)
            if not header:
                break
            with connection.makefile("rb") as stream:
                request = json.loads(stream.read(int.from_bytes(header, "big")))
            for argument in request[1]:
                for name in SLOW_IMPORTS.get(argument, ()):
                    importlib.import_module(name)
                    gc.freeze()  # as tests.preloaded does
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            if os.fork() == 0:
                server.close()
                os._exit(_answer(connection, files, request, scripts))
            connection.close()
            for file in files:
                os.close(file)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()


def _answer(
    connection: socket.socket, files: list[int], request: list[Any], scripts: Mapping[str, str]
) -> int:
    """Run a command in this process and send its status to the client."""
    program, arguments, cwd, env = request
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - open until the end
    if program == "python":
        arguments = shrink_training(arguments)
    else:
        module, _, function = scripts[program].partition(":")
        code = f"import sys; sys.argv[0] = {program!r}\n"
        code += f"from {module} import {function}\nsys.exit({function}())"
        arguments = ["-c", code, *arguments]
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    status = run_as_python(arguments, cwd, env)
    with contextlib.suppress(BrokenPipeError):  # a kernel's client may have been killed
        connection.sendall(bytes([status]))
    return 0
