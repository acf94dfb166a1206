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
def honest(trained_run: Path) -> Path:
    """A checkpoint as training writes it."""
    return trained_run / "checkpoints" / "last.ckpt"


@pytest.mark.slow
def test_it_rebuilds_alone_in_another_process(
    honest: Path, tmp_path: Path, repository: Path
) -> None:
    moved = tmp_path / "elsewhere" / "model.ckpt"
    moved.parent.mkdir()
    moved.write_bytes(honest.read_bytes())
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
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=moved.parent, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]", "imported for nothing"
    there, thresholds, genres = torch.load(moved.parent / "logits.pt", weights_only=True)
    here = load_model(honest)
    assert torch.equal(there, logits(here))
    assert torch.equal(thresholds, here.thresholds)
    assert tuple(genres) == here.genres
    assert not (tmp_path / "x").exists()


def test_a_rebuilt_model_does_not_share_memory_with_the_file(honest: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.ckpt"
    copy.write_bytes(honest.read_bytes())
    model = load_model(copy)
    before = logits(model)
    copy.write_bytes(b"")
    assert torch.equal(logits(model), before)


def test_what_it_looks_at(make_checkpoint: Callable[..., Path]) -> None:
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
