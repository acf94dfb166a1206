"""Names of a dataset's splits; imported before PyTorch is."""

from __future__ import annotations

SPLITS = ("train", "val", "test")
#: Names for people to read.
SPLIT_WORDS = {"train": "training", "val": "validation", "test": "test"}
