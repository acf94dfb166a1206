"""Imported once by the process that runs are forked from."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import hydra  # noqa: F401
import pytorch_lightning  # noqa: F401
import rich.console  # noqa: F401

import genre_lightning.data.datamodule
import genre_lightning.report.evaluation
import genre_lightning.training.callbacks.resume
import genre_lightning.training.module  # noqa: F401
import train  # noqa: F401
