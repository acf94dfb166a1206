"""result.json tells how a run ended, however it ended."""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from genre_lightning.run_folder import recorded_run, write_result

KEYS = {
    "status", "monitor", "monitor_value", "epochs", "seconds", "train_samples_per_second",
    "num_parameters", "seed", "overrides", "versions", "wandb_run_id", "val", "test",
}  # fmt: skip


def recorded(folder: Path) -> Any:
    return json.loads((folder / "result.json").read_text("utf-8"))


def test_a_completed_run(tmp_path: Path) -> None:
    with recorded_run(tmp_path, "val/loss", 3, ["seed=3"]) as result:
        result["val"] = {"loss": 0.5}
    found = recorded(tmp_path)
    assert set(found) == KEYS
    assert found["status"] == "completed" and found["monitor"] == "val/loss"
    assert found["seed"] == 3 and found["overrides"] == ["seed=3"] and found["val"]["loss"] == 0.5
    assert found["seconds"] >= 0
    assert {"python", "torch", "pytorch-lightning", "genre-lightning"} <= set(found["versions"])


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
def test_other_ends(error: BaseException, status: str, tmp_path: Path) -> None:
    with pytest.raises(type(error)), recorded_run(tmp_path, "m", 0, []) as result:
        result["epochs"] = 2
        raise error
    found = recorded(tmp_path)
    assert found["status"] == status and found["epochs"] == 2
    if status == "failed":
        assert found["error"] == f"{type(error).__name__}: {error}"


def test_sigterm_is_an_interruption(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught, recorded_run(tmp_path, "m", 0, []):
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
    assert caught.value.code == 128 + signal.SIGTERM
    assert recorded(tmp_path)["status"] == "interrupted"
    assert signal.getsignal(signal.SIGTERM) is before


def test_slurm_keeps_its_own_way_with_sigterm(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    before = signal.getsignal(signal.SIGTERM)
    with recorded_run(tmp_path, "m", 0, []):
        assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("variable", ["LOCAL_RANK", "NODE_RANK"])
def test_one_process_of_many_writes(variable: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv(variable, "1")
    with recorded_run(tmp_path, "m", 0, []):
        pass
    assert not (tmp_path / "result.json").exists()


def test_it_is_json_and_whole(tmp_path: Path) -> None:
    write_result(tmp_path, {"old": 1})
    write_result(tmp_path, {"val": {"a": math.nan, "b": [math.inf, 1.0]}, "title": "Zoë"})
    assert recorded(tmp_path) == {"val": {"a": None, "b": [None, 1.0]}, "title": "Zoë"}
    with pytest.raises(TypeError):
        write_result(tmp_path, {"not json": object()})
    assert recorded(tmp_path)["title"] == "Zoë"
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
