"""Validation by folds of train: each movie is scored by the member trained without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from scipy.special import expit
from torch import Tensor, nn

from genre_lightning.checkpoint.model import load_model
from genre_lightning.data.datamodule import MovieDataModule
from genre_lightning.errors import UserError
from genre_lightning.inputs.input import Input
from genre_lightning.inputs.part import Part
from genre_lightning.inputs.terms import TermsInput
from genre_lightning.inputs.year import YearInput
from genre_lightning.models.fusion import Fusion
from genre_lightning.models.label_sets import LabelSets
from genre_lightning.models.networks import build_network
from genre_lightning.movies.movie import DataError
from genre_lightning.movies.split import fold_movies
from genre_lightning.report.evaluation import score_split, split_metrics
from genre_lightning.scoring.losses import build_loss
from genre_lightning.scoring.metrics import genre_metrics
from genre_lightning.scoring.stacking import fit_stacking
from genre_lightning.scoring.thresholds import fit_thresholds
from genre_lightning.training.module import GenreModule
from tests.drawn import demo_data

FOLDS = 3


@pytest.fixture
def data(tmp_path: Path) -> MovieDataModule:
    inputs: dict[str, Input] = {"words": TermsInput("title", 256), "year": YearInput()}
    return demo_data(tmp_path, inputs, num_movies=90, folds=FOLDS, batch_size=16)


def network_of(data: MovieDataModule, members: int = FOLDS) -> Fusion:
    branches = {
        "words": {"name": "terms_linear", "input_dropout": 0.0},
        "year": {"name": "embedding_head", "norm": "none", "input_dropout": 0.0},
    }
    return build_network(len(data.genres), branches, data.inputs, members=members)


def module_of(data: MovieDataModule, network: Fusion, **changes: Any) -> GenreModule:
    counts = {"genre_counts": data.genre_counts().tolist(), "num_movies": len(data.splits["train"])}
    arguments: dict[str, Any] = {"folds": FOLDS, "branch_loss": 0.5, **changes}
    return GenreModule(
        network,
        build_loss("bce", **counts),
        lambda groups: torch.optim.SGD(groups, lr=0.1, weight_decay=0.0),
        inputs=data.describe(),
        **arguments,
    )


def test_every_train_movie_is_validated_and_in_one_fold(data: MovieDataModule):
    train, val, test = (data.splits[name] for name in ("train", "val", "test"))
    assert val.tolist() == train.tolist()
    assert not set(train) & set(test)
    assert data.validates_by_folds
    fold = data.batches.folds
    assert set(fold[train]) == set(range(FOLDS))
    assert set(fold[test]) == {-1}
    sizes = np.bincount(fold[train])
    assert sizes.max() - sizes.min() <= 0.2 * len(train)


def test_folds_are_stratified_by_label():
    rng = np.random.default_rng(0)
    labels = (rng.random((400, 5)) < [0.5, 0.3, 0.2, 0.1, 0.05]).astype(np.uint8)
    fold = fold_movies(labels, 4, seed=1)
    assert np.array_equal(fold, fold_movies(labels, 4, seed=1))
    whole = labels.sum(axis=0)
    for number in range(4):
        assert np.abs(labels[fold == number].sum(axis=0) - whole / 4).max() <= 3


def test_a_member_has_no_gradient_from_its_own_fold(data: MovieDataModule):
    network = network_of(data)
    module = module_of(data, network)
    rows = data.splits["train"]
    own = rows[data.batches.folds[rows] == 1]
    (batch,) = data._prepare(data.batches.gather([(own, 0)]), torch.device("cpu"), True).batches()
    network.train()
    logits = network.total(network.branch_logits(batch.parts, len(batch)))
    module._loss(logits, batch.targets, batch.folds).backward()
    head = network.branches["year"].get_parameter("head.weight")
    assert head.grad is not None
    assert head.grad[1].abs().max() == 0
    assert head.grad[0].abs().max() > 0
    assert head.grad[2].abs().max() > 0


def test_the_loss_equals_that_of_a_plain_loop(data: MovieDataModule):
    network = network_of(data)
    module = module_of(data, network)
    torch.manual_seed(0)
    logits = torch.randn(FOLDS, 7, len(data.genres))
    targets = (torch.rand(7, len(data.genres)) < 0.3).float()
    folds = torch.tensor([0, 1, 2, 0, 1, 2, -1])
    losses = [
        nn.functional.binary_cross_entropy_with_logits(logits[m, b], targets[b], reduction="none")
        for m in range(FOLDS)
        for b in range(7)
        if int(folds[b]) != m
    ]
    expected = torch.stack(losses).mean()
    assert torch.allclose(module._loss(logits, targets, folds), expected, atol=1e-6)


def test_validation_logits_are_of_the_member_trained_without_the_movie(data: MovieDataModule):
    network = network_of(data)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_()
    network.eval()
    batch = next(iter(data.loader("val", device="cpu")))

    def per_member(name: str, part: Part) -> Tensor:
        logits: Tensor = network.branches[name](**part.numbers, per_member=True)
        padded = torch.zeros(FOLDS, len(batch), len(data.genres))
        padded[:, part.rows] = logits
        return padded

    total = network.prior + sum(per_member(name, part) for name, part in batch.parts.items())
    expected = torch.stack([total[int(fold), row] for row, fold in enumerate(batch.folds)])
    actual = network(batch.parts, len(batch), batch.folds)
    assert torch.allclose(actual, expected, atol=1e-5)
    mean = network(batch.parts, len(batch))
    assert torch.allclose(mean, total.mean(dim=0), atol=1e-5)


@pytest.fixture
def stacked(data: MovieDataModule, tmp_path: Path) -> tuple[GenreModule, pl.Trainer]:
    """A module with stacking that was trained for two epochs, and its trainer."""
    torch.manual_seed(0)
    module = module_of(data, network_of(data), stacking=True, micro_weight=0.3)
    trainer = pl.Trainer(
        default_root_dir=tmp_path, accelerator="cpu", max_epochs=2, logger=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(module, data)
    return module, trainer


def test_stacking_of_a_fold_is_fitted_on_the_others(
    data: MovieDataModule, stacked: tuple[GenreModule, pl.Trainer]
):
    module, trainer = stacked
    network = module.network.eval()
    stacking = network.stacking
    assert stacking is not None and len(stacking.offsets) == FOLDS
    rows = data.splits["val"]
    (batch,) = data.loader("val", batch_size=len(rows), device="cpu")
    with torch.inference_mode():
        branches = network.branch_logits(batch.parts, len(batch), batch.folds)
        sums, by_branch = network.total(branches), torch.stack(list(branches.values()), dim=1)
        logits = network(batch.parts, len(batch), batch.folds)
    for fold in range(FOLDS):
        others, own = batch.folds != fold, batch.folds == fold
        expected = fit_stacking(
            *(array[others].numpy() for array in (sums, by_branch, batch.targets))
        )
        np.testing.assert_allclose(stacking.genres[fold], expected.genres, atol=1e-4)
        np.testing.assert_allclose(stacking.offsets[fold], expected.offsets, atol=1e-4)
        answer = sums[own].numpy() + expit(sums[own].numpy()) @ expected.genres.T + expected.offsets
        for index, name in enumerate(branches):
            weights = expected.branches[index]
            np.testing.assert_allclose(stacking.branches[name][fold], weights, atol=1e-4)
            answer += (weights - 1) * by_branch[own, index].numpy()
        np.testing.assert_allclose(logits[own].numpy(), answer, atol=1e-3)
    scores = torch.sigmoid(logits)
    thresholds = fit_thresholds(scores, batch.targets, micro_weight=0.3)
    torch.testing.assert_close(module.thresholds, thresholds)
    metrics = trainer.callback_metrics
    for name, value in genre_metrics(scores, batch.targets, thresholds).items():
        assert float(metrics[f"val/{name}"]) == pytest.approx(value, abs=1e-5), name
    loss = nn.functional.binary_cross_entropy_with_logits(logits, batch.targets)
    assert float(metrics["val/loss"]) == pytest.approx(float(loss), rel=1e-5)


def test_a_checkpoint_with_stacking_scores_as_in_training(
    data: MovieDataModule, stacked: tuple[GenreModule, pl.Trainer], tmp_path: Path
):
    module, trainer = stacked
    trainer.save_checkpoint(tmp_path / "best.ckpt")
    model = load_model(tmp_path / "best.ckpt")
    assert model.threshold_fit == {"method": "expected", "micro_weight": 0.3}
    metrics = split_metrics(model, score_split(model, data, "val"))
    for name, value in trainer.callback_metrics.items():
        if name.startswith("val/"):
            assert metrics[name.removeprefix("val/")] == pytest.approx(float(value), abs=1e-6), name
    # A resumed run keeps its stacking until the next validation.
    resumed = module_of(data, network_of(data), stacking=True)
    resumed._trainer = trainer
    resumed.on_load_checkpoint(torch.load(tmp_path / "best.ckpt", weights_only=True))
    before, after = module.network.stacking, resumed.network.stacking
    assert before is not None and after is not None
    assert after.to_lists() == before.to_lists()


def test_label_sets_of_a_fold_are_counted_on_the_others(data: MovieDataModule, tmp_path: Path):
    network = network_of(data)
    targets, folds = data.train_labels()
    assert folds is not None
    network.label_sets = LabelSets.from_targets(targets, folds)
    module = module_of(data, network)
    trainer = pl.Trainer(
        default_root_dir=tmp_path, accelerator="cpu", max_epochs=2, logger=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "best.ckpt")
    model = load_model(tmp_path / "best.ckpt")
    scores = score_split(model, data, "val")
    metrics = split_metrics(model, scores)
    for name, value in trainer.callback_metrics.items():
        if name.startswith("val/"):
            assert metrics[name.removeprefix("val/")] == pytest.approx(float(value), abs=1e-6), name
    assert scores.folds is not None
    sums = model.network.total(scores.branch_logits)
    train = data.labels[data.splits["train"]]
    for fold in range(FOLDS):
        own = scores.folds == fold
        others = LabelSets.from_targets(train[folds != fold])
        expected = others.logits(sums[own])
        torch.testing.assert_close(scores.logits[own], expected, atol=1e-4, rtol=1e-4)


def test_label_sets_with_cross_entropy_are_refused(data: MovieDataModule):
    network = network_of(data)
    network.label_sets = LabelSets.from_targets(*data.train_labels())
    with pytest.raises(UserError, match=r"label_sets=true.*loss=bce"):
        GenreModule(
            network,
            build_loss("cross_entropy"),
            lambda groups: torch.optim.SGD(groups, lr=0.1, weight_decay=0.0),
            inputs=data.describe(),
            folds=FOLDS,
        )


def test_stacking_of_too_many_genres_is_refused(
    data: MovieDataModule, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("genre_lightning.training.module.MAX_STACKED_GENRES", 7)
    with pytest.raises(UserError, match=r"at most 7 genres, .* has 8; set training\.stacking"):
        module_of(data, network_of(data), stacking=True)
    module_of(data, network_of(data))


def test_stacking_needs_folds_and_refuses_cross_entropy(data: MovieDataModule):
    assert not module_of(data, network_of(data), folds=1, stacking=True).fits_stacking
    with pytest.raises(UserError, match=r"training\.stacking=true.*loss=bce"):
        GenreModule(
            network_of(data),
            build_loss("cross_entropy"),
            lambda groups: torch.optim.SGD(groups, lr=0.1, weight_decay=0.0),
            inputs=data.describe(),
            folds=FOLDS,
            stacking=True,
        )


def test_members_and_folds_must_agree(data: MovieDataModule):
    with pytest.raises(UserError, match=r"data\.folds=3.*words.*2 member.*model.members=3"):
        module_of(data, network_of(data, members=2))


def test_a_dataset_keeps_its_own_validation_split(tmp_path: Path):
    rows = [f"Movie {n} ({1950 + n}),,Drama|War,{split}" for n, split in enumerate(
        ["train"] * 8 + ["val"] * 4 + ["test"] * 4
    )]  # fmt: skip
    path = tmp_path / "movies.csv"
    path.write_text("title,poster,genres,split\n" + "\n".join(rows), "utf-8")
    inputs: dict[str, Input] = {"year": YearInput()}
    data = MovieDataModule("manifest", inputs, path=str(path), folds=4, cache_dir=tmp_path)
    data.setup()
    assert not data.validates_by_folds
    assert len(data.splits["val"]) == 4


@pytest.mark.parametrize("folds", [0, 65, 2.5, True])
def test_an_invalid_number_of_folds_is_refused(folds: Any):
    with pytest.raises(DataError, match=r"data\.folds"):
        MovieDataModule("demo", {}, folds=folds)
