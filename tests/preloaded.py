"""Imported once by the process from which others are forked: the modules that most need."""

import gc
import importlib
import importlib.util
import sys

from hydra import compose, initialize_config_dir

from genre_lightning.lean_imports import load_lightning
from genre_lightning.runs.composing import speed_up_composition

load_lightning()
for name in (
    "PIL.Image",
    "iterstrat.ml_stratifiers",  # with scikit-learn: a new dataset is split
    "jinja2",
    "rich.console",
    "scipy.sparse",
    "fsspec.implementations.chained",
    "torch.nested._internal.nested_tensor",
    "torch.utils._device",
    "torch.utils.serialization",
    "tests.running",  # with pytest, which it needs
    "genre_lightning.ask.server",
    "genre_lightning.comparison.charts",
    "genre_lightning.comparison.leaderboard",
    "genre_lightning.comparison.page",
    "genre_lightning.data.datamodule",
    "genre_lightning.data.sharing",
    "genre_lightning.models.branches",
    "genre_lightning.predicting.predictor",
    "genre_lightning.report.evaluation",
    "genre_lightning.report.page",
    "genre_lightning.sweeps.callback",
    "genre_lightning.tracking.loggers",
    "genre_lightning.training.callbacks.epoch_log",
    "genre_lightning.training.callbacks.history",
    "genre_lightning.training.callbacks.pruning",
    "genre_lightning.training.callbacks.resume",
    "genre_lightning.training.module",
    "genre_lightning.training.schedule",
    "train",
):
    importlib.import_module(name)
if importlib.util.find_spec("optuna") is not None:
    for name in (
        "optuna.samplers._tpe.sampler",
        "optuna.storages._rdb.storage",
        "alembic.command",
        "sqlalchemy.dialects.sqlite.pysqlite",
        "genre_lightning.sweeps.study",
    ):
        importlib.import_module(name)
sys.modules["PIL.Image"].init()  # registers the image formats

# Hydra searches for plugins once per process, and its parsers cache what they have parsed.
conf = importlib.import_module("train").CONF
with (
    speed_up_composition(),
    initialize_config_dir(str(conf), version_base="1.3"),
):
    compose("train", ["model=fusion", "++data.num_movies=120"], return_hydra_config=True)

# Frozen objects are skipped by garbage collections in forks, which would copy their memory.
gc.freeze()
