"""A folder of all-mpnet-base-v2's kind in its place: its weights can't be had where tests run."""

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
    """A few blocks of random weights, with MiniLM's tokenizer."""
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


def take_small_mpnet(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the table take a folder ``FOLDER/mpnet`` for all-mpnet-base-v2."""
    monkeypatch.setenv("GENRE_LIGHTNING_ENCODERS", str(folder.parent))
    blocks = json.loads((folder / "config.json").read_text("utf-8"))["num_hidden_layers"]
    # Encoders that are open are known by what their specs say: so those of one block differ.
    stages = (WIDTH,) * min(3, blocks - 1)
    spec = replace(ENCODERS["mpnet"], sha256=hash_weights(folder), width=WIDTH, stage_widths=stages)
    monkeypatch.setitem(ENCODERS, "mpnet", spec)
