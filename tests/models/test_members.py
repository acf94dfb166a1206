"""Members of an ensemble, in a whole model."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from genre_lightning.data.batch import MovieBatch
from genre_lightning.data.datamodule import MovieDataModule
from genre_lightning.inputs.pixels import PixelsInput
from genre_lightning.inputs.terms import TermsInput
from genre_lightning.inputs.year import YearInput
from genre_lightning.models.dropout import DROPOUTS
from genre_lightning.models.fusion import Fusion
from genre_lightning.models.networks import build_network
from genre_lightning.scoring.losses import LOSSES, build_loss
from genre_lightning.training.module import GenreModule
from tests.drawn import demo_data

NETWORKS: dict[str, dict[str, Any]] = {
    "terms": {"name": "terms_linear"},
    "year": {"name": "embedding_head", "hidden": 4},
    "mlp": {"name": "terms_mlp", "hidden": 4},
    "poster": {"name": "poster_resnet", "widths": [4], "blocks": [1], "stem_stride": 2},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> MovieDataModule:
    inputs = {
        "terms": TermsInput("title", 128),
        "year": YearInput("title"),
        "mlp": TermsInput("title", 128, decade=True),
        "poster": PixelsInput(size=16),
    }
    cache = tmp_path_factory.mktemp("cache")
    return demo_data(cache, inputs, batch_size=16, num_movies=100, missing_posters=0.3)


def make_network(data: MovieDataModule, members: int, **changes: Any) -> Fusion:
    torch.manual_seed(0)
    networks = {name: {**network, **changes.get(name, {})} for name, network in NETWORKS.items()}
    fusion = build_network(len(data.genres), networks, data.inputs, members=members, dropout=0.0)
    with torch.no_grad():
        for parameter in fusion.parameters():
            parameter.normal_(0.0, 0.3)
    return fusion


def first_batch(data: MovieDataModule) -> MovieBatch:
    return next(iter(data.loader("train", device="cpu")))


def test_model_members_apply_to_every_network(data: MovieDataModule) -> None:
    branches = make_network(data, 3).description["branches"]
    members = {name: network.get("members") for name, network in branches.items()}
    assert members == {"terms": 3, "year": 3, "mlp": 3, "poster": 3}
    own = make_network(data, 3, terms={"members": 1}).description["branches"]
    assert own["terms"]["members"] == 1 and own["year"]["members"] == 3


def test_different_numbers_of_members_are_refused(data: MovieDataModule) -> None:
    with pytest.raises(ValueError, match=r"model\.members: the branches have 2 and 3 members"):
        make_network(data, 3, terms={"members": 2})


def test_branches_with_and_without_members_are_summed(data: MovieDataModule) -> None:
    single = {"mlp": {"members": 1}, "poster": {"members": 1}}
    ensemble, movies = make_network(data, 3, **single), first_batch(data)
    assert 0 < len(movies.parts["poster"]) < len(movies)
    ensemble.train()
    by_branch = ensemble.branch_logits(movies.parts, len(movies))
    g = len(data.genres)
    shapes = {name: tuple(logits.shape) for name, logits in by_branch.items()}
    assert shapes == {
        "terms": (3, len(movies), g),
        "year": (3, len(movies), g),
        "mlp": (len(movies), g),
        "poster": (len(movies), g),
    }
    total = ensemble.total(by_branch)
    assert total.shape == (3, len(movies), g)
    for m in range(3):
        expected = (
            ensemble.prior
            + by_branch["terms"][m]
            + by_branch["year"][m]
            + by_branch["mlp"]
            + by_branch["poster"]
        )
        torch.testing.assert_close(total[m], expected)


def test_prediction_averages_the_logits_of_members(data: MovieDataModule) -> None:
    ensemble, movies = make_network(data, 3), first_batch(data)
    ensemble.eval()
    expected = ensemble(movies.parts, len(movies))
    for layer in ensemble.train().modules():
        if isinstance(layer, DROPOUTS):
            layer.p = 0.0
        elif isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
            layer.eval()
    per_member = ensemble.total(ensemble.branch_logits(movies.parts, len(movies)))
    assert per_member.shape == (3, *expected.shape)
    torch.testing.assert_close(per_member.mean(0), expected, atol=1e-5, rtol=1e-5)


def make_module(
    data: MovieDataModule, fusion: Fusion, loss: str = "bce", **kwargs: Any
) -> GenreModule:
    counts = {"genre_counts": data.genre_counts().tolist(), "num_movies": 70}
    try:
        loss_function = build_loss(loss, **counts)
    except (TypeError, ValueError):
        loss_function = build_loss(loss)
    optimizer = partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1)
    return GenreModule(fusion, loss_function, optimizer, inputs=data.describe(), **kwargs)


@pytest.mark.parametrize("branch_loss", [0.0, 0.5])
def test_the_loss_is_the_mean_over_members(data: MovieDataModule, branch_loss: float) -> None:
    ensemble, movies = make_network(data, 3), first_batch(data)
    module = make_module(data, ensemble, branch_loss=branch_loss)
    module.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    for layer in ensemble.modules():
        if isinstance(layer, DROPOUTS):
            layer.p = 0.0
    actual = module.training_step(movies, 0)
    with torch.no_grad():
        by_branch = ensemble.branch_logits(movies.parts, len(movies))

    def member(name: str, m: int) -> torch.Tensor:
        return by_branch[name][m] if by_branch[name].ndim == 3 else by_branch[name]

    expected = np.mean(
        [
            float(
                F.binary_cross_entropy_with_logits(
                    ensemble.prior + sum(member(name, m) for name in by_branch), movies.targets
                )
            )
            for m in range(3)
        ]
    )
    if branch_loss:
        for name in by_branch:
            rows = movies.parts[name].rows
            expected += branch_loss * np.mean(
                [
                    float(
                        F.binary_cross_entropy_with_logits(
                            (ensemble.prior + member(name, m))[rows], movies.targets[rows]
                        )
                    )
                    for m in range(3)
                ]
            )
    assert actual.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_takes_members(data: MovieDataModule, loss: str) -> None:
    module = make_module(data, make_network(data, 2), loss)
    g = len(data.genres)
    logits, targets = torch.randn(2, 5, g), (torch.rand(5, g) < 0.3).float()
    each = [float(module.loss(logits[m], targets)) for m in range(2)]
    assert float(module._loss(logits, targets, torch.zeros(5))) == pytest.approx(
        np.mean(each), rel=1e-5
    )


def test_members_get_no_gradient_from_each_other(data: MovieDataModule) -> None:
    ensemble, movies = make_network(data, 3), first_batch(data)
    ensemble.train()
    total = ensemble.total(ensemble.branch_logits(movies.parts, len(movies)))
    total[1].square().sum().backward()
    head = ensemble.branches["year"].get_parameter("head.weight").grad
    assert head is not None and head[1].any() and not head[[0, 2]].any()


def test_a_checkpoint_with_members_is_rebuilt(data: MovieDataModule, tmp_path: Path) -> None:
    from genre_lightning.checkpoint.card import CHECKPOINT_KEY
    from genre_lightning.checkpoint.model import load_model

    ensemble, movies = make_network(data, 3), first_batch(data)
    module = make_module(data, ensemble)
    checkpoint: dict[str, Any] = {
        "epoch": 0, "global_step": 0, "state_dict": module.state_dict(),
        CHECKPOINT_KEY: module._card(),
    }  # fmt: skip
    torch.save(checkpoint, tmp_path / "m.ckpt")
    loaded = load_model(tmp_path / "m.ckpt").network
    assert torch.equal(
        loaded(movies.parts, len(movies)), ensemble.eval()(movies.parts, len(movies))
    )
