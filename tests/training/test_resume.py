"""A killed run that is resumed gives the same result as an uninterrupted one."""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Timer

from genre_lightning.checkpoint.card import CheckpointError, read_checkpoint
from genre_lightning.checkpoint.model import load_model
from genre_lightning.checkpoint.resuming import copy_best
from genre_lightning.errors import UserError
from genre_lightning.training.callbacks.resume import Interrupted
from tests.disks import small_disk
from tests.running import (
    act_as_slurm_task,
    assert_same_run,
    at_step,
    checkpoint,
    differences,
    kill_at,
    kill_while_saving_after,
    limit_file_size,
    recorded,
    rows,
    start_training,
)

Train = Callable[[Path, list[str]], dict[str, Any]]
Overrides = Callable[..., list[str]]
BACKGROUND = pytest.mark.parametrize(
    "background", [False, True], ids=["at once", "in the background"]
)
#: Writes the first epoch's checkpoint and holds back later ones until the end or a signal.
HELD_BACK = "checkpoint_min_seconds=1000"
SAVE_MODES = pytest.mark.parametrize(
    "mode",
    ["checkpoint_in_background=false", "checkpoint_in_background=true", HELD_BACK],
    ids=["at once", "in the background", "held back"],
)
#: Nine batches per epoch, with dropout, augmentation and a schedule.
SMALL_BATCHES = ("data.batch_size=8", "trainer.max_epochs=4")


@pytest.fixture(scope="module")
def reference(
    repository: Path, tiny_overrides: Overrides, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("runs") / "reference"
    process = start_training(repository, folder, tiny_overrides(*SMALL_BATCHES))
    process.join()
    assert process.exitcode == 0, folder.with_name("reference.log").read_text()
    return folder


@pytest.mark.slow
@BACKGROUND
def test_a_run_killed_several_times_resumes_exactly(
    background: bool, reference: Path, repository: Path, tiny_overrides: Overrides, tmp_path: Path
) -> None:
    seed = random.SystemRandom().randrange(10**6)
    print(f"steps drawn from seed {seed}")
    rng = random.Random(seed)
    folder = tmp_path / "killed"
    overrides = tiny_overrides(
        *SMALL_BATCHES, "checkpoint_every_n_steps=3", f"checkpoint_in_background={background}"
    )
    kills = 0
    while True:
        step = rng.randrange(4, 16) if kills < (4 if background else 6) else 10**6
        print(f"kill in step {step} of attempt {kills + 1}")
        last = folder / "checkpoints" / "last.ckpt"
        more = [f"ckpt_path={last}"] if last.exists() else []
        process = start_training(repository, folder, [*overrides, *more], kill_at, step)
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -9, folder.with_name("killed.log").read_text()
        assert recorded(folder)["status"] == "interrupted"
        kills += 1
        if background and not last.exists():  # killed before the first save
            shutil.rmtree(folder)
            kills = 0
    assert kills >= 3
    assert recorded(folder)["attempts"] == kills + 1
    assert_same_run(reference, folder)


@pytest.mark.slow
@BACKGROUND
def test_a_run_killed_while_saving_resumes_exactly(
    background: bool, reference: Path, repository: Path, tiny_overrides: Overrides, tmp_path: Path
) -> None:
    folder = tmp_path / "killed"
    last = folder / "checkpoints" / "last.ckpt"
    overrides = tiny_overrides(
        *SMALL_BATCHES, "checkpoint_every_n_steps=2", f"checkpoint_in_background={background}"
    )
    half = (reference / "checkpoints" / "last.ckpt").stat().st_size // 2
    process = start_training(repository, folder, overrides, kill_while_saving_after, 4, half, last)
    process.join()
    assert process.exitcode == -signal.SIGXFSZ, folder.with_name("killed.log").read_text()
    (partial_file,) = last.parent.glob(".*")
    assert partial_file.stat().st_size == half
    assert read_checkpoint(last)["global_step"] == 2
    process = start_training(repository, folder, [*overrides, f"ckpt_path={last}"])
    process.join()
    assert process.exitcode == 0, folder.with_name("killed.log").read_text()
    assert not list(last.parent.glob(".*"))
    assert_same_run(reference, folder)


@pytest.mark.slow
def test_a_kill_loses_only_checkpoints_that_were_held_back(
    reference: Path, repository: Path, tiny_overrides: Overrides, tmp_path: Path
) -> None:
    folder = tmp_path / "killed"
    overrides = tiny_overrides(*SMALL_BATCHES, HELD_BACK)
    steps = checkpoint(reference)["global_step"] // 4
    # Killed in the last of four epochs: of the three before, only the first is on disk.
    process = start_training(repository, folder, overrides, kill_at, 4 * steps)
    process.join()
    assert process.exitcode == -9, folder.with_name("killed.log").read_text()
    for name in ("last", "best"):
        state = read_checkpoint(folder / "checkpoints" / f"{name}.ckpt")
        assert state["global_step"] == steps
    process = start_training(repository, folder, [*overrides, "ckpt_path=last"])
    process.join()
    assert process.exitcode == 0, folder.with_name("killed.log").read_text()
    assert_same_run(reference, folder)


def test_after_an_error_a_run_resumes_from_a_state_older_than_the_best(
    train_here: Train, tiny_overrides: Overrides, tmp_path: Path
) -> None:
    reference, folder = tmp_path / "reference", tmp_path / "failed"
    more = [*SMALL_BATCHES, HELD_BACK, "monitor=val/f1_micro"]
    overrides = tiny_overrides(*more, "callbacks.checkpoint.save_weights_only=true", model="title")
    train_here(reference, overrides)
    steps = checkpoint(reference)["global_step"] // 4

    def fail() -> None:
        raise RuntimeError("in the last epoch")

    patch = at_step(4 * steps, fail)
    with pytest.raises(RuntimeError, match="in the last epoch"):
        train_here(folder, overrides)
    patch.undo()
    # The held-back best is written after the error; the newest state was never copied.
    assert checkpoint(folder, "best")["global_step"] > steps
    assert checkpoint(folder)["global_step"] == steps
    train_here(folder, [*overrides, "ckpt_path=last"])
    assert_same_run(reference, folder)


def interrupt(number: int, times: int = 1) -> Callable[[], None]:
    def send() -> None:
        for _ in range(times):
            os.kill(os.getpid(), number)

    return send


@pytest.mark.slow
@SAVE_MODES
def test_signals_finish_and_save_the_step(
    mode: str, reference: Path, train_here: Train, tiny_overrides: Overrides, tmp_path: Path
) -> None:
    last = tmp_path / "checkpoints" / "last.ckpt"
    overrides = tiny_overrides(*SMALL_BATCHES, mode)
    steps = len(range(0, 9))  # batches per epoch
    more: list[str] = []
    # In mid-epoch; in an epoch's last batch and in the validation after it, both of which finish
    # the epoch before saving; in the first batch of an epoch.
    for number, nth_step, saved_step in (
        (signal.SIGTERM, 4, 4),
        (signal.SIGINT, steps - 4, steps),
        (signal.SIGTERM, steps + 1, 2 * steps),
        (signal.SIGINT, 1, 2 * steps + 1),
    ):
        patch = at_step(nth_step, interrupt(number))
        try:
            with pytest.raises(Interrupted) as caught:
                train_here(tmp_path, [*overrides, *more])
        finally:
            patch.undo()
        assert caught.value.code == 128 + number
        assert recorded(tmp_path)["status"] == "interrupted"
        assert read_checkpoint(last)["global_step"] == saved_step
        more = [f"ckpt_path={tmp_path}"]
    train_here(tmp_path, [*overrides, *more])
    assert recorded(tmp_path)["attempts"] == 5
    assert_same_run(reference, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("every", [1, 3])
def test_a_save_due_just_before_a_mid_epoch_validation_is_made_after_it(
    every: int, train_here: Train, tiny_overrides: Overrides, tmp_path: Path
) -> None:
    reference, stopped = tmp_path / "reference", tmp_path / "stopped"
    last = stopped / "checkpoints" / "last.ckpt"
    overrides = tiny_overrides(
        "data.batch_size=8", f"+trainer.val_check_interval={every}", model="title"
    )
    train_here(reference, overrides)

    def fail() -> None:
        raise OSError("as if it had crashed")

    often = [*overrides, "checkpoint_every_n_steps=3"]
    # First in the fifth batch, then in the next batch before a validation. at_step counts each
    # validation as a step, too.
    for nth_step, action, error, saved_step in (
        (5 + 4 // every, fail, OSError, 3),
        (3 if every == 3 else 1, interrupt(signal.SIGINT), Interrupted, 6 if every == 3 else 4),
    ):
        patch = at_step(nth_step, action)
        try:
            with pytest.raises(error):
                train_here(stopped, [*often, *([f"ckpt_path={stopped}"] if last.exists() else [])])
        finally:
            patch.undo()
        assert read_checkpoint(last)["global_step"] == saved_step
    train_here(stopped, [*often, f"ckpt_path={stopped}"])
    assert_same_run(reference, stopped)


def test_a_best_saved_before_its_epoch_ends_contains_the_train_loss(
    train_here: Train, tiny_overrides: Overrides, tmp_path: Path
) -> None:
    # With a validation every second epoch, the best is saved in the validation.
    every = ("+trainer.check_val_every_n_epoch=2", "monitor=val/loss")
    overrides = tiny_overrides(*SMALL_BATCHES, *every, model="title")
    first, resumed = tmp_path / "first", tmp_path / "resumed"
    train_here(first, overrides)
    train_here(resumed, [*overrides, f"ckpt_path={first}/checkpoints/best.ckpt"])
    assert rows(first) == rows(resumed)
    for entry in ("state_dict", "optimizer_states", "callbacks"):
        assert list(differences(checkpoint(first)[entry], checkpoint(resumed)[entry])) == []


def test_a_second_signal_ends_the_run_at_once(
    train_here: Train, tiny_overrides: Overrides, tmp_path: Path
) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    patch = at_step(3, interrupt(signal.SIGINT, times=2))
    try:
        with pytest.raises(Interrupted):
            train_here(tmp_path, tiny_overrides(*SMALL_BATCHES, model="title"))
    finally:
        patch.undo()
    assert recorded(tmp_path)["status"] == "interrupted"
    assert not (tmp_path / "checkpoints").exists()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


@pytest.mark.slow
@SAVE_MODES
def test_slurm_requeues_a_run_that_then_resumes_exactly(
    mode: str, reference: Path, repository: Path, tiny_overrides: Overrides, tmp_path: Path
) -> None:
    folder, requests = tmp_path / "run", tmp_path / "requests"
    scontrol = tmp_path / "scontrol"
    last = folder / "checkpoints" / "last.ckpt"
    last_at_requeue = tmp_path / "last.ckpt at requeue"
    scontrol.write_text(f'#!/bin/sh\necho "$@" > "{requests}"; cp "{last}" "{last_at_requeue}"\n')
    scontrol.chmod(0o755)
    overrides = tiny_overrides(*SMALL_BATCHES, mode)
    process = start_training(repository, folder, overrides, act_as_slurm_task, tmp_path)
    process.join()
    log = folder.with_name("run.log").read_text()
    assert process.exitcode == 143 and recorded(folder)["status"] == "interrupted", log
    assert requests.read_text() == "requeue 7\n", log
    # Lightning's own checkpoint, after a complete step, where no other run mistakes it for its own.
    assert read_checkpoint(folder / "hpc_ckpt_1.ckpt")["global_step"] == 3
    assert read_checkpoint(last_at_requeue)["global_step"] == 3
    assert read_checkpoint(last)["global_step"] == 5
    process = start_training(repository, folder, [*overrides, "ckpt_path=last"])
    process.join()
    assert process.exitcode == 0, folder.with_name("run.log").read_text()
    assert_same_run(reference, folder)


@pytest.mark.slow
def test_slurm_requeues_only_once_whichever_task_gets_the_signal_first(
    repository: Path, tiny_overrides: Overrides, tmp_path: Path
) -> None:
    folder, requests, scontrol = tmp_path / "run", tmp_path / "requests", tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> "{requests}"\n')
    scontrol.chmod(0o755)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    overrides = tiny_overrides(
        *SMALL_BATCHES, "trainer.devices=2", "+trainer.strategy=ddp", model="title"
    )
    tasks = [
        start_training(repository, folder, overrides, act_as_slurm_task, tmp_path, task, 2, port)
        for task in range(2)
    ]
    for process in tasks:
        process.join(120)
    codes = [process.exitcode for process in tasks]
    for process in tasks:
        process.kill()
    log = folder.with_name("run.log").read_text()
    assert codes == [143, 143], log
    assert requests.read_text() == "requeue 7\n", log
    assert read_checkpoint(folder / "hpc_ckpt_1.ckpt")["global_step"] == 3
    assert read_checkpoint(folder / "checkpoints" / "last.ckpt")["global_step"] == 5


# Full disks.


def assert_full_disk_is_reported(folder: Path, train: Callable[[], Any]) -> None:
    with pytest.raises(UserError, match=r"could not be written: .*MiB free") as caught:
        train()
    assert str(folder / "checkpoints") in str(caught.value)
    load_model(folder / "checkpoints" / "last.ckpt")
    assert not list(folder.rglob(".*.*.*"))


@BACKGROUND
def test_a_file_size_limit_is_reported(
    background: bool, reference: Path, train_here: Train, tiny_overrides: Overrides, tmp_path: Path
) -> None:
    overrides = tiny_overrides(
        *SMALL_BATCHES, "checkpoint_every_n_steps=2", f"checkpoint_in_background={background}"
    )
    half = (reference / "checkpoints" / "last.ckpt").stat().st_size // 2
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    last = tmp_path / "checkpoints" / "last.ckpt"
    patch = at_step(4, lambda: limit_file_size(half, last))
    try:
        assert_full_disk_is_reported(tmp_path, lambda: train_here(tmp_path, overrides))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        patch.undo()
    result = recorded(tmp_path)
    assert result["status"] == "failed" and "last.ckpt" in result["error"]
    assert read_checkpoint(last)["global_step"] == 2


@BACKGROUND
def test_a_full_disk_is_reported(
    background: bool, reference: Path, train_here: Train, tiny_overrides: Overrides, tmp_path: Path
) -> None:
    size = int(2.5 * (reference / "checkpoints" / "last.ckpt").stat().st_size)
    with small_disk(tmp_path / "disk", size) as disk:
        folder = disk.folder / "run"
        overrides = tiny_overrides(
            *SMALL_BATCHES, "checkpoint_every_n_steps=2", f"checkpoint_in_background={background}"
        )
        assert_full_disk_is_reported(folder, lambda: train_here(folder, overrides))
        assert recorded(folder)["status"] in ("failed", "interrupted")


# What a resumed run takes over, and which settings must be the same.


def test_resuming_an_early_stopped_run_trains_no_further(
    train_here: Train,
    tiny_overrides: Overrides,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    overrides = tiny_overrides(
        "trainer.max_epochs=9", "callbacks.early_stopping.patience=1", "optimizer.lr=1e-9",
        model="title",
    )  # fmt: skip
    first = train_here(tmp_path, overrides)
    before = rows(tmp_path)
    assert first["epochs"] == len(before) < 9
    resumed = train_here(tmp_path, [*overrides, "ckpt_path=last", "trainer.max_epochs=12"])
    assert rows(tmp_path) == before and resumed["epochs"] == first["epochs"]
    for key in ("val", "test", "monitor_value"):
        assert resumed[key] == first[key]
    assert f"it was stopped early, after {first['epochs']} epochs" in capsys.readouterr().out
    # The first epochs count for a larger patience, so that the run is as one that began with it.
    overrides += ["ckpt_path=last", "callbacks.early_stopping.patience=3"]
    assert train_here(tmp_path, overrides)["epochs"] == first["epochs"] + 2
    resumed = train_here(tmp_path, [*overrides, "callbacks.early_stopping=null"])
    assert resumed["epochs"] == 9 and "to train" not in capsys.readouterr().out
    train_here(tmp_path, [*overrides, "callbacks.early_stopping=null"])
    assert "its 9 epochs are done; to train on, resume it with a larger trainer.max_epochs" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize("mode", ["checkpoint_min_seconds=0", HELD_BACK])
def test_a_run_cut_by_max_steps_in_mid_epoch_resumes_exactly(
    mode: str, train_here: Train, tiny_overrides: Overrides, tmp_path: Path
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    overrides = tiny_overrides(*SMALL_BATCHES, "scheduler=constant", mode, model="title")
    train_here(whole, [*overrides, "trainer.max_epochs=3"])
    steps = checkpoint(whole)["global_step"] // 3
    # In the second epoch, in the third, and at the end of the third.
    for limit in (steps + 4, 2 * steps + 1, 3 * steps):
        more = [f"ckpt_path={cut}"] if cut.exists() else []
        train_here(cut, [*overrides, "trainer.max_epochs=-1", f"+trainer.max_steps={limit}", *more])
        assert read_checkpoint(cut / "checkpoints" / "last.ckpt")["global_step"] == limit
    assert_same_run(whole, cut)


def test_a_run_cut_by_max_time_resumes_with_more_time(
    train_here: Train, tiny_overrides: Overrides, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    overrides = tiny_overrides(*SMALL_BATCHES, "trainer.max_epochs=3", model="title")
    train_here(whole, overrides)
    steps = checkpoint(whole)["global_step"] // 3
    seconds = [0.0]
    monkeypatch.setattr(Timer, "time_elapsed", lambda *_: seconds[0])
    an_hour, a_day = "+trainer.max_time=00:01:00:00", "+trainer.max_time=01:00:00:00"
    patch = at_step(steps + 4, lambda: seconds.__setitem__(0, 3601.0))
    try:
        train_here(cut, [*overrides, an_hour])
    finally:
        patch.undo()
    stopped = read_checkpoint(cut / "checkpoints" / "last.ckpt")["global_step"]
    assert steps < stopped < 2 * steps
    # Without more time nothing is trained.
    before = rows(cut)
    train_here(cut, [*overrides, an_hour, f"ckpt_path={cut}"])
    assert rows(cut) == before
    train_here(cut, [*overrides, a_day, f"ckpt_path={cut}"])
    for entry in ("state_dict", "optimizer_states", "global_step", "epoch"):
        assert list(differences(checkpoint(whole)[entry], checkpoint(cut)[entry])) == []
    # The validation at the cut and the part of the epoch before it have rows of their own.
    epoch_ends = [row for row in rows(cut) if int(row["step"]) != stopped]
    assert epoch_ends == rows(whole)


def test_a_resumed_run_takes_over_the_best_checkpoint(
    trained_run: Path, train_here: Train, tiny_overrides: Overrides, tmp_path: Path
) -> None:
    # Both epochs are done, so the resumed run trains no further.
    first = recorded(trained_run)
    path = trained_run / "checkpoints" / "last.ckpt"
    result = train_here(tmp_path, tiny_overrides(f"ckpt_path={path}"))
    for key in ("val", "test", "monitor_value", "epochs"):
        assert result[key] == first[key]
    assert list(differences(checkpoint(tmp_path, "best"), checkpoint(trained_run, "best"))) == []


def test_a_resumed_run_takes_over_the_last_saved_score(
    train_here: Train, tiny_overrides: Overrides, tmp_path: Path
) -> None:
    # No score reaches 0.5, so the second epoch, after resuming, is no better than the first and
    # saves no best.
    monitor = "monitor=val/f1_micro_at_0.5"
    overrides = tiny_overrides("optimizer.lr=1e-9", monitor, model="title")
    first = train_here(tmp_path, [*overrides, "trainer.max_epochs=1"])
    train_here(tmp_path, [*overrides, "trainer.max_epochs=2", "ckpt_path=last"])
    assert len(rows(tmp_path)) == 2
    states = checkpoint(tmp_path, "last")["callbacks"]
    saver = next(state for name, state in states.items() if name.startswith("ModelCheckpoint"))
    assert saver["current_score"] == first["monitor_value"]


@BACKGROUND
def test_a_state_that_is_last_and_best_is_written_once(
    background: bool, train_here: Train, tiny_overrides: Overrides, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    # The first epoch is the best so far.
    one, two = tmp_path / "one", tmp_path / "two"
    mode = f"checkpoint_in_background={background}"
    train_here(one, tiny_overrides("trainer.max_epochs=1", mode))
    last, best = (one / "checkpoints" / f"{name}.ckpt" for name in ("last", "best"))
    assert last.samefile(best)

    def refuse(source: Path, target: Path) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", refuse)
        train_here(two, tiny_overrides("trainer.max_epochs=1", mode))
    assert not (two / "checkpoints" / "last.ckpt").samefile(two / "checkpoints" / "best.ckpt")
    assert_same_run(one, two)
    # A later write leaves other hard links to the old file alone.
    other, content = tmp_path / "other link", last.read_bytes()
    os.link(last, other)
    train_here(one, tiny_overrides(f"ckpt_path={last}", "trainer.max_epochs=3"))
    assert checkpoint(one)["epoch"] == 2
    assert other.read_bytes() == content


def test_a_weights_only_best_is_small_and_the_run_resumes_exactly(
    train_here: Train, tiny_overrides: Overrides, tmp_path: Path
) -> None:
    whole, slim = tmp_path / "whole", tmp_path / "slim"
    for folder in (whole, slim):
        # No step changes the loss: the first epoch stays the best one, also after a resume.
        settings = ["monitor=val/loss", "monitor_mode=min", "optimizer.lr=1e-12"]
        settings.append(f"callbacks.checkpoint.save_weights_only={folder == slim}")
        train_here(folder, tiny_overrides("trainer.max_epochs=1", *settings, model="title"))
        more = ["trainer.max_epochs=2", "ckpt_path=last", *settings]
        train_here(folder, tiny_overrides(*more, model="title"))
    assert list(differences(checkpoint(whole), checkpoint(slim))) == []
    assert rows(whole) == rows(slim)
    bests = [read_checkpoint(folder / "checkpoints" / "best.ckpt") for folder in (whole, slim)]
    assert bests[0].keys() - bests[1].keys() == {"optimizer_states"}
    assert bests[0]["epoch"] == bests[1]["epoch"] == 0
    best, last = (slim / "checkpoints" / f"{name}.ckpt" for name in ("best", "last"))
    assert best.stat().st_size < last.stat().st_size
    with pytest.raises(
        CheckpointError, match=r"no .optimizer_states., so .* last\.ckpt of the run"
    ):
        train_here(tmp_path / "new", tiny_overrides(f"ckpt_path={best}", model="title"))


@pytest.mark.parametrize("which", ["other network", "other score", "not a checkpoint", "absent"])
def test_a_best_that_may_be_of_another_run_is_not_copied(
    which: str, trained_run: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoints"
    shutil.copytree(trained_run / "checkpoints", folder)
    last = read_checkpoint(folder / "last.ckpt")
    (saver,) = (s for key, s in last["callbacks"].items() if key.startswith("ModelCheckpoint"))
    if which == "other network":
        shutil.copy(tiny_checkpoint, folder / "best.ckpt")
    elif which == "other score":
        saver["best_model_score"] = saver["best_model_score"] + 0.5
    elif which == "not a checkpoint":
        (folder / "best.ckpt").write_text("precious")
    else:
        (folder / "best.ckpt").unlink()
    copy_best(last, folder / "last.ckpt", tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=1", r"seed \(0 there, 1 here\)"),
        ("data.batch_size=16", r"data\.batch_size \(32 there, 16 here\)"),
        ("model.dropout=0.1", r"dropout: 0\.5 there, 0\.1 here"),
        ("optimizer.lr=0.5", r"optimizer\.lr \(0\.003 there, 0\.5 here\)"),
        (
            "optimizer=sgd",
            r"optimizer\._target_ \('torch\.optim\.AdamW' there, 'torch\.optim\.SGD' h",
        ),
        ("loss=focal", r"loss\.\w+ \("),
        (
            "model.branches.poster_resnet.input.augment=null",
            r"poster_resnet\.input\.augment\.\w+ \([^)]* there, not set here\)",
        ),
        ("model.branches.title_tfidf.lr_scale=0", r"title_tfidf\.lr_scale \(0\.15 there, 0 here\)"),
        ("trainer.accumulate_grad_batches=2", r"grad_batches \(not set there, 2 here\)"),
    ],
    ids=lambda value: value.partition("=")[0],
)
def test_resuming_with_other_settings_is_refused(
    override: str, message: str, train_here: Train, tiny_overrides: Overrides, trained_run: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    path = trained_run / "checkpoints" / "last.ckpt"
    plus = "++" if override.startswith("trainer.") else ""
    with pytest.raises(CheckpointError, match=message) as caught:
        train_here(tmp_path, tiny_overrides(f"ckpt_path={path}", plus + override))
    assert str(path) in str(caught.value)


@pytest.mark.slow
def test_a_run_with_a_frozen_branch_resumes_exactly(
    repository: Path, tiny_overrides: Overrides, tmp_path: Path
) -> None:
    frozen = "model.branches.title_tfidf.lr_scale=0"
    overrides = tiny_overrides(*SMALL_BATCHES, "trainer.max_epochs=2", frozen)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    last = killed / "checkpoints" / "last.ckpt"
    often = [*overrides, "checkpoint_every_n_steps=3"]
    for folder, settings, before, code in (
        (whole, overrides, (), 0),
        (killed, often, (kill_at, 8), -9),
        (killed, [*often, f"ckpt_path={last}"], (), 0),
    ):
        process = start_training(repository, folder, settings, *before)
        process.join()
        assert process.exitcode == code, folder.with_name(f"{folder.name}.log").read_text()
    assert_same_run(whole, killed)
    # The branch keeps its initial weights and statistics; weight averaging keeps them, too.
    first = tiny_overrides("trainer.max_epochs=1", "++trainer.limit_train_batches=1", frozen)
    process = start_training(repository, tmp_path / "first", first)
    process.join()
    states = [
        read_checkpoint(folder / "checkpoints" / "last.ckpt")["state_dict"]
        for folder in (whole, tmp_path / "first")
    ]
    names = [name for name in states[0] if "title_tfidf" in name]
    assert names and all(torch.equal(states[0][name], states[1][name]) for name in names)
    assert not all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.slow
def test_lbfgs_resumes_exactly(repository: Path, tiny_overrides: Overrides, tmp_path: Path) -> None:
    """The checkpoint contains the curvature estimate."""
    overrides = [
        *(override for override in tiny_overrides() if "model." not in override),
        "model/branch=[title_linear,title_year]",
        "model.members=3",
        "data.folds=3",
        "data.batch_size=null",
        "optimizer=lbfgs",
        "optimizer.max_iter=4",
        "scheduler=constant",
        "trainer.max_epochs=4",
        "callbacks.checkpoint.save_weights_only=true",
    ]
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    first = start_training(repository, whole, overrides)
    first.join()
    assert first.exitcode == 0, whole.with_name("whole.log").read_text()
    killed = start_training(repository, folder, overrides, kill_at, 15)
    killed.join()
    assert killed.exitcode == -9, folder.with_name("killed.log").read_text()
    last = folder / "checkpoints" / "last.ckpt"
    resumed = start_training(repository, folder, [*overrides, f"ckpt_path={last}"])
    resumed.join()
    assert resumed.exitcode == 0, folder.with_name("killed.log").read_text()
    assert_same_run(whole, folder)


class Threads(pl.Callback):
    """Records the number of threads of each step."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def on_train_batch_start(self, *_: Any) -> None:
        with self.path.open("a") as file:
            file.write(f"{torch.get_num_threads()}\n")


def test_a_resumed_run_uses_as_many_threads_as_before(
    train_here: Train, tiny_overrides: Overrides, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of threads decides the order of additions, and so their rounding."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    log = tmp_path / "threads"
    settings = [
        *tiny_overrides(model="title"),
        f"+callbacks.threads._target_={Threads.__module__}.Threads",
        f"+callbacks.threads.path={log}",
    ]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        result = train_here(tmp_path / "run", [*settings, "trainer.max_epochs=1"])
        assert result["threads"] == 1
        torch.set_num_threads(2)
        resumed = [*settings, "trainer.max_epochs=2", f"ckpt_path={tmp_path / 'run'}"]
        train_here(tmp_path / "run", resumed)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert set(log.read_text().split()) == {"1"}


def test_harmless_settings_may_change(
    trained_run: Path, train_here: Train, tiny_overrides: Overrides, tmp_path: Path
) -> None:
    result = train_here(
        tmp_path,
        tiny_overrides(
            f"ckpt_path={trained_run}", "trainer.max_epochs=3", "checkpoint_every_n_steps=1",
            "trainer.log_every_n_steps=1", "data.workers=2", f"data.cache_dir={tmp_path}/cache",
        ),
    )  # fmt: skip
    assert result["status"] == "completed" and result["epochs"] == 3


def test_deterministic_algorithms(
    train_here: Train, tiny_overrides: Overrides, tmp_path: Path
) -> None:
    try:
        result = train_here(tmp_path, tiny_overrides("trainer.deterministic=true"))
    finally:
        torch.use_deterministic_algorithms(False)
    assert result["status"] == "completed"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="takes a GPU")
def test_resuming_on_a_gpu(repository: Path, tiny_overrides: Overrides, tmp_path: Path) -> None:
    # With deterministic algorithms, within 1e-3 of each tensor's largest value.
    overrides = [
        override
        for override in tiny_overrides(*SMALL_BATCHES, "trainer.deterministic=true")
        if not override.startswith("trainer.accelerator")
    ] + ["trainer.accelerator=gpu", "checkpoint_every_n_steps=3"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    last = killed / "checkpoints" / "last.ckpt"
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    for folder, more, before, code in (
        (whole, [], (), 0),
        (killed, [], (kill_at, 17), -9),
        (killed, [f"ckpt_path={last}"], (), 0),
    ):
        process = start_training(repository, folder, [*overrides, *more], *before)
        process.join()
        assert process.exitcode == code, folder.with_name(f"{folder.name}.log").read_text()
    one, other = (load_model(f / "checkpoints" / "last.ckpt").network for f in (whole, killed))
    for name, value in one.state_dict().items():
        torch.testing.assert_close(
            other.state_dict()[name], value, rtol=0, atol=1e-3 * float(value.abs().max() + 1e-6)
        )
    for row, expected in zip(rows(killed), rows(whole), strict=True):
        assert float(row["val/loss"]) == pytest.approx(float(expected["val/loss"]), rel=1e-3)
