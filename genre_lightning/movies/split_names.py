"""What the splits of a dataset are called; imported before PyTorch is."""

from __future__ import annotations

SPLITS = ("train", "val", "test")
#: What people read.
SPLIT_WORDS = {"train": "training", "val": "validation", "test": "test"}
