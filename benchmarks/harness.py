"""What Lightning, callbacks, metrics and logging cost compared with a bare PyTorch loop.

    python -m benchmarks.harness --root data/ml1m

Alternates between `trainer.fit` with everything that train.py gives it (checkpoints of every epoch,
metrics, thresholds, history) and a plain loop with the same network, optimizer, precision and
batches, which trains as many epochs and computes the validation loss after each. Ends with one JSON
line: ``figure`` is the median training samples a second of `trainer.fit`, validation included;
``ratio`` is the median over turns of the loop's seconds over those of `trainer.fit`.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from benchmarks.measure import (
    argument_parser,
    by_turns,
    json_line,
    print_table,
    ratios,
    spread,
)
from benchmarks.training import (
    aim_against_arithmetic,
    build,
    compose_config,
    device_of,
    make_trainer,
    synchronise,
)
from genre_lightning.training.callbacks.epoch_log import EpochLog
from genre_lightning.training.callbacks.history import History
from genre_lightning.training.callbacks.resume import Resume
from train import make_checkpoint_io


def fit(cfg: DictConfig, epochs: int) -> float:
    """Seconds of `trainer.fit`, in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        cfg.callbacks.checkpoint.dirpath = str(Path(folder) / "checkpoints")
        data, module = build(cfg)
        history = History(Path(folder))
        result = {"wandb_run_id": None}
        callbacks = [
            history,
            EpochLog(history),
            *(instantiate(callback) for callback in cfg.callbacks.values() if callback),
            Resume(Path(folder), result, settings={}, every_n_steps=None),
        ]
        trainer = make_trainer(
            cfg,
            callbacks,
            max_epochs=epochs,
            enable_checkpointing=True,
            plugins=[make_checkpoint_io(cfg)],
        )
        started = time.perf_counter()
        trainer.fit(module, datamodule=data)
        synchronise()
        return time.perf_counter() - started


def loop(cfg: DictConfig, epochs: int) -> float:
    """Seconds of the same epochs in a plain loop."""
    data, module = build(cfg)
    device = device_of(cfg)
    module.to(device)
    network = module.network
    train = data.loader("train", shuffle=True, device=device)
    val = data.loader("val", device=device)
    optimizer = module.build_optimizer()
    make_schedule = instantiate(cfg.scheduler)
    schedule = make_schedule and make_schedule(optimizer, total_steps=epochs * len(train))
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
    started = time.perf_counter()
    for epoch in range(epochs):
        network.train()
        train.order.set_epoch(epoch)
        for batch in train:
            optimizer.zero_grad()
            with autocast:
                loss = module.batch_loss(batch)
            loss.backward()
            optimizer.step()
            if schedule is not None:
                schedule.step()
        network.eval()
        total = torch.zeros((), device=device)
        with torch.inference_mode(), autocast:
            for batch in val:
                folds = batch.folds if module.by_folds else None
                total += module.loss(network(batch.parts, len(batch), folds), batch.targets)
    synchronise()
    return time.perf_counter() - started


def main(arguments: Sequence[str] | None = None) -> None:
    """Time both sides and print the table."""
    parser = argument_parser(__doc__, n=5, training=True)
    parser.add_argument("--epochs", type=int, default=2, help="per side and turn; default 2")
    args = parser.parse_args(arguments)
    compare_with_loop(args)


def compare_with_loop(
    args: argparse.Namespace, overrides: Sequence[str] = (), aim: float | None = None
) -> None:
    """Time `trainer.fit` and the loop alternately; print the table and the JSON line.

    Args:
        args: arguments of the benchmark, with ``epochs``.
        overrides: overrides that choose the model; those of ``args`` come after them.
        aim: aim of the ratio; by default :func:`aim_against_arithmetic`.
    """
    cfg = compose_config(args.root, ["callbacks.progress_bar=null", *overrides, *args.overrides])
    seconds = by_turns(
        {
            "trainer.fit": lambda: fit(cfg, args.epochs),
            "bare loop": lambda: loop(cfg, args.epochs),
        },
        args.n,
    )
    data, _ = build(cfg)
    device = device_of(cfg)
    print_table(seconds, "s", f"{args.epochs} epochs, {device}, batch {data.train_batch_size()}")
    samples = args.epochs * len(data.splits["train"])
    turn_ratios = ratios(seconds["bare loop"], seconds["trainer.fit"])
    print(
        json_line(
            samples / statistics.median(seconds["trainer.fit"]),
            statistics.median(turn_ratios),
            args.n,
            spread(turn_ratios),
            aim_against_arithmetic(device) if aim is None else aim,
            unit="samples/s",
            aim_is="at least",
        )
    )


if __name__ == "__main__":
    main()
