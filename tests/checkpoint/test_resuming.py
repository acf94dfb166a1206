"""What of a checkpoint a training that goes on may act on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from genre_lightning.checkpoint.card import read_checkpoint
from genre_lightning.checkpoint.resuming import keep_paths_inside


@pytest.mark.parametrize(
    "named",
    ["{victim}", "{folder}/../victim.txt", "..", ".", "/", "", "{folder}/..", "best.ckpt/..",
     "notes.txt", "{folder}/sub"],
)  # fmt: skip
def test_no_file_outside_of_the_folder_is_named(named: str, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    (folder / "sub").mkdir(parents=True)
    victim = tmp_path / "victim.ckpt"
    for file in (victim, folder / "best.ckpt", folder / "notes.txt"):
        file.touch()
    name = named.format(victim=victim, folder=folder)
    state: dict[str, Any] = {
        "dirpath": "/",
        "best_model_score": torch.tensor(0.0),
        "best_model_path": name,
        "kth_best_model_path": name,
        "last_model_path": name,
        "kth_value": torch.tensor(0.0),
        "best_k_models": {name: torch.tensor(0.0)},
    }
    checkpoint: dict[str, Any] = {"callbacks": {"AnyCheckpoint": state, "x": 1}}
    keep_paths_inside(checkpoint, folder)
    assert state["best_k_models"] == {} and state["best_model_score"] is None
    assert not any(state[f"{which}_model_path"] for which in ("best", "kth_best", "last"))
    assert state["dirpath"] == str(folder)


@pytest.mark.parametrize("score", [0.5, 0.75], ids=["the one", "saved later"])
def test_the_folders_own_best_is_kept(score: float, tiny_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(tiny_checkpoint)
    checkpoint["callbacks"] = {"ModelCheckpoint{}": {"best_model_score": torch.tensor(score)}}
    best = tmp_path / "best.ckpt"
    torch.save(checkpoint, best)
    state = {
        "dirpath": "/old/place",
        "best_model_score": torch.tensor(0.5),
        "best_model_path": "/old/place/best.ckpt",
        "best_k_models": {"/old/place/best.ckpt": torch.tensor(0.5)},
    }
    keep_paths_inside({"callbacks": {"ModelCheckpoint{}": state}}, tmp_path)
    assert state["dirpath"] == str(tmp_path)
    assert state["best_model_path"] == (str(best) if score == 0.5 else "")
    assert state["best_k_models"] == ({str(best): torch.tensor(0.5)} if score == 0.5 else {})
