"""Imported once by the process that others are forked from: only what every training needs."""

import gc
import importlib
import sys

from genre_lightning.lean_imports import load_lightning

load_lightning()
for name in (
    "PIL.Image",
    "iterstrat.ml_stratifiers",  # with scikit-learn: a new dataset is split
    "rich.console",
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
sys.modules["PIL.Image"].init()  # its formats

# What is here stays, and no collection in a fork copies its memory.
gc.freeze()
