from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from genre_lightning.checkpoint.model import TrainedModel, load_model
from genre_lightning.explain.parts import branch_labels, score_parts, split_logits
from genre_lightning.explain.table import branch_weights
from genre_lightning.inputs.encode import encode_items
from genre_lightning.inputs.pixels import PixelsInput
from genre_lightning.inputs.terms import TermsInput
from genre_lightning.inputs.vectors import VectorsInput
from tests.explain.conftest import (
    POSTER,
    SYNOPSIS,
    TITLE,
    draw_poster,
    poster_logits,
    text_logits,
)


@pytest.mark.parametrize("with_poster", [True, False])
@pytest.mark.parametrize("title", ["Heat (1995)", "qqq", "", None])
def test_parts_of_a_score_add_up(tiny: TrainedModel, title: str | None, with_poster: bool):
    pixels = draw_poster() if with_poster else None
    parts = score_parts(tiny, {"title": title, "poster": pixels})
    bias = tiny.network.prior.double()
    expected = bias
    if title:
        bias = bias + text_logits(tiny, TITLE, "").double()
        expected = expected + text_logits(tiny, TITLE, title).double()
    if pixels is not None:
        expected = expected + poster_logits(tiny.network.branches[POSTER], pixels).double()
    np.testing.assert_allclose(parts.logits, expected.numpy(), atol=1e-5)
    np.testing.assert_allclose(parts.bias, bias.numpy(), atol=1e-6)
    assert parts.branches[TITLE].any() == (title == "Heat (1995)")
    assert parts.branches[POSTER].any() == with_poster
    assert parts.bias.dtype == np.float64 and tiny.network.prior.all()
    assert parts.cooccurrence is None and parts.cooccurrence_of(0) == {}


def test_an_empty_movie_has_the_prior(stacked: TrainedModel):
    parts = score_parts(stacked, {})
    np.testing.assert_array_equal(parts.bias, stacked.network.prior.double().numpy())
    assert parts.cooccurrence is not None
    np.testing.assert_array_equal(parts.logits, parts.bias + parts.cooccurrence)
    assert list(parts.branches) == [TITLE, POSTER, "plot", "other_eye"]


@pytest.mark.parametrize("absent", [(), ("synopsis",), ("title", "poster")])
def test_parts_add_up_to_the_networks_logits(stacked: TrainedModel, absent: tuple[str, ...]):
    columns: dict[str, Any] = {
        "title": "Heat (1995)",
        "poster": draw_poster(size=(90, 60)),
        "synopsis": SYNOPSIS,
        "director": "no branch looks at it",
    }
    columns = {name: value for name, value in columns.items() if name not in absent}
    items = {
        branch: [
            branch_input.read(columns[branch_input.column])
            if branch_input.column in columns
            else None
        ]
        for branch, branch_input in stacked.inputs.items()
    }
    with torch.no_grad():
        logits = stacked.network(encode_items(stacked.inputs, items), 1)[0]
    parts = score_parts(stacked, columns)
    np.testing.assert_allclose(parts.logits, logits.numpy(), atol=1e-5)
    assert stacked.network.stacking is not None and parts.cooccurrence is not None
    with torch.no_grad():
        branch_logits = stacked.network.branch_logits(encode_items(stacked.inputs, items), 1)
        total = stacked.network.total(branch_logits)
        scores = torch.sigmoid(total)[0].numpy()
    stacking, sets = stacked.network.stacking, stacked.network.label_sets
    added = scores @ stacking.genres.mean(dim=0).numpy().T + stacking.offsets.mean(dim=0).numpy()
    weighted = total[0].numpy() + added
    for branch, logits in branch_logits.items():
        weighted += (branch_weights(stacked, branch) - 1) * logits[0].numpy()
    assert sets is not None
    final = sets.logits(torch.from_numpy(weighted)[None])[0].numpy()
    assert np.abs(final - weighted).max() > 0.1
    np.testing.assert_allclose(parts.cooccurrence, added + final - weighted, atol=1e-4)
    assert parts.cooccurrence_of(2) == {"cooccurrence": parts.cooccurrence[2]}
    assert [bool(part.any()) for part in parts.branches.values()] == [
        branch_input.column in columns for branch_input in stacked.inputs.values()
    ]


def test_split_logits_agrees_with_score_parts(stacked: TrainedModel):
    pixels = draw_poster()
    expected = score_parts(stacked, {"poster": pixels, "synopsis": SYNOPSIS})
    weights = branch_weights(stacked, "other_eye")
    assert np.abs(weights - 1).max() > 0.1
    with torch.no_grad():
        known_logits = {
            TITLE: None,
            POSTER: poster_logits(stacked.network.branches[POSTER], pixels).numpy(),
            "plot": text_logits(stacked, "plot", SYNOPSIS).numpy(),
            "other_eye": expected.branches["other_eye"] / weights,
        }
    found = split_logits(stacked, known_logits)
    np.testing.assert_allclose(found.bias, expected.bias, atol=1e-6)
    for branch, part in found.branches.items():
        np.testing.assert_allclose(part, expected.branches[branch], atol=1e-5)


def test_a_model_of_one_branch_ignores_other_columns(make_checkpoint: Callable[..., Path]):
    title = load_model(make_checkpoint(poster=None))
    parts = score_parts(title, {"title": "Heat", "poster": draw_poster()})
    assert list(parts.branches) == [TITLE] and parts.branches[TITLE].any()
    image = load_model(make_checkpoint(title=None))
    parts = score_parts(image, {"title": "Heat", "poster": draw_poster()})
    assert list(parts.branches) == [POSTER] and parts.branches[POSTER].any()
    np.testing.assert_array_equal(parts.bias, image.network.prior.double().numpy())


@pytest.mark.parametrize(
    "bad",
    [np.zeros((32, 32), np.uint8), np.zeros((32, 32, 4), np.uint8), np.zeros((32, 32, 3))],
    ids=["gray", "four channels", "float"],
)
def test_arrays_that_are_not_images_are_refused(tiny: TrainedModel, bad: np.ndarray):
    with pytest.raises(TypeError, match="uint8"):
        score_parts(tiny, {"poster": bad})


def test_branches_are_labelled_by_their_column_if_it_is_unambiguous():
    assert branch_labels({"a": TermsInput("title"), "b": PixelsInput()}) == {
        "a": "title",
        "b": "poster",
    }
    assert branch_labels(
        {"a": TermsInput("cast"), "b": PixelsInput(), "c": TermsInput("cast")}
    ) == {
        "a": "a",
        "b": "poster",
        "c": "c",
    }
    # The branch named cast looks at another column.
    confusing = {"cast": TermsInput("title"), "b": TermsInput("cast"), "c": TermsInput("title")}
    assert branch_labels(confusing) == {"cast": "cast", "b": "b", "c": "c"}
    assert branch_labels({"cast": TermsInput("cast")}) == {"cast": "cast"}
    assert branch_labels({"answers": VectorsInput("x.npz")}) == {"answers": "answers"}
