"""Training that drops whole columns at random."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from genre_lightning.data.batch import MovieBatch
from genre_lightning.data.datamodule import MovieDataModule
from genre_lightning.errors import UserError
from genre_lightning.inputs.pixels import PixelsInput
from genre_lightning.inputs.terms import TermsInput
from genre_lightning.inputs.year import YearInput
from genre_lightning.models.networks import build_network
from genre_lightning.scoring.losses import build_loss
from genre_lightning.training.module import GenreModule
from tests.drawn import demo_data

NETWORKS: dict[str, dict[str, Any]] = {
    "terms": {"name": "terms_linear", "members": 2},
    "year": {"name": "embedding_head"},
    "poster": {"name": "poster_resnet", "widths": [4], "blocks": [1], "stem_stride": 2},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> MovieDataModule:
    inputs = {
        "terms": TermsInput("title", 128),
        "year": YearInput("title"),
        "poster": PixelsInput(size=16),
    }
    cache = tmp_path_factory.mktemp("cache")
    return demo_data(cache, inputs, batch_size=256, num_movies=300, missing_posters=0.4)


@pytest.fixture(scope="module")
def batch(data: MovieDataModule) -> MovieBatch:
    return next(iter(data.loader("train", device="cpu")))


def module(data: MovieDataModule, drop_columns: float, *names: str, **more: Any) -> GenreModule:
    chosen = {name: NETWORKS[name] for name in names or NETWORKS}
    inputs = {name: data.inputs[name] for name in chosen}
    described = data.describe()
    described["inputs"] = {name: described["inputs"][name] for name in chosen}
    network = build_network(len(data.genres), chosen, inputs, dropout=0.0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.fill_(1.0 if name.endswith("bias") else 0.01)
    optimizer = partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1)
    return GenreModule(
        network, build_loss("bce"), optimizer, inputs=described, drop_columns=drop_columns, **more
    )


def kept(own: GenreModule, batch: MovieBatch) -> dict[str, torch.Tensor]:
    """By branch, (B,) whether its logits are not zero: all movies that keep the column."""
    own.train()
    branch_logits = own.network.branch_logits(batch.parts, len(batch))
    dropped = own._apply_column_dropout(branch_logits, batch)
    for name, logits in dropped.items():
        # All of a movie or nothing, of every member.
        same = (logits == branch_logits[name]).all(dim=-1)
        nothing = (logits == 0).all(dim=-1)
        assert (same | nothing).all(), name
    found = {name: (logits != 0).any(dim=-1) for name, logits in dropped.items()}
    assert all((one == one[0]).all() for one in found.values() if one.ndim == 2)
    return {name: one[0] if one.ndim == 2 else one for name, one in found.items()}


def seen(batch: MovieBatch, name: str) -> torch.Tensor:
    has_column = torch.zeros(len(batch), dtype=torch.bool)
    has_column[batch.parts[name].rows] = True
    return has_column


def test_columns_go_as_a_whole_and_never_all_that_a_movie_has(
    data: MovieDataModule, batch: MovieBatch
) -> None:
    own = module(data, 0.6)
    assert 20 < len(batch.parts["poster"]) < len(batch)
    # Each title has a year.
    assert seen(batch, "year").all() and seen(batch, "terms").all()
    for seed in range(20):
        kept_movies = kept(own, replace(batch, seed=seed))
        assert torch.equal(kept_movies["terms"], kept_movies["year"])
        poster = seen(batch, "poster")
        assert not kept_movies["poster"][~poster].any()
        # Whoever has a title alone keeps it.
        assert kept_movies["terms"][~poster].all()
        assert (kept_movies["terms"] | kept_movies["poster"]).all()


def test_each_column_goes_as_often_as_asked_for(data: MovieDataModule, batch: MovieBatch) -> None:
    own, poster = module(data, 0.3), seen(batch, "poster")
    share = []
    for seed in range(60):
        kept_movies = kept(own, replace(batch, seed=seed))
        share.append(
            [float(kept_movies[name][poster].float().mean()) for name in ("terms", "poster")]
        )
    # Not dropped, or dropped together with the other one: 0.7 + 0.3 * 0.3.
    for one in torch.tensor(share).mean(dim=0).tolist():
        assert one == pytest.approx(0.79, abs=0.02)


def test_the_batchs_seed_tells_what_is_dropped(data: MovieDataModule, batch: MovieBatch) -> None:
    own = module(data, 0.5)
    state = torch.random.get_rng_state()
    first = own._apply_column_dropout(
        own.network.eval().branch_logits(batch.parts, len(batch)), batch
    )
    assert torch.equal(torch.random.get_rng_state(), state)
    again = own._apply_column_dropout(own.network.branch_logits(batch.parts, len(batch)), batch)
    other = replace(batch, seed=batch.seed + 1)
    changed = own._apply_column_dropout(own.network.branch_logits(batch.parts, len(batch)), other)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], changed[name]) for name in first)


def test_what_is_dropped_is_not_drawn_as_augmentation_is(
    data: MovieDataModule, batch: MovieBatch
) -> None:
    own, poster, agreed = module(data, 0.5, "terms", "poster"), seen(batch, "poster"), []
    for seed in range(10):
        # By the batch's own seed, as PosterAugment draws.
        drawn = torch.rand(len(batch), 2, generator=torch.Generator().manual_seed(seed)) >= 0.5
        by_the_seed = drawn[:, 0] | ~drawn.any(dim=1)
        kept_movies = kept(own, replace(batch, seed=seed))["terms"]
        agreed.append(float((kept_movies == by_the_seed)[poster].float().mean()))
    # By chance: both keep it, 0.75 ** 2, or both don't.
    assert sum(agreed) / len(agreed) == pytest.approx(0.625, abs=0.05)


def test_nothing_is_dropped_in_validation(data: MovieDataModule, batch: MovieBatch) -> None:
    collected = []
    for share in (0.0, 0.9):
        own = module(data, share).eval()
        own.validation_step(batch, 0)
        collected.append(own.collector.compute()[0])
        assert bool(collected[-1].any())
    assert torch.equal(*collected)


def test_with_one_column_nothing_is_dropped(data: MovieDataModule, batch: MovieBatch) -> None:
    own = module(data, 0.9, "terms", "year")
    branch_logits = own.network.branch_logits(batch.parts, len(batch))
    assert own._apply_column_dropout(branch_logits, batch) is branch_logits


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_share_out_of_range_is_refused(data: MovieDataModule, share: float) -> None:
    with pytest.raises(UserError, match=r"training\.drop_columns"):
        module(data, share)
