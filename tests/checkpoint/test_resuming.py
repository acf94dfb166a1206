"""Limits on what resumed training takes from a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from genre_lightning.checkpoint.card import (
    CHECKPOINT_KEY,
    TRAINING_KEY,
    CheckpointError,
    read_checkpoint,
)
from genre_lightning.checkpoint.model import load_model
from genre_lightning.checkpoint.resuming import check_resumable, keep_paths_inside
from genre_lightning.runs.settings import may_change_on_resume


@pytest.mark.parametrize(
    "template",
    ["{victim}", "{folder}/../victim.txt", "..", ".", "/", "", "{folder}/..", "best.ckpt/..",
     "notes.txt", "{folder}/sub"],
)  # fmt: skip
def test_paths_other_than_checkpoints_of_the_folder_are_dropped(
    template: str, tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoints"
    (folder / "sub").mkdir(parents=True)
    victim = tmp_path / "victim.ckpt"
    for file in (victim, folder / "best.ckpt", folder / "notes.txt"):
        file.touch()
    name = template.format(victim=victim, folder=folder)
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


@pytest.mark.parametrize("score", [0.5, 0.75], ids=["recorded", "saved later"])
def test_only_the_recorded_best_is_kept(
    score: float, tiny_checkpoint: Path, tmp_path: Path
) -> None:
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


@pytest.mark.parametrize("callbacks", [[], {"ModelCheckpoint{}": []}], ids=["callbacks", "state"])
@pytest.mark.parametrize("name", ["best.ckpt", "b" * 300 + ".ckpt"], ids=["existing", "too long"])
def test_an_unusable_best_is_forgotten(
    name: str, callbacks: Any, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    torch.save({**read_checkpoint(tiny_checkpoint), "callbacks": callbacks}, tmp_path / "best.ckpt")
    state: dict[str, Any] = {
        "best_model_score": torch.tensor(0.5),
        "best_model_path": name,
        "best_k_models": {name: torch.tensor(0.5)},
    }
    keep_paths_inside({"callbacks": {"ModelCheckpoint{}": state}}, tmp_path)
    assert state["best_k_models"] == {} and state["best_model_path"] == ""


@pytest.mark.parametrize(
    "settings",
    [
        None,
        {1: 2},
        {"seed": torch.tensor([0, 1])},
        {"seed": [torch.tensor([0, 1])]},
        {"model": {"seed": (torch.tensor([0, 1]),)}},
        {"\x1b[2J": 1},
    ],
    ids=["none", "number", "tensor", "in a list", "in a mapping", "terminal command"],
)
def test_damaged_settings_are_refused(settings: Any, tiny_checkpoint: Path, tmp_path: Path) -> None:
    model = load_model(tiny_checkpoint)
    checkpoint = read_checkpoint(tiny_checkpoint)
    checkpoint |= {"optimizer_states": [], "lr_schedulers": [], "loops": {}, "callbacks": {}}
    checkpoint[TRAINING_KEY] = {"settings": settings, "wandb_run_id": None}
    path = tmp_path / "last.ckpt"
    torch.save(checkpoint, path)
    card = checkpoint[CHECKPOINT_KEY]
    inputs = {name: card[name] for name in ("genres", "inputs")} | {
        "learnt_from": "these",
        "content": {},
    }
    ours = {"seed": [0], "model": {"seed": (0,)}}
    with pytest.raises(CheckpointError, match=r"last\.ckpt: its \w+ is damaged"):
        check_resumable(path, inputs, model.network, ours, may_change_on_resume)
