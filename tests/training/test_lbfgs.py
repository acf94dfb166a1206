"""L-BFGS: the optimum of a penalised loss, against scikit-learn's logistic regression."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from sklearn.linear_model import LogisticRegression

from genre_lightning.data.datamodule import MovieDataModule
from genre_lightning.errors import UserError
from genre_lightning.inputs.input import Input
from genre_lightning.inputs.terms import TermsInput
from genre_lightning.inputs.year import YearInput
from genre_lightning.models.dropout import DROPOUTS
from genre_lightning.models.networks import build_network
from genre_lightning.scoring.losses import build_loss
from genre_lightning.training.lbfgs import LBFGS
from genre_lightning.training.module import GenreModule

L2 = {"words": 0.5, "year": 2.0}


@pytest.fixture
def data(tmp_path: Path) -> MovieDataModule:
    inputs: dict[str, Input] = {"words": TermsInput("title", 64), "year": YearInput()}
    module_data = MovieDataModule(
        "demo",
        inputs,
        root=str(tmp_path),
        num_movies=150,
        poster_height=32,
        batch_size=None,
        cache_dir=tmp_path,
        folds=3,
    )
    module_data.setup()
    return module_data


def module_of(data: MovieDataModule, **changes: Any) -> GenreModule:
    branches = {
        "words": {"name": "terms_linear", "input_dropout": 0.5},
        "year": {"name": "embedding_head", "norm": "none", "input_dropout": 0.5},
    }
    network = build_network(len(data.genres), branches, data.inputs, members=data.folds)
    counts = {"genre_counts": data.genre_counts().tolist(), "num_movies": len(data.splits["train"])}
    network.start_from_priors(**counts)
    arguments: dict[str, Any] = {"folds": data.folds, "branch_loss": 0.0, "l2": L2, **changes}
    return GenreModule(
        network,
        build_loss("bce", **counts),
        arguments.pop("optimizer", partial(LBFGS, weight_decay=1.0, max_iter=200)),
        inputs=data.describe(),
        num_movies=len(data.splits["train"]),
        **arguments,
    )


def fit(module: GenreModule, data: MovieDataModule, folder: Path, **arguments: Any) -> None:
    trainer = pl.Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
        **arguments,
    )
    trainer.fit(module, datamodule=data)


def dense(data: MovieDataModule, rows: np.ndarray) -> np.ndarray:
    """(N, V + D) float64: terms and years side by side, scaled so that each L2 becomes C = 1."""
    (batch,) = data.batches.gather([(rows, 0)]).batches()
    words, year = batch.parts["words"].numbers, batch.parts["year"].numbers["vectors"]
    size = data.inputs["words"].network_arguments()["vocabulary_size"]
    terms = np.zeros((len(rows), size))
    bounds = [*words["offsets"].tolist(), len(words["indices"])]
    for row in range(len(rows)):
        own = slice(bounds[row], bounds[row + 1])
        np.add.at(terms[row], words["indices"][own].numpy(), words["weights"][own].double().numpy())
    years = np.zeros((len(rows), year.shape[-1]))
    years[batch.parts["year"].rows.numpy()] = year.double().numpy().reshape(-1, year.shape[-1])
    return np.hstack([terms / L2["words"] ** 0.5, years / L2["year"] ** 0.5])


def test_each_member_is_the_logistic_regression_of_its_movies(
    data: MovieDataModule, tmp_path: Path
):
    """Both branches and all members at once: each genre is a regression over both columns."""
    module = module_of(data)
    fit(module, data, tmp_path)
    train, fold = data.splits["train"], data.batches.folds
    rows = np.concatenate([train, data.splits["test"]])
    (batch,) = data.batches.gather([(rows, 0)]).batches()
    module.network.train()
    for dropout in module.network.modules():
        if isinstance(dropout, DROPOUTS):
            dropout.eval()
    with torch.no_grad():
        logits = module.network.total(module.network.branch_logits(batch.parts, len(batch)))
    features = dense(data, rows)
    assert len(data.genres) > 3
    for member in range(data.folds):
        is_trained_on = np.isin(rows, train) & (fold[rows] != member)
        for genre in range(len(data.genres)):
            labels = data.labels[rows, genre]
            oracle = LogisticRegression(C=1.0, tol=1e-8, max_iter=5000)
            oracle.fit(features[is_trained_on], labels[is_trained_on])
            expected = oracle.decision_function(features)
            np.testing.assert_allclose(logits[member, :, genre].numpy(), expected, atol=0.02)


def test_the_penalty_matches_its_formula():
    """One step on a quadratic whose optimum is known: sum (w - 1)^2 / 2 + p / 2 w^2."""
    weights, bias = (torch.nn.Parameter(torch.zeros(3)) for _ in range(2))
    fixed = torch.nn.Parameter(torch.zeros(3))
    groups = [
        {"params": [weights], "weight_decay": 3.0, "lr": 1.0},
        {"params": [bias], "weight_decay": 0.0, "lr": 1.0},
        {"params": [fixed], "weight_decay": 3.0, "lr": 0.0},
    ]
    optimizer = LBFGS(groups, max_iter=50)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = sum(((p - 1).square().sum() / 2 for p in (weights, bias, fixed)), torch.zeros(()))
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(weights.data, torch.full((3,), 0.25), atol=1e-4, rtol=0)
    torch.testing.assert_close(bias.data, torch.ones(3), atol=1e-4, rtol=0)
    assert fixed.data.tolist() == [0, 0, 0]


@pytest.mark.parametrize("lr", [0.001, 1.0])
def test_the_first_step_of_the_line_search_does_not_change_the_optimum(
    lr: float, data: MovieDataModule, tmp_path: Path
):
    fits = []
    for first in (lr, 0.1):
        # With a smaller penalty, how near float32 comes to the optimum depends on the processor.
        module = module_of(data, optimizer=partial(LBFGS, lr=first, weight_decay=4.0, max_iter=200))
        fit(module, data, tmp_path)
        fits.append(module.network.branches["year"].get_parameter("head.weight").detach())
    torch.testing.assert_close(fits[0], fits[1], atol=0.01, rtol=0)


def test_a_branch_with_lr_scale_0_is_not_trained(data: MovieDataModule, tmp_path: Path):
    module = module_of(data, lr_scales={"words": 0.0})
    fit(module, data, tmp_path)
    assert not module.network.branches["words"].get_parameter("embed.weight").any()
    assert module.network.branches["year"].get_parameter("head.weight").any()


def test_gradient_clipping_is_refused(data: MovieDataModule, tmp_path: Path):
    with pytest.raises(UserError, match=r"lbfgs .*: set trainer\.gradient_clip_val=null"):
        fit(module_of(data), data, tmp_path, gradient_clip_val=1.0)


def test_all_movies_have_to_be_in_one_batch(data: MovieDataModule, tmp_path: Path):
    data.batch_size = 16
    size = len(data.splits["train"])
    with pytest.raises(UserError, match=rf"all {size} training movies .* data\.batch_size=null"):
        fit(module_of(data), data, tmp_path)
