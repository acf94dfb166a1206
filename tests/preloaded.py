"""Imported once by the process that others are forked from: what most of them need."""

import gc
import importlib

from genre_lightning.lean_imports import load_lightning

load_lightning()
for name in (
    "iterstrat.ml_stratifiers",  # of a split that is not in the cache, as those of tests
    "rich.console",
    "tests.running",  # with pytest, which it needs
    "genre_lightning.ask.server",
    "genre_lightning.comparison.leaderboard",
    "genre_lightning.data.datamodule",
    "genre_lightning.predicting.predictor",
    "genre_lightning.report.evaluation",
    "genre_lightning.training.callbacks.epoch_log",
    "genre_lightning.training.callbacks.history",
    "genre_lightning.training.callbacks.resume",
    "genre_lightning.training.module",
    "train",
):
    importlib.import_module(name)

# What is here stays, and no collection in a fork copies its memory.
gc.freeze()
