"""Loggers: several at once, each with every epoch once, also if a run is resumed."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from pytorch_lightning.loggers import WandbLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from genre_lightning.errors import UserError
from genre_lightning.tracking import loggers
from genre_lightning.tracking.loggers import flat_config, run_name, tensorboard_logger
from genre_lightning.training.callbacks.epoch_log import EpochLog
from genre_lightning.training.callbacks.history import History
from tests.running import CallsLogger

Train = Callable[[Path, list[str]], dict[str, Any]]
Overrides = Callable[..., list[str]]


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


@pytest.mark.parametrize(
    ("group", "keys"),
    [
        ("none", []),
        ("wandb", ["wandb"]),
        ("[wandb,tensorboard]", ["wandb", "tensorboard"]),
        ("[csv,tensorboard,wandb]", ["csv", "tensorboard", "wandb"]),
    ],
)
def test_several_loggers_at_once(group: str, keys: list[str], repository: Path) -> None:
    with initialize_config_dir(str(repository / "conf"), version_base="1.3"):
        cfg = compose("train", [f"logger={group}"])
    assert list(cfg.logger) == keys


@pytest.mark.slow
def test_logger_files_of_a_resumed_run(
    train_here: Train, tiny_overrides: Overrides, tmp_path: Path
) -> None:
    overrides = tiny_overrides("logger=[tensorboard,csv]", model="title")
    train_here(tmp_path, overrides)
    last = f"ckpt_path={tmp_path}/checkpoints/last.ckpt"
    result = train_here(tmp_path, [*overrides, last, "trainer.max_epochs=4"])

    history = read_rows(tmp_path / "metrics.csv")
    assert [row["epoch"] for row in history] == ["0", "1", "2", "3"]
    expected = [(int(row["step"]), float(row["val/map_macro"])) for row in history]
    # Only rows of epochs have that column; the last row has the scores of the best checkpoint.
    rows = [row for row in read_rows(tmp_path / "csv" / "metrics.csv") if row["val/map_macro"]]
    assert [(int(row["step"]), float(row["val/map_macro"])) for row in rows] == expected
    logged = scalars(tmp_path / "tensorboard", "val/map_macro")
    assert [step for step, _ in logged] == [step for step, _ in expected]
    assert [value for _, value in logged] == pytest.approx([value for _, value in expected])
    for name in ("tensorboard", "csv"):
        settings = dict(OmegaConf.load(tmp_path / name / "hparams.yaml"))
        assert settings["optimizer.lr"] == 3e-3 and "model.dropout" in settings

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    plugin = events.summary_metadata["_hparams_/experiment"].plugin_data
    assert plugin.plugin_name == "hparams" and b"best/val/map_macro" in plugin.content
    best = scalars(tmp_path / "tensorboard", "best/val/map_macro")[-1][1]
    assert best == pytest.approx(result["monitor_value"])
    test = scalars(tmp_path / "tensorboard", "test/f1_micro")[-1][1]
    assert test == pytest.approx(result["test"]["f1_micro"])


@pytest.mark.slow
def test_a_run_resumed_in_another_folder_keeps_its_rows(
    train_here: Train, tiny_overrides: Overrides, tmp_path: Path
) -> None:
    overrides = tiny_overrides("logger=[tensorboard,csv]", model="title")
    train_here(tmp_path / "first", overrides)
    shutil.copytree(tmp_path / "first" / "checkpoints", tmp_path / "checkpoints")
    resume = [f"ckpt_path={tmp_path}/checkpoints/last.ckpt", "trainer.max_epochs=3"]
    train_here(tmp_path / "second", [*overrides, *resume])
    steps = [int(row["step"]) for row in read_rows(tmp_path / "second" / "metrics.csv")]
    assert len(steps) == 3
    assert [step for step, _ in scalars(tmp_path / "second" / "tensorboard", "lr")] == steps
    rows = read_rows(tmp_path / "second" / "csv" / "metrics.csv")
    assert [int(row["step"]) for row in rows if row["lr"]] == steps


@pytest.mark.parametrize("fails", [False, True])
def test_a_logger_is_finalized_once_after_all_scores(
    fails: bool,
    train_here: Train,
    tiny_overrides: Overrides,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(CallsLogger, "calls", [])
    settings = ["+logger.calls._target_=tests.running.CallsLogger", "trainer.max_epochs=1"]
    overrides = tiny_overrides(*settings, *["optimizer.lr=1e30"] * fails, model="title")
    if fails:
        with pytest.raises(UserError, match="diverged"):
            train_here(tmp_path, overrides)
        assert CallsLogger.calls == ["settings", "failed"]
    else:
        train_here(tmp_path, overrides)
        assert CallsLogger.calls == ["settings", "epoch", "test", "success"]


def test_missing_tensorboard_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install tensorboard"):
        tensorboard_logger(str(tmp_path), "tensorboard")


def test_flat_config() -> None:
    cfg = OmegaConf.create(
        {
            "seed": 1,
            "num_genres": 3,
            "model": {"title": None, "widths": [4, 8], "num_genres": "${num_genres}"},
            "optimizer": {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 1e-3},
            "logger": {"wandb": {"entity": "me"}},
        }
    )
    assert flat_config(cfg) == {
        "seed": 1,
        "num_genres": 3,
        "model.title": None,
        "model.widths": [4, 8],
        "model.num_genres": 3,
        "optimizer._target_": "torch.optim.Adam",
        "optimizer.lr": 1e-3,
    }


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], None),
        (["logger=wandb", "hydra.run.dir=x", "logger.wandb.name=y", "ckpt_path=last"], None),
        (["seed=1", "+model.new=2", "logger=wandb", "loss=focal"], "loss=focal,model.new=2,seed=1"),
        (["model.title.name=" + "x" * 200], ("model.title.name=" + "x" * 200)[:128]),
    ],
    ids=["none", "settings that change no result", "sorted", "long"],
)
def test_run_name(overrides: list[str], name: str | None) -> None:
    assert run_name(overrides) == name


# Rows that a logger gets if a run is resumed.


class Recorder(WandbLogger):
    """A W&B logger whose server reports its last step, or nothing if ``last`` is None."""

    def __init__(self, resumes: bool, last: int | None) -> None:
        self.resumes = resumes
        summary = {} if last is None else {"trainer/global_step": last}
        self._experiment = SimpleNamespace(resumed=last is not None, summary=summary)  # type: ignore[assignment]
        self.steps: list[int | None] = []

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        assert "step" not in metrics and all(type(value) is float for value in metrics.values())
        self.steps.append(step)


@pytest.mark.parametrize(
    ("on_disk", "kept", "resumes", "last", "logged"),
    [
        pytest.param([], [], False, None, [10, 20, 30, 40], id="new"),
        pytest.param([10, 20], [10, 20], True, None, [30, 40], id="offline"),
        pytest.param([10, 20, 30], [10], True, None, [30, 40], id="offline, from an earlier epoch"),
        pytest.param([10, 20], [], True, None, [20, 30, 40], id="offline, from the start"),
        pytest.param([], [10, 20], True, None, [30, 40], id="offline, in another folder"),
        pytest.param([10, 20], [10, 20], False, None, [10, 20, 30, 40], id="W&B since resuming"),
        pytest.param([10, 20], [10, 20], True, 10, [20, 30, 40], id="server lacks the last"),
        pytest.param([10, 20, 30], [10], True, 30, [40], id="server has all"),
    ],
)
def test_each_row_is_logged_once(
    on_disk: list[int],
    kept: list[int],
    resumes: bool,
    last: int | None,
    logged: list[int],
    tmp_path: Path,
) -> None:
    if on_disk:
        lines = ["epoch,step,val/loss", *(f"{step // 10 - 1},{step},0.5" for step in on_disk)]
        (tmp_path / "metrics.csv").write_text("\n".join(lines) + "\n")
    history = History(tmp_path)
    logger = Recorder(resumes, last)
    trainer: Any = SimpleNamespace(is_global_zero=True, loggers=[logger])
    module: Any = None
    callback = EpochLog(history)
    callback.setup(trainer, module, "fit")
    history.rows = [{"epoch": step // 10 - 1, "step": step, "val/loss": 0.5} for step in kept]
    callback.on_train_start(trainer, module)
    for step in range(10 * len(kept) + 10, 50, 10):
        history.rows.append({"epoch": step // 10 - 1, "step": step, "val/loss": 0.5})
        callback.on_train_epoch_end(trainer, module)
    assert logger.steps == logged
