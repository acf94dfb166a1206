"""A small random model in place of all-mpnet-base-v2, whose weights tests can't download."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from genre_lightning.inputs.encoders.table import ENCODERS
from genre_lightning.inputs.encoders.weights import find_weights, hash_weights

WIDTH = 16


def write_small_mpnet(folder: Path, blocks: int = 4) -> Path:
    """Write an MPNet of a few random blocks, with MiniLM's tokenizer."""
    from transformers import MPNetConfig, MPNetModel

    shutil.copytree(find_weights(ENCODERS["minilm"]), folder)
    config = MPNetConfig(
        vocab_size=30_522, hidden_size=WIDTH, num_hidden_layers=blocks, num_attention_heads=2,
        intermediate_size=32, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    MPNetModel(config).save_pretrained(folder)
    pooling = folder / "1_Pooling" / "config.json"
    settings = json.loads(pooling.read_text("utf-8")) | {"word_embedding_dimension": WIDTH}
    pooling.write_text(json.dumps(settings), "utf-8")
    return folder


def use_small_mpnet(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Patch the table so that a folder ``FOLDER/mpnet`` counts as all-mpnet-base-v2."""
    monkeypatch.setenv("GENRE_LIGHTNING_ENCODERS", str(folder.parent))
    blocks = json.loads((folder / "config.json").read_text("utf-8"))["num_hidden_layers"]
    # Opened encoders are cached by their specs, so the spec has to depend on the number of blocks.
    stages = (WIDTH,) * min(3, blocks - 1)
    spec = replace(ENCODERS["mpnet"], sha256=hash_weights(folder), width=WIDTH, stage_widths=stages)
    monkeypatch.setitem(ENCODERS, "mpnet", spec)
