"""A model rebuilt from its checkpoint alone."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from genre_lightning.checkpoint.model import load_model
from tests.running import logits


@pytest.fixture(scope="session")
def trained_ckpt(trained_run: Path) -> Path:
    """A checkpoint written by training."""
    return trained_run / "checkpoints" / "last.ckpt"


@pytest.mark.slow
def test_a_model_is_rebuilt_in_another_process(
    trained_ckpt: Path, tmp_path: Path, repository: Path
) -> None:
    moved = tmp_path / "elsewhere" / "model.ckpt"
    moved.parent.mkdir()
    moved.write_bytes(trained_ckpt.read_bytes())
    program = f"""
from __future__ import annotations
import sys
from typing import Any
from genre_lightning.checkpoint.model import load_model
heavy = {{"pytorch_lightning", "lightning", "sklearn", "wandb", "hydra", "omegaconf"}}
model = load_model("model.ckpt")
print(sorted(heavy & set(sys.modules)))
import numpy as np
import torch
from genre_lightning.inputs.encode import encode_items
{inspect.getsource(logits)}
torch.save((logits(model), model.thresholds, model.genres), "logits.pt")
"""
    env = {
        **os.environ,
        "PYTHONPATH": str(repository),
        "GENRE_LIGHTNING_CACHE": str(tmp_path / "x"),
    }
    completed = subprocess.run(
        [sys.executable, "-c", program], cwd=moved.parent, env=env, capture_output=True, text=True
    )
    assert completed.returncode == 0, completed.stderr
    assert completed.stdout.strip() == "[]", "imported for nothing"
    other_logits, thresholds, genres = torch.load(moved.parent / "logits.pt", weights_only=True)
    model = load_model(trained_ckpt)
    assert torch.equal(other_logits, logits(model))
    assert torch.equal(thresholds, model.thresholds)
    assert tuple(genres) == model.genres
    assert not (tmp_path / "x").exists()


def test_a_rebuilt_model_does_not_share_memory_with_the_file(
    trained_ckpt: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.ckpt"
    copy.write_bytes(trained_ckpt.read_bytes())
    model = load_model(copy)
    before = logits(model)
    copy.write_bytes(b"")
    assert torch.equal(logits(model), before)


def test_columns_and_branches_of_a_loaded_model(make_checkpoint: Callable[..., Path]) -> None:
    both = load_model(make_checkpoint())
    assert both.columns == {"title": "text", "poster": "poster"}
    assert list(both.inputs) == list(both.network.branches) == ["title_tfidf", "poster_resnet"]
    assert load_model(make_checkpoint(poster=None)).columns == {"title": "text"}
    assert load_model(make_checkpoint(title=None)).columns == {"poster": "poster"}
    assert both.device == torch.device("cpu") and not both.network.training
    assert both.thresholds.dtype == torch.float32 and both.genres[0] == "Action"


def test_loading_draws_no_random_numbers(make_checkpoint: Callable[..., Path]) -> None:
    path = make_checkpoint()
    state = torch.random.get_rng_state()
    model = load_model(path)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not any(value.is_meta for value in model.network.state_dict().values())
