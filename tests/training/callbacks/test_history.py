"""metrics.csv: complete rows of epochs and mid-epoch validations, kept when a run is resumed."""

from __future__ import annotations

import copy
import csv
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pytorch_lightning.trainer.states import TrainerFn

from genre_lightning.training.callbacks.history import History


def trainer(epoch: int, resumed: bool = False, rank: int = 0, **metrics: float) -> Any:
    """The part of a trainer that the callback uses."""
    return SimpleNamespace(
        current_epoch=epoch,
        global_step=10 * (epoch + 1),
        ckpt_path="x.ckpt" if resumed else None,
        is_global_zero=rank == 0,
        world_size=1,
        callback_metrics={name: torch.tensor(value) for name, value in metrics.items()},
        optimizers=[SimpleNamespace(param_groups=[{"lr": 0.1}, {"lr": 0.2}])],
    )


def run_epoch(history: History, state: Any, batches: int = 2) -> None:
    module: Any = None
    history.on_train_epoch_start(state, module)
    for index in range(batches):
        history.on_train_batch_end(state, module, None, [0] * 5, index)  # type: ignore[arg-type]
    history.on_train_epoch_end(state, module)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_rows_of_epochs(tmp_path: Path) -> None:
    history = History(tmp_path)
    before = history.samples_per_second
    assert before is None
    history.on_train_start(trainer(0), None)  # type: ignore[arg-type]
    run_epoch(history, trainer(0, loss=1.0))
    run_epoch(history, trainer(1, loss=0.5, late=3.0))
    history_rows = rows(tmp_path)
    assert [row["epoch"] for row in history_rows] == ["0", "1"]
    assert [row["step"] for row in history_rows] == ["10", "20"]
    assert [row["loss"] for row in history_rows] == ["1.0", "0.5"]
    assert [row["late"] for row in history_rows] == ["", "3.0"]
    assert history_rows[0]["lr"] == "0.2"
    assert history.samples == 20
    assert (history.samples_per_second or 0) > 0
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_an_epoch_without_a_validation_has_no_old_scores(
    train_here: Callable[..., Any], tiny_overrides: Callable[..., list[str]], tmp_path: Path
) -> None:
    overrides = tiny_overrides("trainer.max_epochs=5", model="title")
    result = train_here(tmp_path, [*overrides, "+trainer.check_val_every_n_epoch=2"])
    history_rows = rows(tmp_path)
    assert [bool(row["val/map_macro"]) for row in history_rows] == [False, True, False, True, False]
    assert all(row["train/loss"] for row in history_rows)
    scores = [float(row["val/map_macro"] or 0) for row in history_rows]
    assert result["monitor_value"] == pytest.approx(max(scores))


@pytest.mark.parametrize(("every", "at_the_end"), [(0.5, True), (0.7, False)])
def test_each_mid_epoch_validation_has_a_row_also_after_a_resume(
    every: float,
    at_the_end: bool,
    train_here: Callable[..., Any],
    tiny_overrides: Callable[..., list[str]],
    tmp_path: Path,
) -> None:
    fixed = ["scheduler=constant", f"+trainer.val_check_interval={every}", "data.batch_size=4"]
    whole, parts, best = tmp_path / "whole", tmp_path / "parts", tmp_path / "best"
    more = "trainer.max_epochs=3"
    scored = train_here(whole, tiny_overrides(*fixed, more, model="title"))
    train_here(parts, tiny_overrides(*fixed, model="title"))
    train_here(parts, tiny_overrides(*fixed, more, f"ckpt_path={parts}", model="title"))
    from_best = f"ckpt_path={whole}/checkpoints/best.ckpt"  # of a validation within an epoch
    train_here(best, tiny_overrides(*fixed, more, from_best, model="title"))

    def without_seconds(folder: Path) -> list[dict[str, str]]:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in rows(folder)]

    history_rows = rows(whole)
    assert [row["epoch"] for row in history_rows] == ["0", "0", "1", "1", "2", "2"]
    assert len({row["step"] for row in history_rows}) == 6
    for within, end in zip(history_rows[::2], history_rows[1::2], strict=True):
        assert within["val/map_macro"] and not within["seconds"] and not within["train/loss"]
        assert end["train/loss"] and end["seconds"]
        assert bool(end["val/map_macro"]) is at_the_end
    values = [float(row["val/map_macro"]) for row in history_rows if row["val/map_macro"]]
    assert len(set(values)) > 1 and scored["monitor_value"] == pytest.approx(max(values))
    expected = without_seconds(whole)
    assert without_seconds(parts) == expected and without_seconds(best) == expected


@pytest.mark.parametrize("resumed", [True, False])
def test_a_resumed_run_keeps_earlier_rows(resumed: bool, tmp_path: Path) -> None:
    first = History(tmp_path)
    first.on_train_start(trainer(0), None)  # type: ignore[arg-type]
    for epoch in range(4):
        run_epoch(first, trainer(epoch, loss=float(epoch)))
        if epoch == 1:
            saved = copy.deepcopy(first.state_dict())
    again = History(tmp_path / "elsewhere")
    again.path.parent.mkdir()
    if resumed:
        again.load_state_dict(saved)
        again.on_fit_start(trainer(2), None)  # type: ignore[arg-type]
        assert [row["epoch"] for row in rows(tmp_path / "elsewhere")] == ["0", "1"]
    again.on_train_start(trainer(2), None)  # type: ignore[arg-type]
    run_epoch(again, trainer(2, loss=9.0))
    kept = ["0", "1"] if resumed else []
    assert [row["epoch"] for row in rows(tmp_path / "elsewhere")] == [*kept, "2"]
    assert rows(tmp_path / "elsewhere")[-1]["loss"] == "9.0"
    assert again.samples == (30 if resumed else 10)


def test_the_speed_leaves_out_validation_also_if_resumed_in_mid_epoch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clock: Any = SimpleNamespace(now=100.0, perf_counter=lambda: clock.now)
    monkeypatch.setattr("genre_lightning.training.callbacks.history.time", clock)
    module: Any = None
    state = trainer(0)
    state.sanity_checking = state.is_last_batch = False
    state.state = SimpleNamespace(fn=TrainerFn.FITTING)

    def train(history: History, batches: int) -> None:
        for index in range(batches):
            clock.now += 2  # for 5 movies
            history.on_train_batch_end(state, module, None, [0] * 5, index)  # type: ignore[arg-type]

    first = History(tmp_path)
    first.on_train_start(state, module)
    first.on_train_epoch_start(state, module)
    train(first, 3)
    clock.now += 50  # a validation in mid-epoch
    first.on_validation_end(state, module)
    train(first, 1)
    again = History(tmp_path)
    again.load_state_dict(copy.deepcopy(first.state_dict()))
    clock.now += 1000
    again.on_train_start(state, module)
    train(again, 2)
    clock.now += 50
    state.is_last_batch = True
    again.on_validation_end(state, module)
    again.on_train_epoch_end(state, module)
    assert again.samples_per_second == 2.5
    assert [row["seconds"] for row in rows(tmp_path)] == ["", str(6 * 2 + 2 * 50.0)]


def test_only_the_first_process_writes(tmp_path: Path) -> None:
    history = History(tmp_path)
    history.on_train_start(trainer(0, rank=1), None)  # type: ignore[arg-type]
    run_epoch(history, trainer(0, rank=1))
    assert not (tmp_path / "metrics.csv").exists() and history.samples == 10


def test_in_a_real_run(trained_run: Path) -> None:
    history_rows = rows(trained_run)
    assert [row["epoch"] for row in history_rows] == ["0", "1"]
    for name in ("train/loss", "val/loss", "val/map_macro", "lr", "seconds"):
        assert all(float(row[name]) >= 0 for row in history_rows)


def test_in_a_real_run_that_resumes(
    train_here: Callable[[Path, list[str]], dict[str, Any]],
    tiny_overrides: Callable[..., list[str]],
    tmp_path: Path,
) -> None:
    # A constant schedule does not depend on max_epochs, so two parts train like one run.
    fixed = ["scheduler=constant"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train_here(whole, tiny_overrides(*fixed, "trainer.max_epochs=4"))
    train_here(parts, tiny_overrides(*fixed))
    before = rows(parts)
    more = [f"ckpt_path={parts}/checkpoints/last.ckpt", "trainer.max_epochs=4"]
    result = train_here(parts, tiny_overrides(*fixed, *more))
    assert result["epochs"] == 4 and result["test"]
    after, expected = rows(parts), rows(whole)
    assert after[:2] == before
    assert [row["epoch"] for row in after] == ["0", "1", "2", "3"]
    for row, other in zip(after, expected, strict=True):
        for name in ("train/loss", "val/loss", "val/map_macro", "step", "lr"):
            assert row[name] == other[name], (row["epoch"], name)
