"""Sweeps: which jobs run, terminal output and exit codes."""

from __future__ import annotations

import gc
import importlib.util
import json
import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.plugins import Plugins
from hydra.types import HydraContext
from omegaconf import OmegaConf

from genre_lightning.runs.result import write_result
from genre_lightning.sweeps.journal import Journal
from tests.forking import Command
from tests.tracking.test_wandb import only_record

Overrides = Callable[..., list[str]]


Sweep = Callable[..., tuple[int, str]]


@pytest.fixture
def tiny(tiny_overrides: Overrides) -> list[str]:
    """Overrides of a model that trains in an instant."""
    return tiny_overrides(model="title")


@pytest.fixture
def sweep_here(
    repository: Path,
    tiny: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> Iterator[Sweep]:
    """Runs train.py in this process, in `tmp_path`: `sweep_here("seed=0,1")`.

    Returns the exit code and the output. The sweep is named "s", the model is tiny.
    """
    import train

    conf = str(repository / "conf")
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def run(*overrides: str, name: str | None = "s") -> tuple[int, str]:
        sweep_name = [] if name is None else [f"sweep.name={name}"]
        monkeypatch.setattr(
            sys, "argv", ["train.py", "--config-path", conf, *overrides, *sweep_name, *tiny]
        )
        monkeypatch.chdir(tmp_path)
        capsys.readouterr()
        code: Any = 0
        try:
            train.main()
        except SystemExit as end:
            code = end.code
        printed = capsys.readouterr()
        if isinstance(code, str):
            return 1, code
        return code, printed.out + printed.err

    # Each job ends with a garbage collection, which can skip what earlier tests imported.
    gc.freeze()
    yield run
    root.handlers[:] = handlers
    root.setLevel(level)


def jobs(sweep: Path) -> dict[str, Path]:
    """The folders of a sweep's jobs that have started, by their learning rate."""
    found = {}
    for path in sweep.iterdir():
        # Not from the folder's name, which is shortened if it is long.
        overrides = path / ".hydra" / "overrides.yaml"
        if overrides.is_file():
            _, _, rest = overrides.read_text("utf-8").partition("optimizer.lr=")
            found[rest.partition("\n")[0]] = path
    return found


def recorded(folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((folder / "result.json").read_text("utf-8"))
    return result


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file of a folder, with the time it was last written."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


# In this process.


@pytest.mark.slow
def test_a_failed_job_is_reported_and_the_others_run(sweep_here: Sweep, tmp_path: Path) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    code, output = sweep_here("-m", "optimizer.lr=1e30,1e-2", "model.dropout=0.1,abc")
    assert code == 1
    sweep = tmp_path / "runs" / "sweeps" / "s"
    states = {}
    for path in (path for path in sweep.iterdir() if path.is_dir()):
        result = recorded(path)
        dropout, lr = (
            o.partition("=")[2] for o in sorted(result["overrides"]) if "dropout" in o or ".lr" in o
        )
        assert f"model.dropout={dropout}" in path.name and f"optimizer.lr={lr}" in path.name
        states[dropout, lr] = result["status"], result.get("error", "")
    assert states.pop(("0.1", "0.01")) == ("completed", "")
    assert len(states) == 3 and {status for status, _ in states.values()} == {"failed"}
    assert "not finite" in states["0.1", "1e+30"][1] and "abc" not in states["0.1", "1e+30"][1]
    assert "model.dropout=abc must be a number" in states["abc", "0.01"][1]

    lines = output.splitlines()
    job_lines = [text for text in lines if text.startswith("[")]
    assert [text.split()[0] for text in job_lines] == ["[1/4]", "[2/4]", "[3/4]", "[4/4]"]
    assert "model.dropout=0.1,optimizer.lr=0.01  val/map_macro 0." in job_lines[2]
    failures = [text for text in lines if text.startswith("failed: ")]
    assert len(failures) == 3 and "not finite" in output
    assert "1 completed" in output and "3 failed" in output
    # Tables, warnings and tracebacks are only in the job's log; signal handlers are restored.
    assert "Dataset" not in output and "Traceback" not in output and "HYDRA" not in output
    log = (jobs(sweep)["0.01"] / "train.log").read_text("utf-8")
    assert "Dataset: demo" in log or "Traceback" in log
    for name in ("leaderboard.csv", "leaderboard.md", "leaderboard.html"):
        assert (sweep / name).stat().st_size > 0
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


@pytest.mark.slow
def test_finished_jobs_are_not_run_again(
    sweep_here: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without sweep.name, the same command finds its sweep, also with other values.
    assert sweep_here("-m", "optimizer.lr=1e-2,1e-3", name=None)[0] == 0
    (sweep,) = (tmp_path / "runs" / "sweeps").iterdir()
    assert set(jobs(sweep)) == {"0.01", "0.001"}
    assert {path.name for path in jobs(sweep).values()} == {
        "optimizer.lr=0.01",
        "optimizer.lr=0.001",
    }
    before = {lr: contents(folder) for lr, folder in jobs(sweep).items()}
    code, output = sweep_here("-m", "optimizer.lr=2e-2,1e-3,1e-2", "logger=none", name=None)
    assert code == 0 and output.count("already finished  val/map_macro") == 2
    assert [path.name for path in (tmp_path / "runs" / "sweeps").iterdir()] == [sweep.name]
    after = {lr: contents(folder) for lr, folder in jobs(sweep).items()}
    assert recorded(jobs(sweep)["0.02"])["status"] == "completed"
    assert {lr: after[lr] for lr in before} == before
    # No trained module stays in memory.
    gc.collect()
    assert not [o for o in gc.get_objects() if type(o).__name__ == "GenreModule"]


@pytest.mark.slow
def test_finished_jobs_of_a_changed_file_are_refused(sweep_here: Sweep, tmp_path: Path) -> None:
    file = tmp_path / "mine" / "experiment" / "mine.yaml"
    file.parent.mkdir(parents=True)
    command = ("-m", "--config-dir", str(tmp_path / "mine"), "experiment=mine")

    def write(loss: float) -> None:
        file.write_text(f"# @package _global_\ntraining:\n  branch_loss: {loss}\n")

    write(0.25)
    assert sweep_here(*command, "optimizer.lr=1e-2")[0] == 0
    (folder,) = jobs(tmp_path / "runs" / "sweeps" / "s").values()
    before = contents(folder)
    write(0.75)
    code, output = sweep_here(*command, "optimizer.lr=1e-2,1e-3")
    assert code == 1 and "1 failed, 1 completed" in output and contents(folder) == before
    assert "settings than the command now has: training.branch_loss (0.25 there, 0.75" in output
    write(0.25)
    code, output = sweep_here(*command, "optimizer.lr=1e-2", "checkpoint_min_seconds=3")
    assert code == 0 and "1 already finished" in output


@pytest.mark.slow
def test_a_setting_can_refer_to_a_swept_one(
    sweep_here: Sweep, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    # The folder of a job, to which the last override refers, is made from its overrides.
    own = ("+half=0.1,0.2", "model.dropout=${half}", "training.branch_loss=${.micro_weight}")
    logger = ("_target_=pytorch_lightning.loggers.CSVLogger", "save_dir=${hydra:sweep.subdir}")
    command = ("-m", *own, *(f"+logger.mine.{text}" for text in logger))
    code, output = sweep_here(*command)
    sweep = tmp_path / "runs" / "sweeps" / "s"
    assert code == 0 and {path.name for path in sweep.glob("half*")} == {"half=0.1", "half=0.2"}
    config = OmegaConf.load(sweep / "half=0.2" / ".hydra" / "config.yaml")
    assert config.model.dropout == 0.2 and config.training.branch_loss == 0.6
    assert not [str(w.message) for w in recwarn if "Callback" in str(w.message)]
    # Named by what was given, so found again.
    code, output = sweep_here(*command)
    assert code == 0 and "2 already finished" in output and "(" not in output.split("finished")[1]


@pytest.mark.slow
def test_the_ready_made_sweep(sweep_here: Sweep, repository: Path) -> None:
    dropouts = "model.dropout=range(0.1,0.4,0.1)"
    code, output = sweep_here("sweep=lr_dropout", "optimizer.lr=1e-2", dropouts)
    assert code == 0 and "[3/3] model.dropout=0.3  val" in output
    with initialize_config_dir(str(repository / "conf"), version_base="1.3"):
        sweeper = compose("train", ["sweep=lr_dropout"], return_hydra_config=True).hydra.sweeper
    assert [len(values.split(",")) for values in sweeper.params.values()] == [3, 3]


@pytest.mark.slow
def test_every_job_is_a_run_of_its_own_in_wandb(sweep_here: Sweep, tmp_path: Path) -> None:
    code, _ = sweep_here(
        "-m", "optimizer.lr=1e-2,1e-3", "logger=wandb", "logger.wandb.offline=true"
    )
    assert code == 0
    ids = set()
    for lr, folder in jobs(tmp_path / "runs" / "sweeps" / "s").items():
        record = only_record(folder)
        assert record.config["optimizer.lr"] == float(lr)
        assert record.config["sweep.name"] == record.run["run_group"] == "s"
        assert record.run["display_name"] == f"optimizer.lr={lr}"
        assert record.summary["test/map_macro"] == recorded(folder)["test"]["map_macro"]
        ids.add(record.run["run_id"])
        assert record.run["run_id"] == recorded(folder)["wandb_run_id"]
    assert len(ids) == 2


@pytest.mark.slow
def test_fail_fast_starts_no_job_after_a_failure(sweep_here: Sweep, tmp_path: Path) -> None:
    command = ("-m", "optimizer.lr=1e30,1e-2,1e-3", "sweep.fail_fast=true")
    code, output = sweep_here(*command)
    assert code == 1 and "1 failed, 2 not started" in output
    assert not any((folder / "result.json").exists() for lr, folder in
                   jobs(tmp_path / "runs/sweeps/s").items() if lr != "1e+30")  # fmt: skip
    # A job that failed in an earlier command runs again; its old failure stops no other job.
    code, output = sweep_here("-m", "optimizer.lr=1e-2,1e30", "sweep.fail_fast=true")
    assert code == 1 and "1 completed, 1 failed" in output
    assert recorded(jobs(tmp_path / "runs/sweeps/s")["1e+30"])["attempts"] == 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["checkpoint_every_n_steps=1,2"], "checkpoint_every_n_steps changes no result"),
        (["logger=none,csv"], "logger changes no result"),
        (["seed=range(2,2)", "optimizer.lr=1,2"], "seed=range(2,2) has no values"),
    ],
    ids=["checkpoints", "logger", "empty"],
)
def test_sweeps_that_change_no_result_are_refused(
    overrides: list[str], message: str, sweep_here: Sweep, tmp_path: Path
) -> None:
    code, output = sweep_here("-m", *overrides)
    assert code == 1 and message in output
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize("sweep", [[], ["sweep=optuna"]], ids=["grid", "optuna"])
def test_a_misspelled_key_leaves_no_files(
    sweep: list[str], command: Callable[..., Any], tmp_path: Path
) -> None:
    process = command("optimizer.lrr=1e-2,1e-3", *sweep)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 1 and "optimizer.lrr" in output + errors
    assert "resumes it" not in output and "Sweep s" not in output
    assert not (tmp_path / "runs").exists()


def test_a_sweep_that_fails_to_start_restores_the_process(
    sweep_here: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)  # would add a traceback

    def state() -> tuple[Any, ...]:
        signals = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        return set(threading.enumerate()), signals, ConfigLoaderImpl.load_sweep_config

    before = state()
    for _ in range(2):
        code, output = sweep_here("-m", "optimizer.lrr=1e-2,1e-3")
        assert code == 1 and "optimizer.lrr" in output and state() == before
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_job_names_contain_only_swept_settings(sweep_here: Sweep, tmp_path: Path) -> None:
    sweep = tmp_path / "runs" / "sweeps" / "s"
    # The same value twice is one job.
    assert sweep_here("-m", "optimizer.lr=1e-2,1e-3,0.01", "seed=1")[0] == 0
    assert {path.name for path in jobs(sweep).values()} == {
        "optimizer.lr=0.01",
        "optimizer.lr=0.001",
    }
    # The job is found again if the seed is swept, too; another seed gets another folder.
    code, output = sweep_here("-m", "optimizer.lr=1e-2", "seed=1,2")
    assert code == 0 and "[1/2] seed=1  already finished" in output
    assert (sweep / "optimizer.lr=0.01,seed=2" / "result.json").exists()


def test_a_sweep_is_run_by_one_command_at_a_time(sweep_here: Sweep, tmp_path: Path) -> None:
    sweep = tmp_path / "runs" / "sweeps" / "s"
    sweep.mkdir(parents=True)
    with FileLock(sweep / ".sweep.lock"):
        code, output = sweep_here("-m", "optimizer.lr=1e-2,1e-3")
    assert code == 1 and "another command is running the sweep runs/sweeps/s" in output
    assert not jobs(sweep)


def test_a_sweep_stopped_before_its_first_job(
    sweep_here: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = tmp_path / "runs" / "sweeps" / "s"

    def stop(keep: bool) -> Callable[[], None]:
        Journal(sweep).write("stopping", code=130)
        return lambda: None

    monkeypatch.setattr("genre_lightning.sweeps.callback.cache_job_configs", stop)
    code, output = sweep_here("-m", "optimizer.lr=1e-2,1e-3")
    assert code == 130 and "2 not started" in output and "Traceback" not in output
    assert not (sweep / "leaderboard.csv").exists()


@pytest.mark.parametrize("overrides", [("seed=0",), ("-m", "seed=0,1")], ids=["run", "sweep"])
def test_ctrl_c_before_training_shows_no_traceback(
    overrides: tuple[str, ...], sweep_here: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)  # would add a traceback
    monkeypatch.setattr("genre_lightning.sweeps.jobs.HydraConfig.get", end)
    assert sweep_here(*overrides) == (130, "")


def test_a_job_that_runs_elsewhere_is_left_alone(sweep_here: Sweep, tmp_path: Path) -> None:
    sweep = tmp_path / "runs" / "sweeps" / "s"
    assert sweep_here("-m", "optimizer.lr=1e-2")[0] == 0
    (folder,) = jobs(sweep).values()
    (folder / "result.json").unlink()
    before = contents(folder)
    with FileLock(folder / ".lock"):
        code, output = sweep_here("-m", "optimizer.lr=1e-2")
    assert code == 1 and "running elsewhere" in output
    assert contents(folder).keys() - before.keys() == set()


@pytest.mark.parametrize("found_running", [True, False], ids=["found running", "started together"])
def test_a_job_with_the_same_values_as_a_running_one_is_skipped(
    found_running: bool, sweep_here: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "runs" / "sweeps" / "s" / "defaults"

    def is_running(job: Path) -> bool:
        other_process = {"folder": job.name, "pid": os.getpid() + 1, "host": "here"}
        Journal(job.parent).write("started", job="", **other_process)
        return found_running

    monkeypatch.setattr("genre_lightning.sweeps.jobs.is_running", is_running)
    folder.mkdir(parents=True)
    result = {"status": "interrupted", "monitor": "val/map_macro"}
    write_result(folder, result)
    with FileLock(folder / ".lock"):
        code, output = sweep_here("-m")
    assert code == 0 and "[1/1] defaults  same as another job" in output
    assert recorded(folder) == result


def test_a_required_setting_can_be_swept(sweep_here: Sweep, tmp_path: Path) -> None:
    code, output = sweep_here("-m", "data=manifest", "optimizer.lr=1,2")
    assert code == 1 and "data.path has to be given" in output
    assert not (tmp_path / "runs").exists()
    code, output = sweep_here("-m", "data=manifest", "data.path=a.csv,b.csv")
    assert code == 1 and "[1/2] data.path=a.csv  failed: " in output and "2 failed" in output


@pytest.mark.slow
def test_an_unreadable_result_fails_only_its_job(sweep_here: Sweep, tmp_path: Path) -> None:
    assert sweep_here("-m", "optimizer.lr=1e-2")[0] == 0
    (folder,) = jobs(tmp_path / "runs" / "sweeps" / "s").values()
    (folder / "result.json").write_text("[]")
    code, output = sweep_here("-m", "optimizer.lr=1e-2,1e-3")
    assert code == 1 and "result.json is not the result of a run" in output
    assert "1 failed, 1 completed" in output


# As a user runs it.


@pytest.fixture
def command(repository: Path, tiny: list[str], tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Starts a sweep with train.py in its own process group, in `tmp_path`."""
    processes = []

    def start(*overrides: str, **options: Any) -> Command:
        env = {name: value for name, value in os.environ.items() if name != "HYDRA_FULL_ERROR"}
        arguments = [repository / "train.py", "-m", "sweep.name=s", *tiny, *overrides]
        process = Command(arguments, tmp_path, env, start_new_session=True, **options)
        processes.append(process)
        return process

    yield start
    for process in processes:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
        process.communicate()


def wait_for(condition: Callable[[], bool], process: Command) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_an_interrupted_and_killed_sweep_resumes(
    command: Callable[..., Any], tmp_path: Path
) -> None:
    sweep = tmp_path / "runs" / "sweeps" / "s"
    epochs = 12
    long = (
        *(f"trainer.max_epochs={epochs}", "callbacks.early_stopping=null"),
        "++callbacks.slow._target_=tests.running.SlowEpochs",
    )
    values = "optimizer.lr=1e-2,1e-3"

    def is_training(lr: str) -> Callable[[], bool]:
        return lambda: (
            sweep.exists() and lr in jobs(sweep)
            and (jobs(sweep)[lr] / "checkpoints" / "last.ckpt").exists()
        )  # fmt: skip

    process = command(values, *long)
    wait_for(is_training("0.01"), process)
    os.killpg(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "1 interrupted, 1 not started" in output and "same command" in output
    assert output.count("Stopping: the running jobs save and end.") == 1
    assert recorded(jobs(sweep)["0.01"])["status"] == "interrupted"

    process = command(values, *long)
    wait_for(is_training("0.001"), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    finished = contents(jobs(sweep)["0.01"])
    assert recorded(jobs(sweep)["0.01"])["status"] == "completed"
    assert recorded(jobs(sweep)["0.01"])["attempts"] == 2
    assert recorded(jobs(sweep)["0.001"])["status"] == "interrupted"

    process = command(f"{values},1e30", *long)
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 1, errors
    assert "[1/3] optimizer.lr=0.01  already finished" in output
    assert "(resumed after" in output and "optimizer.lr=1e+30  failed: " in output
    assert "Traceback" not in errors
    assert contents(jobs(sweep)["0.01"]) == finished
    resumed = recorded(jobs(sweep)["0.001"])
    assert (resumed["status"], resumed["epochs"], resumed["attempts"]) == ("completed", epochs, 2)
    rows = (jobs(sweep)["0.001"] / "metrics.csv").read_text().splitlines()
    assert len(rows) == 1 + epochs


@pytest.mark.slow
def test_ctrl_c_reaches_submitit_jobs_only_through_the_command(
    command: Callable[..., Any],
    tmp_path: Path,
    repository: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setenv("PYTHONPATH", str(repository))
    process = command(
        *("hydra/launcher=submitit_local", "optimizer.lr=1e-2,1e-3", "trainer.max_epochs=500"),
        *("callbacks.early_stopping=null", "++callbacks.slow._target_=tests.running.SlowEpochs"),
        fork_interpreters=False,
    )
    sweep = tmp_path / "runs" / "sweeps" / "s"
    wait_for(lambda: len(list(sweep.glob("*/checkpoints/last.ckpt"))) == 2, process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 130 and "2 interrupted" in output
    assert output.count("Stopping") == 1 and "Traceback" not in output + errors
    for folder in jobs(sweep).values():
        assert "stopping after this step" in (folder / "train.log").read_text("utf-8")
        epochs = len((folder / "metrics.csv").read_text("utf-8").splitlines()) - 1
        assert recorded(folder)["epochs"] == epochs


LAUNCHERS = {
    "joblib": ["hydra.launcher.n_jobs=2"],
    "submitit_local": [],
    "ray": ["hydra.launcher.job.num_cpus=0.5"],
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_jobs_side_by_side(
    launcher: str, command: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if importlib.util.find_spec(launcher.partition("_")[0]) is None:
        pytest.skip(f"{launcher} is not installed")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    process = command(
        "optimizer.lr=1e-2,1e30", f"hydra/launcher={launcher}", *LAUNCHERS[launcher],
        # One of submitit's jobs is a new interpreter; test_killed.py has such joblib workers.
        fork_interpreters=launcher != "ray", num_unforked=int(launcher == "submitit_local"),
    )  # fmt: skip
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 1, errors
    assert "1 completed, 1 failed" in output or "1 failed, 1 completed" in output
    assert "leaked" not in output + errors  # nanobind's warning at exit
    assert "optimizer.lr=1e+30  failed: DivergedError: " in output
    folders = jobs(tmp_path / "runs" / "sweeps" / "s")
    assert {lr: recorded(folder)["status"] for lr, folder in folders.items()} == {
        "0.01": "completed",
        "1e+30": "failed",
    }


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "hydra.launcher.init.address=here:there",
            "can't use Ray .*'address': 'here:there'.*=null ",
        ),
        ("+hydra.launcher.init.cpus=1", "can't use Ray .*'cpus': 1.*: Unknown keyword .*cpus"),
        ("+hydra.launcher.job.cpus=1", "hydra.launcher.job={.*'cpus': 1.*} can't be used: "),
        ("hydra.launcher.job.num_gpus=many", "hydra.launcher.job={.*} can't be used: .*num_gpus"),
    ],
)
def test_unusable_ray_settings_give_a_one_line_error(
    setting: str, message: str, sweep_here: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)  # would add a traceback
    code, output = sweep_here("-m", "seed=0,1", "hydra/launcher=ray", setting)
    assert code == 1 and re.match(f"error: .*{message}", output)


def test_a_sweep_without_ray_says_what_to_install(
    sweep_here: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)  # would add a traceback
    monkeypatch.setitem(sys.modules, "ray", None)  # as if not installed
    assert sweep_here("-m", "seed=0,1", "hydra/launcher=ray") == (
        1,
        'error: hydra/launcher=ray needs Ray: pip install "genre-lightning[ray]"',
    )


def test_the_launcher_for_slurm_can_be_configured(repository: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    with initialize_config_dir(str(repository / "conf"), version_base="1.3"):
        overrides = ["hydra/launcher=submitit_slurm", "hydra.launcher.gpus_per_task=1"]
        cfg = compose("train", [*overrides, "sweep.name=s"], return_hydra_config=True)
    launcher: Any = Plugins.instance().instantiate_launcher(
        hydra_context=HydraContext(config_loader=None, callbacks=None),  # type: ignore[arg-type]
        task_function=lambda cfg: None,
        config=cfg,
    )
    assert launcher.params["gpus_per_task"] == 1
    assert launcher.params["submitit_folder"].startswith("runs/sweeps/s/.submitit")


@pytest.mark.slow
def test_jobs_that_share_data_score_like_single_runs(sweep_here: Sweep, tmp_path: Path) -> None:
    keys = ("val", "test", "monitor_value", "epochs", "num_parameters")
    assert sweep_here("-m", "seed=0,1", "data.split_seed=0,1")[0] == 0
    for folder in sorted((tmp_path / "runs/sweeps/s").glob("*/")):
        stored = json.loads((folder / "result.json").read_text())
        single = tmp_path / "single" / folder.name
        overrides = [o for o in stored["overrides"] if o.startswith(("seed=", "data.split_seed="))]
        assert sweep_here(*overrides, f"hydra.run.dir={single}")[0] == 0
        result = json.loads((single / "result.json").read_text())
        assert {key: stored[key] for key in keys} == {key: result[key] for key in keys}
