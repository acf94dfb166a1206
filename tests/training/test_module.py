"""The training module: loss, thresholds, learning rates, and settings that it refuses."""

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
from genre_lightning.data import datamodule
from genre_lightning.data.batch import MovieBatch, map_tensors
from genre_lightning.data.datamodule import MovieDataModule
from genre_lightning.errors import SettingError, TrainingError, UserError
from genre_lightning.inputs.input import Input
from genre_lightning.inputs.pixels import PixelsInput
from genre_lightning.inputs.terms import TermsInput
from genre_lightning.models.networks import build_network
from genre_lightning.scoring.losses import LOSSES, build_loss
from genre_lightning.scoring.thresholds import METHODS, fit_thresholds
from genre_lightning.training.module import DivergedError, GenreModule
from genre_lightning.training.schedule import warmup_cosine
from tests.drawn import demo_data

MakeModule = Callable[..., GenreModule]

TITLE = {"name": "terms_mlp", "hidden": 8, "dropout": 0.0}
POSTER = {
    "name": "poster_resnet", "widths": [4, 8], "blocks": [1, 1], "stem_stride": 4, "dropout": 0.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> MovieDataModule:
    cache = tmp_path_factory.mktemp("cache")
    inputs: dict[str, Input] = {
        "title": TermsInput("title", 128, decade=True),
        "poster": PixelsInput(size=32),
    }
    return demo_data(cache, inputs, batch_size=16, num_movies=100, missing_posters=0.3)


@pytest.fixture(autouse=True)
def detached(data: MovieDataModule) -> Iterator[None]:
    yield
    data.trainer = None


@pytest.fixture
def make_module(data: MovieDataModule) -> MakeModule:
    def make(
        *names: str, loss: str = "bce", lr: float = 0.01, describe: Any = None, **more: Any
    ) -> GenreModule:
        torch.manual_seed(0)
        chosen = names or ("title", "poster")
        networks = {name: {"title": TITLE, "poster": POSTER}[name] for name in chosen}
        described = data.describe() if describe is None else describe
        described["inputs"] = {name: described["inputs"][name] for name in chosen}
        inputs = {name: data.inputs[name] for name in chosen}
        network = build_network(len(data.genres), networks, inputs)
        network.start_from_priors(data.genre_counts().tolist(), len(data.splits["train"]))
        return GenreModule(
            network,
            build_loss(loss),
            partial(torch.optim.AdamW, lr=lr, weight_decay=0.1),
            partial(warmup_cosine, warmup_fraction=0.1),
            inputs=described,
            **more,
        )

    return make


def make_trainer(folder: Path, **more: Any) -> pl.Trainer:
    options: dict[str, Any] = {
        "accelerator": "cpu", "logger": False, "enable_checkpointing": False, "max_epochs": 1,
        "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0,
        "use_distributed_sampler": False, "default_root_dir": folder,
    }  # fmt: skip
    return pl.Trainer(**{**options, **more})


def first_batch(data: MovieDataModule, split: str = "train") -> MovieBatch:
    return next(iter(data.loader(split, device="cpu")))


def batch_of(data: MovieDataModule, rows: list[int]) -> MovieBatch:
    """A prepared batch of the movies with these numbers."""
    group = data.batches.gather([(np.array(rows), 0)])
    (batch,) = data._prepare(group, torch.device("cpu"), False).batches()
    return batch


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_the_loss_of_a_step(weight: float, make_module: MakeModule, data: MovieDataModule) -> None:
    module = make_module(branch_loss=weight).eval()
    module.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    batch = first_batch(data)
    seen = batch.parts["poster"].rows
    assert 0 < len(seen) < len(batch)
    actual = module.training_step(batch, 0)

    branch_logits = module.network.branch_logits(batch.parts, len(batch))
    title, poster, prior = branch_logits["title"], branch_logits["poster"], module.network.prior
    summed = module.network(batch.parts, len(batch))
    expected = F.binary_cross_entropy_with_logits(summed, batch.targets)
    expected = expected + weight * F.binary_cross_entropy_with_logits(title + prior, batch.targets)
    losses = [
        F.binary_cross_entropy_with_logits(poster[row] + prior, batch.targets[row])
        for row in seen.tolist()
    ]
    expected = expected + weight * sum(losses) / len(losses)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("branch", ["title", "poster"])
def test_branch_loss_changes_nothing_for_a_single_branch(
    branch: str, make_module: MakeModule, data: MovieDataModule
) -> None:
    batch = first_batch(data)
    losses = []
    for weight in (0.0, 0.5):
        module = make_module(branch, branch_loss=weight).eval()
        module.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
        losses.append(module.training_step(batch, 0))
    assert torch.equal(*losses)


class BlockingCopies(TorchDispatchMode):
    """Records blocking copies to another device, which make a GPU wait."""

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


def test_a_loss_that_is_not_from_build_loss_is_refused(
    make_module: MakeModule, data: MovieDataModule
) -> None:
    network = make_module().network
    with pytest.raises(UserError, match=r"^loss: BCEWithLogitsLoss is not from build_loss, so no "):
        GenreModule(network, torch.nn.BCEWithLogitsLoss(), torch.optim.Adam, inputs=data.describe())


@pytest.mark.parametrize("loss", LOSSES)
def test_steps_on_a_gpu_make_no_blocking_copies(
    loss: str, make_module: MakeModule, data: MovieDataModule
) -> None:
    # Fake tensors have a device but no values, and need no GPU. Mixing devices and reading a value
    # are errors.
    module = make_module(loss=loss, branch_loss=0.5)
    module._train_loss_logged = True  # there is no trainer to log to
    cpu_batch = first_batch(data)
    copies = BlockingCopies()
    with FakeTensorMode(allow_non_fake_inputs=True), copies:
        put_on_gpu(module)
        batch = map_tensors(cpu_batch, empty_on_gpu)
        assert module.training_step(batch, 0).device == GPU
        module.eval()
        with torch.no_grad():
            module.validation_step(batch, 0)
    assert copies.found == []


@pytest.mark.parametrize("posters", [0, 1, 2])
def test_a_batch_with_few_posters_or_none(
    posters: int, make_module: MakeModule, data: MovieDataModule
) -> None:
    module = make_module(branch_loss=0.5)
    module.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    row_index = data.features["poster"].row_index
    without = [row for row in data.splits["train"].tolist() if row_index[row] < 0]
    having = [row for row in data.splits["train"].tolist() if row_index[row] >= 0]
    batch = batch_of(data, [*without[:5], *having[:posters]])
    assert len(batch.parts["poster"]) == posters and len(batch) == 5 + posters
    loss = module.training_step(batch, 0)
    loss.backward()
    # Distributed training waits for a gradient of every parameter.
    for parameter in module.parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all()
    assert torch.isfinite(loss)
    weights = module.network.branches["poster"].state_dict().values()
    assert all(value.isfinite().all() for value in weights)


@pytest.mark.parametrize("method", METHODS)
def test_thresholds_are_fitted_on_the_validation_scores(
    method: str, make_module: MakeModule, data: MovieDataModule, tmp_path: Path
) -> None:
    module = make_module(thresholds=method)
    make_trainer(tmp_path).validate(module, data, verbose=False)
    module.eval()
    scores, targets = [], []
    with torch.inference_mode():
        for batch in data.loader("val", device="cpu"):
            scores.append(torch.sigmoid(module.network(batch.parts, len(batch))))
            targets.append(batch.targets)
    expected = fit_thresholds(torch.cat(scores), torch.cat(targets), method=method)
    torch.testing.assert_close(module.thresholds, expected)
    checkpoint: dict[str, Any] = {}
    module.on_save_checkpoint(checkpoint)
    stored = checkpoint[CHECKPOINT_KEY]["thresholds"]
    assert torch.equal(torch.tensor(stored), module.thresholds)


def test_validation_loss_is_a_mean_over_movies(
    make_module: MakeModule, data: MovieDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = make_module()
    batch = first_batch(data, "val")
    assert len(batch) == len(data.splits["val"])
    # The last batch is smaller than the others, so a mean over batches differs.
    monkeypatch.setattr(datamodule, "MAX_EVAL_MOVIES", 5)
    assert len(batch) % 5
    trainer = make_trainer(tmp_path)
    trainer.validate(module, data, verbose=False)
    module.eval()
    with torch.inference_mode():
        logits = module.network(batch.parts, len(batch))
        losses = F.binary_cross_entropy_with_logits(logits, batch.targets, reduction="none")
    mean_over_batches = torch.stack([part.mean() for part in losses.split(5)]).mean()
    assert mean_over_batches.item() != pytest.approx(losses.mean().item(), rel=1e-4)
    expected = pytest.approx(losses.mean().item(), rel=1e-5)
    assert trainer.callback_metrics["val/loss"].item() == expected


def test_bfloat16_steps(make_module: MakeModule, data: MovieDataModule, tmp_path: Path) -> None:
    module = make_module(branch_loss=0.5)
    limits = {"limit_train_batches": 1, "limit_val_batches": 1}
    trainer = make_trainer(tmp_path, precision="bf16-mixed", **limits)
    trainer.fit(module, data)
    assert torch.isfinite(trainer.callback_metrics["train/loss"])
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize("precision", ["64-true", "bf16-true"])
def test_weights_in_another_precision_are_refused(
    precision: Any, make_module: MakeModule, data: MovieDataModule, tmp_path: Path
) -> None:
    with pytest.raises(SettingError, match=rf"{precision} must be auto, 32-true, "):
        make_trainer(tmp_path, precision=precision).fit(make_module(), data)


def test_divergence_is_an_error(
    make_module: MakeModule, data: MovieDataModule, tmp_path: Path
) -> None:
    module = make_module(lr=1e30)
    with pytest.raises(DivergedError, match="not finite in epoch 1"):
        make_trainer(tmp_path).fit(module, data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"genres": ["a", "a"]}, "genres"),
        ({"genres": ["a"]}, "one threshold for each genre"),
        ({"data": {"root": {}}}, "data"),
    ],
    ids=["genres", "fewer genres", "data"],
)
def test_data_that_no_checkpoint_could_describe_is_refused(
    change: dict[str, Any], message: str, make_module: MakeModule, data: MovieDataModule
) -> None:
    with pytest.raises(CheckpointError, match=message):
        make_module(describe={**data.describe(), **change})


BRANCHES = [("title", "poster"), ("poster", "title"), ("title",), ("poster",)]


@pytest.mark.parametrize("names", BRANCHES, ids="-".join)
def test_every_parameter_is_trained_once(names: tuple[str, ...], make_module: MakeModule) -> None:
    module = make_module(*names, lr_scales={"title": 0.25} if "title" in names else {})
    groups = module.build_optimizer().param_groups
    parameters = [parameter for group in groups for parameter in group["params"]]
    assert len(parameters) == len({id(parameter) for parameter in parameters})
    # Two groups for each branch: matrices, and vectors.
    own = [p for name in names for p in module.network.branches[name].parameters()]
    assert {id(p) for p in parameters} == {id(p) for p in own} and len(groups) == 2 * len(names)


@pytest.mark.parametrize("decay_vectors", [False, True])
def test_lr_scale_changes_the_rate_and_not_the_decay(
    decay_vectors: bool, make_module: MakeModule
) -> None:
    module = make_module(lr_scales={"title": 0.25}, decay_vectors=decay_vectors)
    for group in module.build_optimizer().param_groups:
        (name,) = (
            name
            for name, branch in module.network.branches.items()
            if any(group["params"][0] is parameter for parameter in branch.parameters())
        )
        vectors = group["params"][0].ndim <= 1
        assert all((parameter.ndim <= 1) == vectors for parameter in group["params"])
        assert group["lr"] == pytest.approx(0.01 * (0.25 if name == "title" else 1))
        decay = 0.01 * (0.1 if decay_vectors or not vectors else 0.0)
        assert group["lr"] * group["weight_decay"] == pytest.approx(decay)


def state_of(module: GenreModule, branch: str) -> dict[str, torch.Tensor]:
    found = module.network.branches[branch].state_dict()
    return {name: value.clone() for name, value in found.items()}


@pytest.mark.parametrize("frozen", ["title", "poster"])
def test_lr_scale_0_freezes_a_branch(
    frozen: str, make_module: MakeModule, data: MovieDataModule, tmp_path: Path
) -> None:
    other = "poster" if frozen == "title" else "title"
    module = make_module(lr_scales={frozen: 0}, branch_loss=0.5)
    before = {name: state_of(module, name) for name in (frozen, other)}
    make_trainer(tmp_path, max_epochs=2).fit(module, data)
    # Its weights and BatchNorm statistics stay the same; those of the other branch change.
    after = state_of(module, frozen)
    assert any("running_mean" in name for name in after)
    assert all(torch.equal(before[frozen][name], after[name]) for name in after)
    moved = state_of(module, other)
    assert not any(
        torch.equal(before[other][name], moved[name]) for name in moved if "bias" in name
    )
    assert not module.network.branches[frozen].training
    module.train()
    assert module.network.branches[other].training
    assert not module.network.branches[frozen].training


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        ({"title": -1.0}, r"model\.branches\.title\.lr_scale=-1.0"),
        ({"title": float("nan")}, r"model\.branches\.title\.lr_scale=nan"),
        ({"title": float("inf")}, r"model\.branches\.title\.lr_scale=inf"),
        ({"title": "fast"}, r"model\.branches\.title\.lr_scale=fast"),
        ({"title": None}, r"model\.branches\.title\.lr_scale=None"),
        ({"cast": 1.0}, "lr_scale of cast: the model only has title, poster"),
        ({"title": 0, "poster": 0.0}, "every branch has lr_scale=0"),
    ],
    ids=repr,
)
def test_invalid_lr_scales_are_refused(
    scales: dict[str, Any], message: str, make_module: MakeModule
) -> None:
    with pytest.raises(UserError, match=message):
        make_module(lr_scales=scales)


class Stores(pl.Callback):
    def state_dict(self) -> dict[str, Any]:
        return {"best": np.float64(0.5)}


class Adds(pl.Callback):
    def on_save_checkpoint(self, trainer: Any, module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint["mine"] = 1


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (Stores(), r"callbacks\.Stores\.best is of <class 'numpy.float64'>"),
        (Adds(), "can't have the entry mine: a callback keeps what it needs by its state_dict"),
    ],
    ids=["no plain data", "an entry of its own"],
)
def test_what_a_callback_adds_must_be_readable(
    callback: pl.Callback,
    message: str,
    make_module: MakeModule,
    data: MovieDataModule,
    tmp_path: Path,
) -> None:
    trainer = make_trainer(tmp_path, callbacks=[callback], max_steps=1)
    trainer.fit(make_module("title"), datamodule=data)
    with pytest.raises(TrainingError, match=message):
        trainer.save_checkpoint(tmp_path / "last.ckpt")
    assert not list(tmp_path.glob("*.ckpt"))


def test_an_optimizer_that_is_none_is_refused(
    make_module: MakeModule, data: MovieDataModule, tmp_path: Path
) -> None:
    module = make_module("title")
    nothing: Callable[..., Any] = lambda parameters: None  # noqa: E731
    module.make_optimizer = nothing
    with pytest.raises(SettingError, match=r"^optimizer: a NoneType is no optimizer of PyTorch$"):
        make_trainer(tmp_path).fit(module, datamodule=data)


@pytest.mark.parametrize(
    ("schedule", "name"),
    [
        (lambda optimizer, total_steps: None, "NoneType"),
        (
            lambda optimizer, total_steps: torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer),
            "ReduceLROnPlateau",
        ),
    ],
    ids=["none", "needs a metric"],
)
def test_a_schedule_that_returns_something_else_is_refused(
    schedule: Any, name: str, make_module: MakeModule, data: MovieDataModule, tmp_path: Path
) -> None:
    module = make_module("title")
    module.make_scheduler = schedule
    with pytest.raises(SettingError, match=rf"^scheduler: .* returned a {name}$"):
        make_trainer(tmp_path).fit(module, datamodule=data)


@pytest.mark.parametrize(
    ("output", "message"),
    [(torch.zeros(8), r"shape \(8,\)"), (1.0, "<class 'float'>"), (None, "<class 'NoneType'>")],
    ids=["several numbers", "a float", "nothing"],
)
def test_a_loss_that_is_not_one_number_is_named(
    output: Any, message: str, make_module: MakeModule, data: MovieDataModule
) -> None:
    module = make_module()
    module.loss.forward = lambda logits, targets: output
    with pytest.raises(
        ValueError, match=rf"^a loss of class BCELoss gives {message}, not a tensor with one"
    ):
        module.batch_loss(first_batch(data))
