"""Checkpoints are written completely, in order, and with the state at the time of the save."""

from __future__ import annotations

import copy
import os
import threading
from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from genre_lightning.checkpoint.card import TRAINING_KEY
from genre_lightning.training.callbacks import checkpoint_io
from genre_lightning.training.callbacks.checkpoint_io import WholeFileIO


@pytest.fixture
def state() -> dict[str, Any]:
    """A checkpoint like Lightning's, with tensors that a step changes in place."""
    network = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3))
    network = network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.rand(4, 2, 8, 8)).sum().backward()
    optimizer.step()
    return {
        "state_dict": network.state_dict(),
        "optimizer_states": [optimizer.state_dict()],
        "callbacks": {"best": torch.tensor(0.5), "rows": [{"lr": 0.1}], "pair": (1, "two")},
        TRAINING_KEY: {"seed": 3},
    }


class Gate:
    """Work that blocks until it is released."""

    def __init__(self) -> None:
        self.open = threading.Event()

    def __call__(self) -> None:
        assert self.open.wait(60)


def test_a_background_save_copies_the_state(state: dict[str, Any], tmp_path: Path) -> None:
    at_once, later = WholeFileIO(), WholeFileIO(background=True)
    at_once.save_checkpoint(state, tmp_path / "at once")
    expected = copy.deepcopy(state["state_dict"])
    gate = Gate()
    later.run_when_saved(gate)
    # Saved while the gate is closed, so it is written after the changes below.
    gated, later._futures = later._futures, []
    later.save_checkpoint(state, tmp_path / "later")
    for tensor in state["state_dict"].values():
        tensor.zero_()
    state["optimizer_states"][0]["state"][0]["exp_avg"].zero_()
    state["callbacks"]["rows"].append({"lr": 0.2})
    assert not (tmp_path / "later").exists()
    gate.open.set()
    later.teardown()
    assert gated[0].done()
    one, two = (torch.load(tmp_path / name, weights_only=True) for name in ("at once", "later"))
    assert torch.equal(two["state_dict"]["0.weight"], expected["0.weight"])
    assert isinstance(two["state_dict"], OrderedDict)
    assert two["state_dict"]._metadata == state["state_dict"]._metadata  # type: ignore[attr-defined]
    stride = one["state_dict"]["0.weight"].stride()
    assert two["state_dict"]["0.weight"].stride() == stride
    # The bytes differ, since the archive contains the file's name.
    assert one.keys() == two.keys() and two["callbacks"] == one["callbacks"]
    for name, tensor in one["optimizer_states"][0]["state"][0].items():
        assert torch.equal(tensor, two["optimizer_states"][0]["state"][0][name]), name


def test_a_file_is_removed_only_after_its_replacement_is_written(
    state: dict[str, Any], tmp_path: Path
) -> None:
    io = WholeFileIO(background=True)
    old, new, link = (tmp_path / name for name in ("old", "new", "link"))
    io.save_checkpoint(state, old)
    io.finish()
    gate = Gate()
    seen: list[list[str]] = []
    io.run_when_saved(gate)
    gated, io._futures = io._futures, []  # otherwise the next save waits for the gate
    io.save_checkpoint(state, new)
    io.run_when_saved(lambda: seen.append(sorted(path.name for path in tmp_path.iterdir())))
    io.link(link)
    io.remove_checkpoint(old)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old"]
    gate.open.set()
    io.teardown()
    assert gated[0].done() and seen == [["new", "old"]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "new"]
    assert link.samefile(new)


def score_of(path: Path) -> Any:
    return torch.load(path, weights_only=True)["callbacks"]["best"].item()


def with_score(state: dict[str, Any], score: float) -> dict[str, Any]:
    """The state with another score, set in place like training does."""
    state["callbacks"]["best"].fill_(score)
    return state


@pytest.mark.parametrize("background", [False, True], ids=["at once", "in the background"])
def test_only_the_newest_checkpoint_of_each_file_is_held_back(
    background: bool, state: dict[str, Any], tmp_path: Path
) -> None:
    io = WholeFileIO(background, min_seconds=1000)
    best, last, record = (tmp_path / name for name in ("best", "last", "record"))

    def note(score: float) -> None:
        record.write_text(str(score))

    def epoch(score: float, improved: bool) -> None:
        io.save_checkpoint(with_score(state, score), best if improved else last)
        if improved:
            io.link(last)
        io.run_when_saved(partial(note, score))

    epoch(0.1, improved=True)
    io._wait()
    assert score_of(best) == score_of(last) == pytest.approx(0.1) and best.samefile(last)
    epoch(0.2, improved=True)
    epoch(0.3, improved=False)
    with_score(state, 0.9)
    assert score_of(best) == score_of(last) == pytest.approx(0.1) and record.read_text() == "0.1"
    io.finish()
    assert score_of(best) == pytest.approx(0.2) and score_of(last) == pytest.approx(0.3)
    assert record.read_text() == "0.3"
    epoch(0.4, improved=False)
    epoch(0.5, improved=True)
    # A new file is written at once, since Lightning looks up which names are taken.
    io.save_checkpoint(with_score(state, 0.6), tmp_path / "other")
    io._wait()
    assert score_of(tmp_path / "other") == pytest.approx(0.6)
    epoch(0.7, improved=True)
    io.remove_checkpoint(tmp_path / "other")
    io._wait()
    assert (tmp_path / "other").exists() and score_of(last) == pytest.approx(0.5)
    io.teardown()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "last", "record"]
    assert score_of(best) == pytest.approx(0.7) and best.samefile(last)


def test_held_back_checkpoints_are_written_with_the_next_one_due(
    state: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(checkpoint_io.time, "monotonic", lambda: now)
    io = WholeFileIO(min_seconds=2)
    best, last = tmp_path / "best", tmp_path / "last"
    for path in (best, last):
        io.save_checkpoint(with_score(state, 0.1), path)
    now = 101.9
    io.save_checkpoint(with_score(state, 0.2), best)
    assert score_of(best) == pytest.approx(0.1)
    now = 102.1
    io.save_checkpoint(with_score(state, 0.3), last)
    assert score_of(best) == pytest.approx(0.2) and score_of(last) == pytest.approx(0.3)


def test_the_best_is_written_before_the_last_that_contains_its_score(
    state: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    io = WholeFileIO(min_seconds=1000)
    best, last = tmp_path / "best", tmp_path / "last"
    for path in (best, last):
        io.save_checkpoint(state, path)
    # Three epochs, of which the second is the best.
    io.save_checkpoint(state, last)
    io.save_checkpoint(state, best)
    io.link(last)
    io.save_checkpoint(state, last)
    written: list[str] = []
    replace = os.replace

    def watched(source: Path, target: Path) -> None:
        written.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", watched)
    io.finish()
    assert written == ["best", "last"]


@pytest.mark.parametrize("called", ["save", "teardown", "load"])
def test_a_background_error_is_raised_by_the_next_call(
    called: str, state: dict[str, Any], tmp_path: Path
) -> None:
    io = WholeFileIO(background=True)
    good, bad, other = (tmp_path / name for name in ("good", "bad", "other"))
    io.save_checkpoint(state, good)
    bad.mkdir()
    (bad / "file").touch()  # a file can't replace a folder that is not empty
    io.save_checkpoint(state, bad)
    io.remove_checkpoint(good)  # comes after the error, so it is not done
    with pytest.raises(OSError, match="bad"):
        if called == "save":
            io.save_checkpoint(state, other)
        elif called == "load":
            io.load_checkpoint(good)
        else:
            io.teardown()
    assert good.exists() and not other.exists()
    assert not list(tmp_path.glob(".*"))
    io.teardown()  # raises no error twice


def test_teardown_stops_the_thread(state: dict[str, Any], tmp_path: Path) -> None:
    before = threading.active_count()
    io = WholeFileIO(background=True)
    for _ in range(2):
        io.save_checkpoint(state, tmp_path / "file")
        io.teardown()
        assert threading.active_count() == before
