"""Commands that are killed or lose their terminal leave no process behind."""

from __future__ import annotations

import contextlib
import getpass
import importlib.util
import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest

from genre_lightning.checkpoint.card import read_checkpoint
from genre_lightning.runs.lock import is_running
from tests import forking
from tests.leftovers import CommandProcesses, unfinished_files, wait_until

pytestmark = pytest.mark.slow

Start = Callable[..., "Command"]
REPOSITORY = Path(__file__).resolve().parents[2]
#: Epochs of a long run to resume by ckpt_path=FOLDER, which refuses overrides that name code.
LONG = 30
#: Epochs of any other long run, and the callback that slows them down.
SLOW = (16, "++callbacks.slow._target_=tests.running.SlowEpochs")
LAUNCHERS = {
    # One worker more than jobs, which waits for a job.
    "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=3"],
    "submitit": ["hydra/launcher=submitit_local"],
    "ray": ["hydra/launcher=ray", "hydra.launcher.job.num_cpus=0.5"],
}


class Command:
    """A command as a user runs it, in ``folder``, with its own folder for temporary files.

    Attributes:
        started: finds the command's processes.
        terminal: reads the command's terminal, if it has one.
        process: the command's own process, forked like the Python processes that it starts, or a
            new interpreter.
    """

    def __init__(self, arguments: list[str], folder: Path, terminal: bool, forked: bool) -> None:
        self.folder = folder
        # Not below tmp_path: Ray's sockets lie in it, and their paths have at most 107 bytes.
        self.temporary = Path(mkdtemp())
        env = {**os.environ, "TMPDIR": str(self.temporary), "RAY_AUTH_MODE": "disabled"}
        # For the callback that slows down epochs.
        env["PYTHONPATH"] = str(REPOSITORY)
        env.pop("HYDRA_FULL_ERROR", None)
        self.started = CommandProcesses(folder)
        self.log = folder / "printed"
        self.terminal: Terminal | None = None
        self.process: Any
        path = None
        if terminal:
            screen, output = pty.openpty()
            path = os.ttyname(output)
            self.terminal = Terminal(screen, output)
        if forked:
            self.process = forking.Command(
                arguments, folder, env, start_new_session=True, terminal=path
            )
        else:
            with self.log.open("a") as log:
                self.process = subprocess.Popen(
                    [sys.executable, *arguments], cwd=folder, env=env, stdout=log, stderr=log,
                    start_new_session=True,
                    preexec_fn=None if path is None else lambda: forking.take_terminal(path),
                )  # fmt: skip

    def printed(self) -> str:
        if isinstance(self.process, forking.Command):
            return self.process.stdout + self.process.stderr
        return self.log.read_text()

    def wait_until(self, condition: Callable[[], object]) -> None:
        wait_until(
            lambda: condition() or self.process.poll() is not None, 240, lambda: self.printed()
        )
        assert self.process.poll() is None, self.printed()
        self.started.alive()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class Terminal:
    """Reads a terminal's output, so that its buffer does not fill up."""

    def __init__(self, screen: int, output: int) -> None:
        self.screen = screen
        #: The other end, kept open since the terminal would vanish before the command opens it.
        self.output = output
        self.closing = threading.Event()
        self.thread = threading.Thread(target=self._read)
        self.thread.start()

    def _read(self) -> None:
        while not self.closing.is_set():
            if select.select([self.screen], [], [], 0.05)[0]:
                try:
                    os.read(self.screen, 2**16)
                except OSError:  # the other end is closed
                    return

    def close(self) -> None:
        if not self.closing.is_set():
            self.closing.set()
            self.thread.join()
            os.close(self.screen)
            os.close(self.output)


@pytest.fixture
def start(
    repository: Path, tiny_overrides: Callable[..., list[str]], tmp_path: Path
) -> Iterator[Start]:
    commands: list[Command] = []

    def run(
        *overrides: str, terminal: bool = False, forked: bool = False, epochs: int | None = None
    ) -> Command:
        num_epochs, *slow = SLOW if epochs is None else (epochs,)
        long = tiny_overrides(f"trainer.max_epochs={num_epochs}", *slow, model="title")
        line = [str(repository / "train.py"), *overrides, *long, "callbacks.early_stopping=null"]
        commands.append(Command(line, tmp_path, terminal, forked))
        return commands[-1]

    yield run
    for command in commands:
        for number in command.started.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        command.process.wait()
        if command.terminal is not None:
            command.terminal.close()
        shutil.rmtree(command.temporary)


def jobs(sweep: Path) -> dict[str, Path]:
    """The folders of a sweep's jobs, by their seed."""
    found = {}
    for path in sweep.glob("*/result.json"):
        result = json.loads(path.read_text())
        found[str(result["seed"])] = path.parent
    return found


def status(folder: Path) -> str:
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return str(result["status"])


def assert_nothing_is_left(command: Command, *runs: Path) -> None:
    command.started.wait_until_ended(60)
    assert command.started.shared_memory() == []
    # All runs of a user share PyTorch's cache of compiled code; Ray keeps its logs.
    left = set(os.listdir(command.temporary)) - {f"torchinductor_{getpass.getuser()}", "ray"}
    assert left == set()
    # The threads of a process may outlive it for a moment, with its lock files still open.
    wait_until(lambda: not any(map(is_running, runs)), 20, lambda: f"locked: {runs}")


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_jobs_end_with_the_command(launcher: str, start: Start, tmp_path: Path) -> None:
    if importlib.util.find_spec(launcher) is None:
        pytest.skip(f"{launcher} is not installed")
    sweep = tmp_path / "runs" / "sweeps" / "s"
    line = ("-m", "sweep.name=s", "seed=1,2", *LAUNCHERS[launcher])

    def are_training() -> bool:
        folders = jobs(sweep).values()
        return len(folders) == 2 and all(
            (f / "checkpoints" / "last.ckpt").exists() for f in folders
        )

    forked = launcher != "ray"  # Ray's own program starts its workers
    command = start(*line, forked=forked)
    command.wait_until(are_training)
    command.kill()
    assert len(command.started.seen) > 3 and set(map(status, jobs(sweep).values())) == {
        "interrupted"
    }
    assert_nothing_is_left(command, *jobs(sweep).values())

    # The same command resumes the jobs.
    command = start(*line, forked=forked)
    assert command.process.wait(400) == 0, command.printed()
    assert set(map(status, jobs(sweep).values())) == {"completed"}
    assert command.printed().count("(resumed after") == 2
    assert_nothing_is_left(command)
    assert unfinished_files(tmp_path) == []


def test_workers_that_have_no_job_yet_end(start: Start, tmp_path: Path) -> None:
    command = start("-m", "sweep.name=s", "seed=1,2", *LAUNCHERS["joblib"])
    command.wait_until(
        lambda: sum("popen_loky_posix" in line for line in command.started.alive().values()) == 3
    )
    command.kill()
    assert_nothing_is_left(command)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP], ids=["Ctrl-C", "closed"])
def test_a_terminal_stops_a_sweep_whose_workers_are_starting(
    number: signal.Signals, start: Start, tmp_path: Path
) -> None:
    command = start("-m", "sweep.name=s", "seed=1,2", *LAUNCHERS["joblib"])
    command.wait_until(
        lambda: any("popen_loky_posix" in line for line in command.started.alive().values())
    )
    os.killpg(command.process.pid, number)
    assert command.process.wait(120) == 128 + number, command.printed()
    assert "Traceback" not in command.printed() and "2 not started" in command.printed()
    assert_nothing_is_left(command)


def test_processes_of_a_run_end_with_it(start: Start, tmp_path: Path) -> None:
    run = tmp_path / "run"
    two = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "data.batch_size=8")
    last = run / "checkpoints" / "last.ckpt"
    command = start(f"hydra.run.dir={run}", *two, forked=True, epochs=LONG)
    command.wait_until(last.exists)
    command.kill()
    assert len(command.started.seen) >= 4  # with torchrun and its two processes
    assert_nothing_is_left(command, run)
    more = read_checkpoint(last)["epoch"] + 3
    command = start(f"ckpt_path={run}", *two, forked=True, epochs=more)
    assert command.process.wait(400) == 0, command.printed()
    assert status(run) == "completed"
    assert_nothing_is_left(command, run)
    assert unfinished_files(run) == []


def hang_up(command: Command) -> None:
    """Close the terminal: the kernel sends SIGHUP to the command, a shell to its whole group."""
    assert command.terminal is not None
    command.terminal.close()
    for _ in range(2):
        os.killpg(command.process.pid, signal.SIGHUP)


@pytest.mark.parametrize("kind", ["run", "sweep", "joblib"])
def test_closing_the_terminal_interrupts_the_command(
    kind: str, start: Start, tmp_path: Path
) -> None:
    sweep = tmp_path / "runs" / "sweeps" / "s"
    single = tmp_path / "run"
    line = ["-m", "sweep.name=s", "seed=1,2"]
    if kind == "joblib":
        line += LAUNCHERS["joblib"]
    elif kind == "run":
        line = ["seed=1", f"hydra.run.dir={single}"]
    count = 2 if kind == "joblib" else 1

    def runs() -> list[Path]:
        folders = [single] if kind == "run" else jobs(sweep).values()
        return [folder for folder in folders if (folder / "checkpoints" / "last.ckpt").exists()]

    # The single run starts in a new interpreter, since Python sets itself up for a terminal.
    every = "checkpoint_every_n_steps=1000"
    epochs = LONG if kind == "run" else None
    command = start(*line, every, terminal=True, forked=kind != "run", epochs=epochs)
    command.wait_until(lambda: len(runs()) == count)
    hang_up(command)
    assert command.process.wait(120) == 128 + signal.SIGHUP
    for folder in runs():
        assert status(folder) == "interrupted"
        read_checkpoint(folder / "checkpoints" / "last.ckpt")
    assert_nothing_is_left(command, *runs())
    if kind == "run":
        line.append(f"ckpt_path={single}")
        epochs = read_checkpoint(single / "checkpoints" / "last.ckpt")["epoch"] + 3
    else:
        journal = (sweep / "jobs.jsonl").read_text()
        assert '"failed"' not in journal and journal.count('"interrupted"') == count
        assert (sweep / "leaderboard.csv").exists()
    command = start(*line, every, forked=True, epochs=epochs)
    assert command.process.wait(400) == 0, command.printed()
    assert set(map(status, runs())) == {"completed"}


def test_ctrl_c_in_a_terminal_lets_the_jobs_save(start: Start, tmp_path: Path) -> None:
    # The terminal signals the workers, too; the command then signals the jobs once more.
    sweep = tmp_path / "runs" / "sweeps" / "s"
    command = start("-m", "sweep.name=s", "seed=1,2,3,4", *LAUNCHERS["joblib"], forked=True)
    command.wait_until(lambda: len(jobs(sweep)) >= 3)
    command.wait_until(
        lambda: all((f / "checkpoints" / "last.ckpt").exists() for f in jobs(sweep).values())
    )
    os.killpg(command.process.pid, signal.SIGINT)
    assert command.process.wait(120) == 128 + signal.SIGINT, command.printed()
    assert "Traceback" not in command.printed() and "not started" in command.printed()
    assert "interrupted" in set(map(status, jobs(sweep).values())) <= {"interrupted", "completed"}
    assert_nothing_is_left(command, *jobs(sweep).values())
