"""How much time training steps spend waiting for data.

    python -m benchmarks.feed --root data/ml1m
    python -m benchmarks.feed --root data/ml1m data.batch_size=256

In one `trainer.fit`, epochs alternate between training batches (gathered, copied to the device,
augmented) and one such batch, already on the device, again and again. Validation is off. Ends with
one JSON line: ``figure`` is the median of training samples a second on the real batches, ``ratio``
the median over turns of that rate over the resident batch's.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

import pytorch_lightning as pl
from torch.utils.data import DataLoader

from benchmarks.measure import argument_parser, json_line, print_table, ratios, spread
from benchmarks.training import (
    EpochTimer,
    aim_against_arithmetic,
    build,
    compose_config,
    device_of,
    make_trainer,
    typical_batch,
)
from genre_lightning.data.batch import MovieBatch
from genre_lightning.data.datamodule import MovieDataModule


class AlternatingData(pl.LightningDataModule):
    """Alternates epochs of the training split with epochs of one batch that is on the device."""

    def __init__(self, data: MovieDataModule, resident: MovieBatch) -> None:
        super().__init__()
        self.data = data
        self.resident = resident

    def train_dataloader(self) -> Iterable[MovieBatch]:
        loader = self.data.loader("train", shuffle=True, device=self.resident.rows.device)
        if self.trainer is not None and self.trainer.current_epoch % 2:
            return DataLoader([self.resident] * len(loader), batch_size=None)  # type: ignore[arg-type]
        return loader


def main(arguments: Sequence[str] | None = None) -> None:
    """Time both sides and print the table."""
    args = argument_parser(__doc__, n=5, training=True).parse_args(arguments)
    cfg = compose_config(args.root, args.overrides)
    data, module = build(cfg)
    device = device_of(cfg)
    timer = EpochTimer()
    trainer = make_trainer(
        cfg,
        [timer],
        max_epochs=2 * (args.n + 1),
        limit_val_batches=0,
        reload_dataloaders_every_n_epochs=1,
    )
    trainer.fit(module, datamodule=AlternatingData(data, typical_batch(data, device)))
    samples = len(data.loader("train", shuffle=True)) * min(
        data.train_batch_size(), len(data.splits["train"])
    )
    rates = {
        "real batches": [samples / seconds for seconds in timer.seconds[2::2]],
        "one resident batch": [samples / seconds for seconds in timer.seconds[3::2]],
    }
    print_table(rates, "samples/s", f"{device}, batch {data.train_batch_size()}", digits=1)
    turn_ratios = ratios(*rates.values())
    print(
        json_line(
            statistics.median(rates["real batches"]),
            statistics.median(turn_ratios),
            args.n,
            spread(turn_ratios),
            aim_against_arithmetic(device),
            unit="samples/s",
            aim_is="at least",
        )
    )


if __name__ == "__main__":
    main()
