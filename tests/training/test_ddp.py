"""Distributed training in several processes, joined by gloo on the CPU."""

from __future__ import annotations

import csv
import json
import os
import runpy
import signal
import socket
import textwrap
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from hydra.types import RunMode

from genre_lightning.checkpoint.model import load_model
from genre_lightning.data.datamodule import MovieDataModule
from genre_lightning.errors import UserError
from genre_lightning.inputs.terms import TermsInput
from genre_lightning.models.networks import build_network
from genre_lightning.report.evaluation import score_split, split_metrics
from genre_lightning.runs.lock import is_running
from genre_lightning.scoring.losses import build_loss
from genre_lightning.sweeps import processes
from genre_lightning.training.module import GenreModule
from tests.forking import Command, run_command, start_process
from tests.running import assert_same_run


def run_ranks(function: Callable[..., None], *arguments: Any) -> list[int | None]:
    """Call ``function(rank, *arguments)`` as two ranks, like torchrun; return the exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # By path, since another process can't import a test file as a module.
    ranks = [
        start_process(
            runpy.run_path, __file__, {"CALL": (rank, port, function.__name__, *arguments)}, "rank"
        )
        for rank in (0, 1)
    ]
    for process in ranks:
        process.join(240)
    codes = [process.exitcode for process in ranks]
    for process in ranks:
        process.kill()
    return codes


def _as_rank(rank: int, port: int, function: str, *arguments: Any) -> None:
    # As on two machines with one process each: the local rank is 0 on both.
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": "0", "GROUP_RANK": str(rank), "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test",
    }  # fmt: skip
    globals()[function](rank, *arguments)


def fit(
    cache: Path, size: int, nodes: int, **more: Any
) -> tuple[pl.Trainer, GenreModule, MovieDataModule]:
    """Fit a title model without BatchNorm, so that a batch can be split between processes."""
    data = MovieDataModule(
        "demo", {"title": TermsInput("title", 128, decade=True)}, batch_size=size,
        cache_dir=cache, root=str(cache), num_movies=109, poster_height=32,
    )  # fmt: skip
    data.setup()
    torch.manual_seed(0)
    title = {"name": "terms_mlp", "hidden": 8, "dropout": 0.0}
    network = build_network(len(data.genres), {"title": title}, data.inputs)
    network.get_submodule("branches.title").norm = torch.nn.Identity()
    optimizer = partial(torch.optim.SGD, lr=0.5, momentum=0.9, weight_decay=0.01)
    module = GenreModule(network, build_loss("bce"), optimizer, inputs=data.describe())
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, num_nodes=nodes, strategy="ddp" if nodes > 1 else "auto",
        max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, use_distributed_sampler=False, **more,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    return trainer, module, data


def train_half(rank: int, cache: Path, out: Path) -> None:
    trainer, module, _ = fit(cache, 8, 2)
    values = {name: value.item() for name, value in trainer.callback_metrics.items()}
    torch.save((module.network.state_dict(), values, trainer.global_step), out / f"{rank}.pt")


@pytest.mark.slow
def test_two_processes_with_half_batches_train_like_one(tmp_path: Path) -> None:
    trainer, module, data = fit(tmp_path, 16, 1)
    # An odd number of movies: the ranks have different numbers of movies, but as many batches.
    assert len(data.splits["val"]) % 2 == 1 and trainer.global_step >= 8
    assert run_ranks(train_half, tmp_path, tmp_path) == [0, 0]
    expected = {name: value.item() for name, value in trainer.callback_metrics.items()}
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    for state, values, steps in ranks:
        assert steps == trainer.global_step
        for name, weight in module.network.state_dict().items():
            torch.testing.assert_close(state[name], weight, rtol=1e-4, atol=1e-6)
        assert values == pytest.approx(expected, rel=1e-4)
    assert ranks[0][1] == ranks[1][1], "the ranks would disagree on which epoch is best"


def fail_in_rank_1(rank: int, cache: Path) -> None:
    class Failing(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
            if trainer.global_rank == 1 and trainer.global_step == 2:
                raise RuntimeError("this process alone has failed")

    fit(cache, 8, 2, callbacks=[Failing()])


@pytest.mark.slow
def test_a_rank_does_not_wait_for_one_that_failed(tmp_path: Path) -> None:
    codes = run_ranks(fail_in_rank_1, tmp_path)
    assert all(code not in (0, None) for code in codes), codes


# Starting processes.


@pytest.mark.parametrize(
    ("trainer", "environment", "count"),
    [
        ({"devices": 1}, {}, 0),
        ({"strategy": "auto", "devices": 2}, {}, 0),
        ({"strategy": "ddp", "devices": 2}, {}, 2),
        ({"strategy": "ddp_spawn", "devices": "3"}, {}, 3),
        ({"strategy": "ddp", "devices": "auto"}, {}, 1),
        ({"strategy": "ddp", "devices": 2}, {"RANK": "0"}, 0),
        ({"strategy": "ddp", "devices": 2}, {"SLURM_NTASKS": "2", "SLURM_PROCID": "0"}, 0),
        ({"strategy": "ddp", "devices": 2}, {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, 2),
    ],
)
def test_how_many_processes_are_started(
    trainer: dict[str, Any], environment: dict[str, str], count: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert processes.processes_to_start({"accelerator": "cpu", **trainer}) == count


def test_starting_several_machines_is_refused() -> None:
    with pytest.raises(UserError, match=r"num_nodes=2.*ddp_nodes"):
        processes.processes_to_start({"strategy": "ddp", "devices": 1, "num_nodes": 2})


def test_processes_of_torchrun_need_a_run_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def job(mode: RunMode, *overrides: str) -> Any:
        return SimpleNamespace(mode=mode, overrides=SimpleNamespace(hydra=list(overrides)))

    processes.check_distributed_launch(job(RunMode.MULTIRUN))
    monkeypatch.setenv("RANK", "1")
    processes.check_distributed_launch(job(RunMode.RUN, "hydra.run.dir=here"))
    with pytest.raises(UserError, match=r"hydra\.run\.dir=FOLDER"):
        processes.check_distributed_launch(job(RunMode.RUN))
    with pytest.raises(UserError, match="without torchrun"):
        processes.check_distributed_launch(job(RunMode.MULTIRUN, "hydra.run.dir=here"))


SCRIPT = """
import os, pathlib, time
from genre_lightning.errors import UserError

def main(cfg):
    rank = os.environ["RANK"]
    pathlib.Path(cfg.folder, f"{rank}.pid").write_text(str(os.getpid()))
    if cfg.failing and rank == "1":
        raise UserError("no movies here")
    time.sleep(600)
"""
STARTER = """
import sys
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict
from pathlib import Path
from genre_lightning.sweeps.processes import run_in_processes

conf, folder, failing = sys.argv[1:]
with initialize_config_dir(conf, version_base="1.3"):
    cfg = compose("train", [], return_hydra_config=True)
with open_dict(cfg):
    cfg.hydra.runtime.output_dir = folder
    HydraConfig.instance().set_config(cfg)
    del cfg.hydra
    cfg.folder, cfg.failing = folder, failing == "failing"
run_in_processes(2, f"{folder}/script.py", cfg, Path(folder))
"""


@pytest.fixture
def start(repository: Path, tmp_path: Path) -> Iterator[Callable[..., Command]]:
    started = []

    def run(mode: str, **options: Any) -> Command:
        (tmp_path / "script.py").write_text(textwrap.dedent(SCRIPT))
        env = {**os.environ, "PYTHONPATH": str(repository)}
        arguments = ["-c", STARTER, repository / "conf", tmp_path, mode]
        process = Command(arguments, repository, env, **options)
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()


def has_ended(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.mark.slow
def test_a_failed_process_ends_the_others(start: Any, tmp_path: Path) -> None:
    process = start("failing")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1 and "ProcessError: UserError: no movies here" in errors
    # The only traceback is that of the starter.
    assert errors.count("Traceback") == 1 and "torchrun" not in errors and "elastic" not in errors
    stored = json.loads((tmp_path / "result.json").read_text())
    assert stored["status"] == "failed" and stored["error"] == "UserError: no movies here"
    assert has_ended(int((tmp_path / "0.pid").read_text()))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
def test_processes_end_with_the_one_that_started_them(
    number: int, start: Any, tmp_path: Path
) -> None:
    # For SIGKILL, torchrun and its processes are new interpreters instead of forks.
    process = start("sleeping", fork_interpreters=number != signal.SIGKILL)
    deadline = time.monotonic() + 240
    while len(list(tmp_path.glob("*.pid"))) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(number)
    process.wait(60)
    pids = [int((tmp_path / f"{rank}.pid").read_text()) for rank in (0, 1)]
    while not all(has_ended(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.1)


# As a user runs it.


@pytest.mark.slow
def test_a_sweep_of_runs_in_two_processes(
    repository: Path, tiny_overrides: Callable[..., list[str]], tmp_path: Path
) -> None:
    overrides = tiny_overrides("++data.num_movies=123", "trainer=ddp", "trainer.devices=2",
                               "data.batch_size=4")  # fmt: skip
    command = [
        *(str(repository / "train.py"), "-m", *overrides, "optimizer.lr=1e30,1e-2"),
        *(f"hydra.sweep.dir={tmp_path}/sweep", "hydra.sweep.subdir=${hydra:job.num}"),
    ]
    process = run_command(command, tmp_path, timeout=500)
    assert process.returncode != 0
    diverged, stored = (
        json.loads((tmp_path / "sweep" / job / "result.json").read_text()) for job in "01"
    )
    assert diverged["status"] == "failed" and "not finite in epoch 1" in diverged["error"]
    assert stored["status"] == "completed", process.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sweep"]

    # One process computes the same metrics from the checkpoint and each whole split.
    folder = tmp_path / "sweep" / "1"
    model = load_model(folder / "checkpoints" / "best.ckpt")
    data = MovieDataModule.from_description(
        model.data, inputs=model.inputs, genres=model.genres,
        cache_dir=os.environ["GENRE_LIGHTNING_CACHE"],
    )  # fmt: skip
    data.setup()
    assert len(data.splits["val"]) % 2 == 1
    for split in ("val", "test"):
        assert stored[split] == split_metrics(model, score_split(model, data, split))
    # Both processes together logged the same metrics during training.
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0", "1"]
    best = max(rows, key=lambda row: float(row["val/map_macro"]))
    for name, value in stored["val"].items():
        if name != "num_movies":
            assert float(best[f"val/{name}"]) == pytest.approx(value, rel=1e-5), name


@pytest.mark.slow
def test_a_killed_run_in_two_processes_resumes_exactly(
    repository: Path, tiny_overrides: Callable[..., list[str]], tmp_path: Path
) -> None:
    def start_training(*more: str) -> Command:
        overrides = tiny_overrides("trainer=ddp", "trainer.devices=2", "data.batch_size=4", *more)
        return Command([repository / "train.py", *overrides], tmp_path)

    def finish(process: Command) -> None:
        assert process.wait(300) == 0, process.stdout + process.stderr

    folder, last = tmp_path / "killed", tmp_path / "killed" / "checkpoints" / "last.ckpt"
    often = ["trainer.max_epochs=3", "checkpoint_every_n_steps=4"]
    process = start_training(f"hydra.run.dir={folder}", *often, "checkpoint_in_background=true")
    deadline = time.monotonic() + 240
    while not last.exists():
        assert process.poll() is None and time.monotonic() < deadline, process.stderr
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert torch.load(last, weights_only=True)["global_step"] < 3 * 10
    result = json.loads((folder / "result.json").read_text())
    assert result["status"] == "interrupted", result
    while is_running(folder):  # the other processes are still ending
        assert time.monotonic() < deadline
        time.sleep(0.1)
    finish(start_training(f"ckpt_path={folder}", *often))
    reference = tmp_path / "reference"
    finish(start_training(f"hydra.run.dir={reference}", *often))
    assert_same_run(folder, reference)


if __name__ == "rank":
    _as_rank(*globals()["CALL"])
