from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from genre_lightning.checkpoint.model import TrainedModel, load_model
from genre_lightning.explain.explainer import TextExplanation
from genre_lightning.explain.parts import score_parts
from genre_lightning.explain.table import explain_branch
from genre_lightning.inputs.year import YearInput


@pytest.fixture(scope="module")
def model(make_checkpoint: Callable[..., Path]) -> TrainedModel:
    year = YearInput("title")
    year.years = 1950, 1999
    return load_model(make_checkpoint(more={"year": (year, {"name": "embedding_head"})}))


def test_the_year_has_the_whole_part_of_its_branch(model: TrainedModel):
    title = "1984 (1984)"
    found = explain_branch(model, "year", title)
    assert isinstance(found, TextExplanation)
    (part,) = found.parts
    assert (part.text, part.kind) == ("released in 1984", "year")
    assert part.span is not None and title[slice(*part.span)] == "1984" and part.span[0] == 6
    branch_input = model.inputs["year"]
    with torch.no_grad():
        logits = model.network.branches["year"](
            branch_input.prepare(branch_input.encode([1984]), None)["vectors"]
        )
    np.testing.assert_allclose(part.contributions, logits[0].numpy(), atol=1e-6)
    parts = score_parts(model, {"title": title})
    np.testing.assert_allclose(parts.branches["year"], part.contributions, atol=1e-6)
    assert part.contributions.any()


def test_a_title_without_a_year_adds_nothing(model: TrainedModel):
    assert explain_branch(model, "year", "Heat") is None
    parts = score_parts(model, {"title": "Heat"})
    assert not parts.branches["year"].any() and parts.branches["title_tfidf"].any()
