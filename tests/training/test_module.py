"""The training module: its losses, its thresholds, what it refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torchmetrics import Metric

from genre_lightning.checkpoint.card import CHECKPOINT_KEY, CheckpointError
from genre_lightning.data.datamodule import MovieDataModule
from genre_lightning.inputs.terms import TitleVectorizer
from genre_lightning.models.networks import build_network
from genre_lightning.scoring.losses import LOSSES, build_loss
from genre_lightning.scoring.thresholds import METHODS, fit_thresholds
from genre_lightning.training.module import DivergedError, GenreModule
from genre_lightning.training.schedule import warmup_cosine

TITLE = {"name": "title_mlp", "vocabulary_size": 128, "hidden": 8, "dropout": 0.0}
POSTER = {
    "name": "poster_resnet", "widths": [4, 8], "blocks": [1, 1], "stem_stride": 4, "dropout": 0.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> MovieDataModule:
    cache = tmp_path_factory.mktemp("cache")
    data = MovieDataModule(
        "demo", TitleVectorizer(128), batch_size=16, poster_size=32, cache_dir=cache,
        root=str(cache), num_movies=100, poster_height=32, missing_posters=0.3,
    )  # fmt: skip
    data.setup()
    return data


@pytest.fixture(autouse=True)
def detached(data: MovieDataModule) -> Iterator[None]:
    yield
    data.trainer = None


@pytest.fixture
def make(data: MovieDataModule) -> Callable[..., GenreModule]:
    def module(
        title: Any = TITLE, poster: Any = POSTER, loss: str = "bce", lr: float = 0.01, **more: Any
    ) -> GenreModule:
        torch.manual_seed(0)
        network = build_network(len(data.genres), title, poster)
        network.start_from_priors(data.genre_counts().tolist(), len(data.splits["train"]))
        return GenreModule(
            network,
            build_loss(loss),
            partial(torch.optim.AdamW, lr=lr, weight_decay=0.1),
            partial(warmup_cosine, warmup_fraction=0.1),
            inputs=data.describe(),
            **more,
        )

    return module


def trainer(folder: Path, **more: Any) -> pl.Trainer:
    options: dict[str, Any] = {
        "accelerator": "cpu", "logger": False, "enable_checkpointing": False, "max_epochs": 1,
        "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0,
        "use_distributed_sampler": False, "default_root_dir": folder,
    }  # fmt: skip
    return pl.Trainer(**{**options, **more})


def prepared(data: MovieDataModule, split: str = "train") -> Any:
    batch = next(iter(data.loader(split)))
    return batch.with_posters(data.prepare_posters(batch.posters, 0, training=False))


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_the_loss_of_a_step(
    weight: float, make: Callable[..., GenreModule], data: MovieDataModule
) -> None:
    module = make(branch_loss=weight).eval()
    module.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    batch = prepared(data)
    assert 0 < len(batch.poster_rows) < len(batch)
    found = module.training_step(batch, 0)

    title, poster = module.network.branch_logits(**batch.inputs())
    prior = module.network.prior
    expected = F.binary_cross_entropy_with_logits(module.network(**batch.inputs()), batch.targets)
    expected = expected + weight * F.binary_cross_entropy_with_logits(title + prior, batch.targets)
    cells = [
        F.binary_cross_entropy_with_logits(poster[row] + prior, batch.targets[row])
        for row in batch.poster_rows.tolist()
    ]
    expected = expected + weight * sum(cells) / len(cells)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("branches", [(TITLE, None), (None, POSTER)], ids=["title", "poster"])
def test_one_branch_has_one_loss(
    branches: Any, make: Callable[..., GenreModule], data: MovieDataModule
) -> None:
    batch = prepared(data)
    losses = []
    for weight in (0.0, 0.5):
        module = make(*branches, branch_loss=weight).eval()
        module.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
        losses.append(module.training_step(batch, 0))
    assert torch.equal(*losses)


class Waits(TorchDispatchMode):
    """Notes what is copied to another device at once, so that a GPU may run empty."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        devices = {arg.device.type for arg in args if isinstance(arg, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and devices == {"cpu"} != {result.device.type}:
            self.found.append(str(func))
        return result


GPU = torch.device("cuda:0")


def empty_on_gpu(like: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=GPU)


def put_on_gpu(module: GenreModule) -> None:
    # Module.to can't make fake parameters of real ones.
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(empty_on_gpu(parameter.detach()))
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = empty_on_gpu(buffer)
        if isinstance(part, Metric):
            part._device = GPU
            for name, start in part._defaults.items():
                if isinstance(start, torch.Tensor):
                    setattr(part, name, empty_on_gpu(start))


@pytest.mark.parametrize("loss", LOSSES)
def test_on_a_gpu_a_step_waits_for_nothing(
    loss: str, make: Callable[..., GenreModule], data: MovieDataModule
) -> None:
    # Fake tensors know their device, have no numbers, and need no GPU: mixing devices and reading
    # a number are errors.
    module = make(loss=loss, branch_loss=0.5)
    module._train_loss_logged = True  # there is no trainer to log to
    ready = prepared(data)
    waits = Waits()
    with FakeTensorMode(allow_non_fake_inputs=True), waits:
        put_on_gpu(module)
        batch = ready._each(empty_on_gpu)
        assert module.training_step(batch, 0).device == GPU
        module.eval()
        with torch.no_grad():
            module.validation_step(batch, 0)
    assert waits.found == []


def test_a_batch_without_posters(make: Callable[..., GenreModule], data: MovieDataModule) -> None:
    module = make(branch_loss=0.5)
    module.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    rows = [row for row in data.splits["train"] if data.posters and data.posters.row[row] < 0]
    batch = data.batches[(np.array(rows), 0)]
    batch = batch.with_posters(data.prepare_posters(batch.posters, 0, training=True))
    assert len(batch.poster_rows) == 0
    loss = module.training_step(batch, 0)
    loss.backward()
    # Every parameter has a gradient, as distributed training waits for.
    assert all(parameter.grad is not None for parameter in module.parameters())
    assert torch.isfinite(loss)


@pytest.mark.parametrize("method", METHODS)
def test_thresholds_are_those_of_the_validation_scores(
    method: str, make: Callable[..., GenreModule], data: MovieDataModule, tmp_path: Path
) -> None:
    module = make(thresholds=method)
    runner = trainer(tmp_path)
    runner.validate(module, data, verbose=False)
    module.eval()
    scores, targets = [], []
    with torch.inference_mode():
        for batch in data.loader("val"):
            batch = batch.with_posters(data.prepare_posters(batch.posters, 0, training=False))
            scores.append(torch.sigmoid(module.network(**batch.inputs())))
            targets.append(batch.targets)
    expected = fit_thresholds(torch.cat(scores), torch.cat(targets), method=method)
    torch.testing.assert_close(module.thresholds, expected)
    checkpoint: dict[str, Any] = {}
    module.on_save_checkpoint(checkpoint)
    stored = checkpoint[CHECKPOINT_KEY]["thresholds"]
    assert torch.equal(torch.tensor(stored), module.thresholds)


def test_validation_loss_is_a_mean_over_movies(
    make: Callable[..., GenreModule], data: MovieDataModule, tmp_path: Path
) -> None:
    # 12 movies in batches of 5: the last batch is smaller and counts less.
    module = make()
    data.batch_size, before = 5, data.batch_size
    try:
        runner = trainer(tmp_path)
        runner.validate(module, data, verbose=False)
    finally:
        data.batch_size = before
    assert len(data.splits["val"]) % 5
    module.eval()
    batch = prepared(data, "val")
    assert len(batch) == len(data.splits["val"])
    with torch.inference_mode():
        loss = F.binary_cross_entropy_with_logits(module.network(**batch.inputs()), batch.targets)
    assert runner.callback_metrics["val/loss"].item() == pytest.approx(loss.item(), rel=1e-5)


def test_bfloat16_steps(
    make: Callable[..., GenreModule], data: MovieDataModule, tmp_path: Path
) -> None:
    module = make(branch_loss=0.5)
    runner = trainer(tmp_path, precision="bf16-mixed", limit_train_batches=1, limit_val_batches=1)
    runner.fit(module, data)
    assert torch.isfinite(runner.callback_metrics["train/loss"])
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in module.parameters())


def test_divergence_is_told(
    make: Callable[..., GenreModule], data: MovieDataModule, tmp_path: Path
) -> None:
    module = make(lr=1e30)
    with pytest.raises(DivergedError, match="not finite at epoch 0"):
        trainer(tmp_path).fit(module, data)


def test_what_could_not_be_read_again_is_not_trained(
    make: Callable[..., GenreModule], data: MovieDataModule, monkeypatch: Any
) -> None:
    monkeypatch.setattr(data, "poster_size", 5000)
    with pytest.raises(CheckpointError, match="poster_size 5000"):
        make()


def test_every_parameter_is_trained_once(make: Callable[..., GenreModule]) -> None:
    for branches in ((TITLE, POSTER), (TITLE, None), (None, POSTER)):
        module = make(*branches, title_lr_scale=0.25)
        groups = module._parameter_groups({"lr": 0.01, "weight_decay": 0.1})
        found = [parameter for group in groups for parameter in group["params"]]
        assert len(found) == len({id(parameter) for parameter in found})
        assert {id(p) for p in found} == {id(p) for p in module.network.parameters()}
