"""Data, network and training step as in train.py, for the training benchmarks."""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig

from benchmarks.measure import REPOSITORY
from genre_lightning.data.batch import MovieBatch
from genre_lightning.data.datamodule import MovieDataModule
from genre_lightning.runs.composing import speed_up_composition
from genre_lightning.training.module import GenreModule
from train import chosen_precision, make_data, make_module, trains_on_gpu


def data_overrides(root: Path | None) -> list[str]:
    """The overrides that choose the real movies at ``root``, or demo data if it is None."""
    return ["data=demo"] if root is None else ["data=ml1m", f"data.root={root.resolve()}"]


def compose_config(root: Path | None, overrides: Sequence[str]) -> DictConfig:
    """The configuration that ``train.py`` would compose."""
    with (
        speed_up_composition(),
        initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"),
    ):
        return compose("train", [*data_overrides(root), *overrides])


def train_command(root: Path | None, overrides: Sequence[str]) -> list[str]:
    """The command for ``train.py`` on the real movies at ``root``, or demo data if it is None."""
    return [sys.executable, str(REPOSITORY / "train.py"), *data_overrides(root), *overrides]


def epoch_seconds(folder: Path) -> float:
    """Seconds of a run's epochs, including validation and the checkpoints before it."""
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return sum(float(row["seconds"]) for row in csv.DictReader(file))


def build(cfg: DictConfig) -> tuple[MovieDataModule, GenreModule]:
    """The data, set up, and an untrained module."""
    data = make_data(cfg)
    return data, make_module(cfg, data)


def device_of(cfg: DictConfig) -> torch.device:
    """Where ``train.py`` would train."""
    return torch.device("cuda" if trains_on_gpu(cfg) else "cpu")


def aim_against_arithmetic(device: torch.device) -> float:
    """The share of the bare computation's speed that training should reach."""
    return 0.97 if device.type == "cpu" else 0.95


def make_trainer(cfg: DictConfig, callbacks: Sequence[pl.Callback], **more: Any) -> pl.Trainer:
    """The configured trainer with ``train.py``'s precision, without console output."""
    quiet = {
        "enable_progress_bar": False,
        "logger": False,
        "enable_checkpointing": False,
        "default_root_dir": None,  # the configured one is a run folder
    }
    trainer: pl.Trainer = instantiate(
        cfg.trainer,
        precision=chosen_precision(cfg),
        callbacks=list(callbacks),
        **{**quiet, **more},
    )
    return trainer


class EpochTimer(pl.Callback):
    """Records the seconds of each epoch's training steps, without validation."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        synchronise()
        self._started = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        synchronise()
        self.seconds.append(time.perf_counter() - self._started)


def synchronise() -> None:
    """Wait until the GPU has finished."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def resident_step(cfg: DictConfig, *, bf16: bool) -> tuple[Callable[[], None], MovieBatch]:
    """A function that does one step (forward, backward, optimizer) on a resident batch; the batch.

    Args:
        cfg: configuration of the network, the optimizer and the memory layout.
        bf16: use bfloat16 autocast.
    """
    data, module = build(cfg)
    device = device_of(cfg)
    module.to(device)
    batch = typical_batch(data, device)
    layout = torch.channels_last if cfg.training.channels_last else torch.contiguous_format
    parts = {
        name: part.map_tensors(lambda x: x.contiguous(memory_format=layout) if x.ndim == 4 else x)
        for name, part in batch.parts.items()
    }
    batch = replace(batch, parts=parts)
    optimizer = module.build_optimizer()

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss = module.batch_loss(batch)
        loss.backward()
        optimizer.step()

    return step, batch


def time_repeatedly(run: Callable[[], object], times: int) -> Callable[[], float]:
    """A side for ``by_turns``: calls ``run`` ``times`` times; returns the seconds per call."""

    def side() -> float:
        synchronise()
        started = time.perf_counter()
        for _ in range(times):
            run()
        synchronise()
        return (time.perf_counter() - started) / times

    return side


def typical_batch(data: MovieDataModule, device: torch.device) -> MovieBatch:
    """A prepared training batch on the device, with about the mean number of values per column."""
    loader = data.loader("train", shuffle=True, device=device)
    has_column = [features.row_index >= 0 for features in data.features.values()]
    mean_counts = [has[data.splits["train"]].mean() * data.train_batch_size() for has in has_column]

    def distance(item: tuple[np.ndarray, int]) -> float:
        rows, _ = item
        return sum(
            abs(has[rows].sum() - mean_count)
            for has, mean_count in zip(has_column, mean_counts, strict=True)
        )

    (batch,) = loader.prepare_group([min(loader.order, key=distance)])
    return batch
