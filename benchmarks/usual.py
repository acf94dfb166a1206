"""One training epoch, compared with the usual Dataset and DataLoader.

    python -m benchmarks.usual --root data/ml1m

The usual way: a Dataset that opens, decodes and resizes one poster per item with Pillow (a random
crop, randomly flipped, like our own augmentation), a dense vector of V numbers per title, default
collate, and a plain loop. Network, batch, image size, loss, optimizer and precision are the same; a
movie without a poster gets a black image, whose logits are left out. Alternates between an epoch of
`trainer.fit`, with cached posters, and usual epochs with 0, 1, 2 and 4 persistent workers. Ends
with one JSON line: ``figure`` is the median of our seconds an epoch, ``ratio`` the median over
turns of the seconds with the best number of workers over ours.
"""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.measure import (
    argument_parser,
    by_turns,
    json_line,
    print_table,
    ratios,
    spread,
)
from benchmarks.training import (
    EpochTimer,
    build,
    compose_config,
    device_of,
    make_trainer,
    synchronise,
)
from genre_lightning.data.datamodule import MovieDataModule
from genre_lightning.inputs.decode import PosterError
from genre_lightning.inputs.pixels import PixelsInput
from genre_lightning.inputs.terms import TermsFeatures
from genre_lightning.models.fusion import Fusion
from genre_lightning.models.terms_mlp import TermsMLP
from genre_lightning.movies.movie import PosterFile

AIM_CPU, AIM_GPU = 1.25, 10.0
WORKERS = (0, 1, 2, 4)


def title_and_poster(data: MovieDataModule) -> tuple[str, str]:
    """Names of the title and the poster branch.

    Raises:
        ValueError: the model has other branches.
    """
    kinds = [branch_input.kind for branch_input in data.inputs.values()]
    if kinds != ["terms", "pixels"]:
        raise ValueError("this compares models of one branch of terms and one of pixels")
    title, poster = data.inputs
    return title, poster


def pixels_of(data: MovieDataModule) -> PixelsInput:
    """The input of the poster branch."""
    pixels = data.inputs[title_and_poster(data)[1]]
    if not isinstance(pixels, PixelsInput):
        raise TypeError("posters are compared as pixels")
    return pixels


def usual_network(network: Fusion, data: MovieDataModule) -> UsualNetwork:
    """The same network, written the usual way.

    Raises:
        ValueError: its title branch is not a ``terms_mlp`` without skip.
    """
    title, poster = (network.branches[name] for name in title_and_poster(data))
    if not isinstance(title, TermsMLP) or title.skip is not None:
        raise ValueError("the usual network is a terms_mlp without skip")
    return UsualNetwork(title, poster, pixels_of(data).pool)


class UsualDataset(Dataset[dict[str, Tensor]]):
    """One movie per item, decoded on access."""

    def __init__(self, data: MovieDataModule) -> None:
        rows = data.splits["train"]
        title, _ = title_and_poster(data)
        self.posters = [data.movie_set.movies[row].value("poster") for row in rows]
        features = data.features[title]
        if not isinstance(features, TermsFeatures):
            raise TypeError("titles are compared as terms")
        self.titles = features.rows.take(features.row_index[rows])
        self.labels = torch.from_numpy(data.labels[rows].astype(np.float32))
        self.vocabulary_size = data.inputs[title].network_arguments()["vocabulary_size"]
        pixels = pixels_of(data)
        self.size = pixels.size[0]
        self.crop = 1.0 if pixels.augment is None else pixels.augment.crop
        self.mirror = 0.0 if pixels.augment is None else pixels.augment.flip
        self.mean = torch.tensor(pixels.colours.mean).view(3, 1, 1)
        self.std = torch.tensor(pixels.colours.std).view(3, 1, 1)

    def __len__(self) -> int:
        return len(self.posters)

    def __getitem__(self, item: int) -> dict[str, Tensor]:
        title = torch.zeros(self.vocabulary_size)
        start, end = self.titles.indptr[item : item + 2]
        title[self.titles.indices[start:end]] = torch.from_numpy(self.titles.weights[start:end])
        poster = self.poster(item)
        seen = poster is not None
        if poster is None:
            poster = torch.zeros(3, self.size, self.size)
        return {
            "title": title,
            "poster": poster,
            "seen": torch.tensor(seen),
            "targets": self.labels[item],
        }

    def poster(self, item: int) -> Tensor | None:
        """(3, H, W) float32, or None if the poster is missing or unreadable."""
        file = self.posters[item]
        if not isinstance(file, PosterFile) or not file.exists:
            return None
        try:
            if file.member is None:
                image = Image.open(file.path).convert("RGB")
            else:
                image = Image.open(io.BytesIO(file.read_bytes())).convert("RGB")
        except (OSError, PosterError):
            return None
        part = (self.crop + (1 - self.crop) * float(torch.rand(()))) ** 0.5
        wide, tall = part * image.width, part * image.height
        left = float(torch.rand(())) * (image.width - wide)
        top = float(torch.rand(())) * (image.height - tall)
        image = image.resize(
            (self.size, self.size),
            Image.Resampling.BILINEAR,
            box=(left, top, left + wide, top + tall),
        )
        if float(torch.rand(())) < self.mirror:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div(255)
        return (pixels - self.mean) / self.std


class UsualNetwork(nn.Module):
    """The configured network with a dense first title layer and a poster for every movie."""

    def __init__(self, title: TermsMLP, poster: nn.Module, pool: int) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(pool)
        embed = title.embed
        self.first = nn.Linear(embed.num_embeddings, embed.embedding_dim, bias=False)
        self.rest = nn.Sequential(title.norm, nn.ReLU(), title.drop, title.head)
        self.poster = poster

    def forward(self, title: Tensor, poster: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """(B, G) logits of each branch, from (B, V), (B, 3, H, W) and (B,) bool."""
        return self.rest(self.first(title)), self.poster(self.pool(poster)) * seen[:, None]


def usual_epoch(
    cfg: DictConfig, data: MovieDataModule, workers: int, limit: int | None
) -> Callable[[], float]:
    """Build network and loader; return a function that trains an epoch and returns its seconds."""
    _, module = build(cfg)
    device = device_of(cfg)
    network = usual_network(module.network, data).to(device).to(memory_format=torch.channels_last)
    # Adds the prior to the sum of the branches.
    total = module.network.to(device).total
    optimizer = module.make_optimizer(network.parameters())
    loader = DataLoader(
        UsualDataset(data),
        batch_size=data.train_batch_size(),
        shuffle=True,
        drop_last=len(data.splits["train"]) >= data.train_batch_size(),
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
    )
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")

    def run() -> float:
        network.train()
        synchronise()
        started = time.perf_counter()
        for number, batch in enumerate(loader):
            if number == limit:
                break
            title, poster, seen, targets = (
                value.to(device, non_blocking=True) for value in batch.values()
            )
            optimizer.zero_grad()
            with autocast:
                of_title, of_poster = network(title, poster, seen)
                loss = module.loss(total({"title": of_title, "poster": of_poster}), targets)
                if module.branch_loss:
                    alone = module.loss(total({"title": of_title}), targets)
                    loss = loss + module.branch_loss * alone
                    if bool(seen.any()):  # the mean of an empty tensor is NaN
                        alone = module.loss(total({"poster": of_poster})[seen], targets[seen])
                        loss = loss + module.branch_loss * alone
            loss.backward()
            optimizer.step()
        synchronise()
        return time.perf_counter() - started

    return run


def our_epoch(cfg: DictConfig, limit: int | None) -> float:
    """Seconds of one epoch of `trainer.fit`."""
    data, module = build(cfg)
    timer = EpochTimer()
    trainer = make_trainer(
        cfg, [timer], max_epochs=1, limit_val_batches=0, limit_train_batches=limit
    )
    trainer.fit(module, datamodule=data)
    return timer.seconds[0]


def main(arguments: Sequence[str] | None = None) -> None:
    """Time all sides and print the table."""
    parser = argument_parser(__doc__, n=3, training=True)
    parser.add_argument("--workers", type=int, nargs="+", default=WORKERS)
    parser.add_argument("--limit", type=int, help="batches per epoch; default: all")
    args = parser.parse_args(arguments)
    cfg = compose_config(args.root, args.overrides)
    data, _ = build(cfg)
    try:
        title_and_poster(data)
    except ValueError as error:
        parser.error(str(error))
    sides: dict[str, Callable[[], float]] = {"ours": lambda: our_epoch(cfg, args.limit)}
    for workers in args.workers:
        sides[f"usual, {workers} workers"] = usual_epoch(cfg, data, workers, args.limit)
    seconds = by_turns(sides, args.n)
    device = device_of(cfg)
    side = pixels_of(data).size[0]
    note = f"{device}, batch {data.train_batch_size()}, {side} x {side}"
    print_table(seconds, "s an epoch", note, digits=2)
    best = min(list(seconds)[1:], key=lambda name: statistics.median(seconds[name]))
    turn_ratios = ratios(seconds[best], seconds["ours"])
    print(
        json_line(
            statistics.median(seconds["ours"]),
            statistics.median(turn_ratios),
            args.n,
            spread(turn_ratios),
            AIM_CPU if device.type == "cpu" else AIM_GPU,
            unit="s",
            aim_is="at least",
            best=best,
        )
    )


if __name__ == "__main__":
    main()
