"""Data for timing prediction: an untrained checkpoint of the default model, and drawn posters."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import REPOSITORY
from genre_lightning.movies.movie import PosterFile


def write_checkpoint(path: Path, num_genres: int = 18, overrides: Sequence[str] = ()) -> Path:
    """Write a checkpoint as training does, with the sizes of ``conf`` and Adam's two moments.

    Args:
        path: path of the file.
        num_genres: G.
        overrides: overrides of the configuration, such as ``model=pretrained``.
    """
    import torch
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from genre_lightning.checkpoint.card import CHECKPOINT_FORMAT, CHECKPOINT_KEY
    from genre_lightning.inputs.embedding import EmbeddingInput
    from genre_lightning.inputs.input import Store
    from genre_lightning.inputs.ocr import ocr_sha256
    from genre_lightning.inputs.poster_text import PosterTextInput, text_input
    from genre_lightning.inputs.table import build_input, state_to_text
    from genre_lightning.models.branches import read_branches
    from genre_lightning.models.networks import build_network
    from genre_lightning.scoring.losses import build_loss

    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        cfg = compose("train", list(overrides))
    model: Any = OmegaConf.to_container(cfg.model, resolve=True)
    branches = read_branches(model.pop("branches"))
    inputs = {name: build_input(name, branch.input) for name, branch in branches.items()}
    titles = compose_titles(4000)
    for branch_input in inputs.values():
        text = text_input(branch_input)
        if isinstance(branch_input, PosterTextInput):
            branch_input.sha256 = ocr_sha256()
        if isinstance(text, EmbeddingInput):
            text.load()
        elif text.column == "title" or text is not branch_input:
            train = np.arange(len(titles))
            with tempfile.TemporaryDirectory() as folder:
                text.open(titles, train, Store(Path(folder), progress=False))
    networks = {name: branch.network for name, branch in branches.items()}
    network = build_network(
        num_genres, networks, inputs, dropout=model["dropout"], members=model["members"]
    )
    loss = build_loss("bce")
    torch.save(
        {
            "epoch": 1,
            "global_step": 1,
            "state_dict": {f"network.{k}": v for k, v in network.state_dict().items()},
            "optimizer_states": [
                {
                    "state": {
                        n: {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
                        for n, p in enumerate(network.parameters())
                    }
                }
            ],
            CHECKPOINT_KEY: {
                "format": CHECKPOINT_FORMAT,
                "network": network.description,
                "activation": loss.activation,
                "loss": loss.description,
                "thresholds": [0.5] * num_genres,
                "genres": [f"Genre {g}" for g in range(num_genres)],
                "inputs": {
                    name: state_to_text(branch_input) for name, branch_input in inputs.items()
                },
                "data": {"reader": "demo", "val_fraction": 0.15, "test_fraction": 0.2},
            },
        },
        path,
    )
    return path


def compose_titles(count: int, seed: int = 0) -> list[str]:
    """Titles of 1 to 4 made-up words and a year."""
    rng = np.random.default_rng(seed)
    onsets = [*"bcdfghjklmnprstvw", "br", "ch", "cl", "dr", "gr", "sh", "st", "th", "tr"]
    rhymes = ["a", "all", "an", "ar", "e", "en", "er", "est", "ing", "o", "on", "or", "u", "un"]

    def word() -> str:
        parts = [rng.choice(onsets) + rng.choice(rhymes) for _ in range(rng.integers(1, 4))]
        return "".join(parts).title()

    return [
        " ".join(word() for _ in range(rng.integers(1, 5))) + f" ({rng.integers(1920, 2001)})"
        for _ in range(count)
    ]


def draw_posters(folder: Path, count: int, seed: int = 0) -> list[Path]:
    """Write JPEG files like real posters (300 x 448 pixels, 31 kB), named by title."""
    from PIL import Image

    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    width, height = 300, 448
    paths = []
    for number, title in enumerate(compose_titles(count, seed=seed + 1)):
        # Coarse and fine structure, since flat colours would decode too fast.
        pixels = np.zeros((height, width, 3), dtype=np.float32)
        for cells, strength in ((6, 90.0), (40, 50.0), (160, 20.0)):
            noise = rng.normal(size=(cells, cells, 3)).astype(np.float32)
            part = [
                np.asarray(Image.fromarray(noise[..., c]).resize((width, height))) for c in range(3)
            ]
            pixels += strength * np.stack(part, axis=-1)
        image = Image.fromarray(np.clip(pixels + 128, 0, 255).astype(np.uint8))
        paths.append(folder / f"{number} {title}.jpg")
        image.save(paths[-1], quality=75)
    return paths


def poster_file(path: Path) -> PosterFile:
    """A poster as a reader would return it."""
    return PosterFile.at(path)
