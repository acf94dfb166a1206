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


def make_module(
    data: MovieDataModule, drop_columns: float, *names: str, **more: Any
) -> GenreModule:
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


def kept(module: GenreModule, batch: MovieBatch) -> dict[str, torch.Tensor]:
    """By branch, (B,) whether a movie has the column and keeps it: its logits are not zero."""
    module.train()
    branch_logits = module.network.branch_logits(batch.parts, len(batch))
    dropped = module._apply_column_dropout(branch_logits, batch)
    for name, logits in dropped.items():
        # Each member keeps all logits of a movie or none.
        same = (logits == branch_logits[name]).all(dim=-1)
        zero = (logits == 0).all(dim=-1)
        assert (same | zero).all(), name
    masks = {name: (logits != 0).any(dim=-1) for name, logits in dropped.items()}
    assert all((mask == mask[0]).all() for mask in masks.values() if mask.ndim == 2)
    return {name: mask[0] if mask.ndim == 2 else mask for name, mask in masks.items()}


def has_column(batch: MovieBatch, name: str) -> torch.Tensor:
    mask = torch.zeros(len(batch), dtype=torch.bool)
    mask[batch.parts[name].rows] = True
    return mask


def test_columns_are_dropped_whole_and_never_all_of_a_movie(
    data: MovieDataModule, batch: MovieBatch
) -> None:
    module = make_module(data, 0.6)
    assert 20 < len(batch.parts["poster"]) < len(batch)
    # Each title has a year.
    assert has_column(batch, "year").all() and has_column(batch, "terms").all()
    for seed in range(20):
        kept_movies = kept(module, replace(batch, seed=seed))
        assert torch.equal(kept_movies["terms"], kept_movies["year"])
        poster = has_column(batch, "poster")
        assert not kept_movies["poster"][~poster].any()
        # A movie with only a title keeps it.
        assert kept_movies["terms"][~poster].all()
        assert (kept_movies["terms"] | kept_movies["poster"]).all()


def test_each_column_is_dropped_at_the_given_rate(data: MovieDataModule, batch: MovieBatch) -> None:
    module, poster = make_module(data, 0.3), has_column(batch, "poster")
    share = []
    for seed in range(60):
        kept_movies = kept(module, replace(batch, seed=seed))
        share.append(
            [float(kept_movies[name][poster].float().mean()) for name in ("terms", "poster")]
        )
    # Not dropped, or restored since the other would be dropped, too: 0.7 + 0.3 * 0.3.
    for mean in torch.tensor(share).mean(dim=0).tolist():
        assert mean == pytest.approx(0.79, abs=0.02)


def test_the_seed_of_a_batch_decides_what_is_dropped(
    data: MovieDataModule, batch: MovieBatch
) -> None:
    module = make_module(data, 0.5)
    state = torch.random.get_rng_state()
    branch_logits = module.network.eval().branch_logits(batch.parts, len(batch))
    first = module._apply_column_dropout(branch_logits, batch)
    assert torch.equal(torch.random.get_rng_state(), state)
    again = module._apply_column_dropout(branch_logits, batch)
    changed = module._apply_column_dropout(branch_logits, replace(batch, seed=batch.seed + 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], changed[name]) for name in first)


def test_dropping_is_independent_of_augmentation(data: MovieDataModule, batch: MovieBatch) -> None:
    module, poster = make_module(data, 0.5, "terms", "poster"), has_column(batch, "poster")
    agreement = []
    for seed in range(10):
        # Drawn from the batch's own seed, as in PosterAugment.
        drawn = torch.rand(len(batch), 2, generator=torch.Generator().manual_seed(seed)) >= 0.5
        kept_by_seed = drawn[:, 0] | ~drawn.any(dim=1)
        kept_movies = kept(module, replace(batch, seed=seed))["terms"]
        agreement.append(float((kept_movies == kept_by_seed)[poster].float().mean()))
    # By chance: both keep the title, 0.75 ** 2, or both drop it, 0.25 ** 2.
    assert sum(agreement) / len(agreement) == pytest.approx(0.625, abs=0.05)


def test_nothing_is_dropped_in_validation(data: MovieDataModule, batch: MovieBatch) -> None:
    collected = []
    for share in (0.0, 0.9):
        module = make_module(data, share).eval()
        module.validation_step(batch, 0)
        collected.append(module.collector.compute()[0])
        assert bool(collected[-1].any())
    assert torch.equal(*collected)


def test_with_one_column_nothing_is_dropped(data: MovieDataModule, batch: MovieBatch) -> None:
    module = make_module(data, 0.9, "terms", "year")
    branch_logits = module.network.branch_logits(batch.parts, len(batch))
    assert module._apply_column_dropout(branch_logits, batch) is branch_logits


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_share_out_of_range_is_refused(data: MovieDataModule, share: float) -> None:
    with pytest.raises(UserError, match=r"training\.drop_columns"):
        make_module(data, share)
