"""result.json after every kind of end, and the lock of the run folder."""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from genre_lightning.errors import TrainingError, UserError
from genre_lightning.runs.lock import is_running
from genre_lightning.runs.result import read_result, recorded_run, write_result

KEYS = {
    "status", "monitor", "monitor_value", "epochs", "seconds", "train_samples_per_second",
    "num_parameters", "seed", "overrides", "versions", "wandb_run_id", "val", "test", "attempts",
}  # fmt: skip


def read_json(folder: Path) -> Any:
    return json.loads((folder / "result.json").read_text("utf-8"))


def test_completed_run(tmp_path: Path) -> None:
    with recorded_run(tmp_path, "val/loss", 3, ["seed=3"]) as result:
        result["val"] = {"loss": 0.5}
    actual = read_json(tmp_path)
    assert set(actual) == KEYS
    assert actual["status"] == "completed" and actual["monitor"] == "val/loss"
    assert (
        actual["seed"] == 3 and actual["overrides"] == ["seed=3"] and actual["val"]["loss"] == 0.5
    )
    assert actual["seconds"] >= 0
    assert {"python", "torch", "pytorch-lightning", "genre-lightning"} <= set(actual["versions"])


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (KeyboardInterrupt(), "interrupted"),
        (SystemExit(1), "interrupted"),
        (ValueError("why"), "failed"),
        (MemoryError(), "failed"),
    ],
    ids=lambda value: repr(value),
)
def test_interrupted_and_failed_runs(error: BaseException, status: str, tmp_path: Path) -> None:
    with pytest.raises(type(error)), recorded_run(tmp_path, "m", 0, []) as result:
        result["epochs"] = 2
        raise error
    actual = read_json(tmp_path)
    assert actual["status"] == status and actual["epochs"] == 2
    if status == "failed":
        assert actual["error"] == f"{type(error).__name__}: {error}"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
def test_signal_interrupts_the_run(number: int, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as caught, recorded_run(tmp_path, "m", 0, []):
        os.kill(os.getpid(), number)
        signal.pause()
    assert caught.value.code == 128 + number
    assert read_json(tmp_path)["status"] == "interrupted"
    assert signal.getsignal(number) is before


def test_sigterm_handler_is_unchanged_under_slurm(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    before = signal.getsignal(signal.SIGTERM)
    with recorded_run(tmp_path, "m", 0, []):
        assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("variable", ["LOCAL_RANK", "NODE_RANK", "RANK", "SLURM_PROCID"])
def test_only_the_first_process_writes(variable: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv(variable, "1")
    with recorded_run(tmp_path, "m", 0, []):
        assert not is_running(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_folder_is_locked_while_a_run_uses_it(tmp_path: Path) -> None:
    assert not is_running(tmp_path) and read_result(tmp_path) is None
    with recorded_run(tmp_path, "m", 0, []):
        assert is_running(tmp_path)
        assert read_json(tmp_path)["status"] == "interrupted"  # correct if the run were killed now
        with (
            pytest.raises(UserError, match=f"another process is running in {tmp_path}"),
            recorded_run(tmp_path, "m", 1, []),
        ):
            pytest.fail("two runs in one folder")
    assert not is_running(tmp_path) and read_json(tmp_path)["status"] == "completed"


def test_attempts_add_up(tmp_path: Path) -> None:
    with pytest.raises(ValueError), recorded_run(tmp_path, "m", 0, []) as result:
        result["wandb_run_id"] = "abc"
        raise ValueError
    write_result(tmp_path, {**read_json(tmp_path), "seconds": 100.0})
    with recorded_run(tmp_path, "m", 0, []) as result:
        assert result["wandb_run_id"] == "abc"
    actual = read_json(tmp_path)
    assert actual["attempts"] == 2 and 100 <= actual["seconds"] < 200
    assert actual["status"] == "completed" and "error" not in actual


@pytest.mark.parametrize("trained", [True, False])
def test_completed_run_keeps_its_result_until_it_resumes(trained: bool, tmp_path: Path) -> None:
    with recorded_run(tmp_path, "m", 0, []) as result:
        result["test"] = {"loss": 0.5}
    before = read_json(tmp_path)
    with pytest.raises(UserError), recorded_run(tmp_path, "m", 0, []) as result:
        assert read_json(tmp_path) == before
        if trained:
            write_result(tmp_path, result)
            assert read_json(tmp_path)["status"] == "interrupted"
        raise UserError("why")
    actual = read_json(tmp_path)
    if trained:
        assert actual["status"] == "failed" and actual["attempts"] == 2 and actual["test"] == {}
    else:
        assert actual == before


@pytest.mark.parametrize(
    "error",
    [UserError("other settings"), TrainingError("nan"), RuntimeError("in a step")],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("ended", [KeyboardInterrupt(), OSError("no space")], ids=repr)
@pytest.mark.parametrize("trained", [True, False], ids=["trained", "not trained"])
def test_only_an_attempt_refused_before_training_keeps_the_earlier_result(
    error: Exception, ended: BaseException, trained: bool, tmp_path: Path
) -> None:
    with pytest.raises(type(ended)), recorded_run(tmp_path, "m", 0, []) as result:
        result["epochs"] = 3
        raise ended
    before = read_json(tmp_path)
    with pytest.raises(type(error)), recorded_run(tmp_path, "m", 1, ["seed=1"]) as result:
        assert read_json(tmp_path)["status"] == "interrupted"
        if trained:
            write_result(tmp_path, {**result, "epochs": 4})
        raise error
    actual = read_json(tmp_path)
    if type(error) is UserError and not trained:
        assert actual == before
    else:
        assert (actual["status"], actual["attempts"], actual["seed"]) == ("failed", 2, 1)
        assert str(error) in actual["error"]


@pytest.mark.parametrize("text", ["", "[1]", "{}", '{"status": "odd"}', "\xff"], ids=repr)
def test_invalid_result_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(text, "latin-1")
    with pytest.raises(UserError, match=str(tmp_path / "result.json")):
        read_result(tmp_path)


def test_result_is_valid_json_and_written_whole(tmp_path: Path) -> None:
    write_result(tmp_path, {"old": 1})
    write_result(tmp_path, {"val": {"a": math.nan, "b": [math.inf, 1.0]}, "title": "Zoë"})
    assert read_json(tmp_path) == {"val": {"a": None, "b": [None, 1.0]}, "title": "Zoë"}
    with pytest.raises(TypeError):
        write_result(tmp_path, {"not json": object()})
    assert read_json(tmp_path)["title"] == "Zoë"
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
