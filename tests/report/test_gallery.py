"""Which movies the gallery shows, and whether their cards add up."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from genre_lightning.data.datamodule import MovieDataModule
from genre_lightning.explain.parts import score_parts
from genre_lightning.inputs.input import Input
from genre_lightning.inputs.year import YearInput
from genre_lightning.models.networks import build_network
from genre_lightning.models.stacking import Stacking
from genre_lightning.movies.movie import PosterFile
from genre_lightning.report.card import BranchCard, thumbnail
from genre_lightning.report.evaluation import score_split
from genre_lightning.report.gallery import (
    Card,
    Pick,
    make_card,
    margins,
    most_confident,
)
from tests.report.conftest import GENRES

THRESHOLDS = np.array([0.5, 0.2], dtype=np.float32)


def test_margins_are_differences_of_logits():
    assert margins(np.array([[0.5, 0.5]]), THRESHOLDS)[0] == pytest.approx([0.0, np.log(4.0)])
    assert np.isfinite(margins(np.array([[0.0, 1.0]]), np.array([1.0, 0.0]))).all()


def test_each_list_is_sorted_by_confidence():
    scores = np.array(
        [
            [0.9, 0.1],  # right, sure
            [0.6, 0.1],  # right, less sure
            [0.8, 0.19],  # second genre missed, closely
            [0.1, 0.9],  # second genre invented
            [0.3, 0.1],  # first genre missed
            [0.1, 0.1],  # right, but nothing predicted
            [0.95, 0.21],  # right, the second genre barely
        ],
        dtype=np.float32,
    )
    targets = np.array([[1, 0], [1, 0], [1, 1], [0, 0], [1, 0], [0, 0], [1, 1]])
    picks_by_list = most_confident(scores, targets, THRESHOLDS, max_picks=5)
    assert picks_by_list["right"] == [Pick(0, 0), Pick(1, 0), Pick(6, 1)]
    assert picks_by_list["invented"] == [Pick(3, 1)]
    assert picks_by_list["missed"] == [Pick(4, 0), Pick(2, 1)]


def test_no_list_is_filled_by_one_genre_or_shows_a_movie_twice():
    generator = np.random.default_rng(0)
    scores = generator.random((200, 3)).astype(np.float32)
    targets = generator.random((200, 3)) < 0.4
    picks_by_list = most_confident(scores, targets, np.full(3, 0.5), max_picks=5, max_per_genre=2)
    for picks in picks_by_list.values():
        assert len(picks) == 5
        assert len({pick.index for pick in picks}) == 5
        assert max(np.bincount([pick.genre for pick in picks])) <= 2


def test_lists_can_be_empty():
    picks_by_list = most_confident(
        np.zeros((4, 2), np.float32), np.zeros((4, 2)), THRESHOLDS, max_picks=3
    )
    assert picks_by_list == {"right": [], "invented": [], "missed": []}


def card_of(case: Any, number: int, genre: int = 0) -> Card:
    return make_card(case.model, case.data, case.scores, Pick(number, genre))


def by_label(card: Card) -> dict[str, BranchCard]:
    return {branch.label: branch for branch in card.branches}


@pytest.mark.parametrize("number", range(8))
def test_parts_of_an_explanation_add_up(three_branches: Any, number: int):
    movie = three_branches.data.movie_set.movies[int(three_branches.scores.rows[number])]
    values = {
        name: value.path if isinstance(value, PosterFile) else value
        for name, value in movie.columns.items()
        if not (isinstance(value, PosterFile) and number in (3, 4))
    }
    expected = score_parts(three_branches.model, values)
    for genre in range(4):
        card = card_of(three_branches, number, genre)
        assert card.bias == pytest.approx(expected.bias[genre], abs=1e-5)
        assert card.bias + sum(b.part for b in card.branches) == pytest.approx(card.logit)
        assert list(by_label(card)) == ["title", "poster", "synopsis"]
        for branch, part in zip(card.branches, expected.branches.values(), strict=True):
            assert branch.part == pytest.approx(part[genre], abs=1e-4)
            if branch.label != "poster" and not branch.absent:
                assert branch.other_words is not None
                words = sum(value for _, value in branch.words) + branch.other_words
                assert words == pytest.approx(branch.part, abs=1e-4)


def test_stacking_weights_the_parts_and_adds_co_occurrence(
    three_branches: Any, monkeypatch: pytest.MonkeyPatch
):
    names = list(three_branches.model.inputs)
    weights = {name: torch.linspace(0.5, 2, 4)[None] + k for k, name in enumerate(names)}
    stacking = Stacking(weights, torch.linspace(-2, 2, 16).view(1, 4, 4), torch.ones(1, 4))
    before = card_of(three_branches, 0, 2)
    monkeypatch.setattr(three_branches.model.network, "stacking", stacking)
    card = card_of(three_branches, 0, 2)
    *branches, last = card.branches
    assert last.label == "co-occurrence" and not last.absent and not last.words
    scores = torch.sigmoid(three_branches.scores.logits[0].double())
    assert last.part == pytest.approx(float(stacking.genres[0, 2].double() @ scores) + 1, abs=1e-5)
    for name, branch, plain in zip(names, branches, before.branches, strict=True):
        weight = float(weights[name][0, 2])
        assert branch.part == pytest.approx(weight * plain.part, abs=1e-5)
        if branch.words:
            assert branch.other_words is not None
            words = sum(value for _, value in branch.words) + branch.other_words
            assert words == pytest.approx(branch.part, abs=1e-4)
    total = card.bias + sum(branch.part for branch in card.branches)
    assert card.logit == pytest.approx(total)
    branch_logits = {name: each[:1] for name, each in three_branches.scores.branch_logits.items()}
    assert card.logit == pytest.approx(
        float(three_branches.model.network.final_logits(branch_logits)[0, 2]), abs=1e-4
    )


def test_a_card_uses_the_stacking_of_the_movies_fold(
    three_branches: Any, monkeypatch: pytest.MonkeyPatch
):
    case, network = three_branches, three_branches.model.network
    weights = {name: torch.linspace(0.5, 2, 8).view(2, 4) for name in case.model.inputs}
    stacking = Stacking(weights, torch.linspace(-2, 2, 32).view(2, 4, 4), torch.eye(2, 4))
    monkeypatch.setattr(network, "stacking", stacking)
    folds = torch.arange(len(case.scores.rows)) % 2
    scores = replace(case.scores, folds=folds)
    for number in (2, 3):
        card = make_card(case.model, case.data, scores, Pick(number, 1))
        branch_logits = {name: each[[number]] for name, each in scores.branch_logits.items()}
        expected = float(network.final_logits(branch_logits, folds[[number]])[0, 1])
        assert card.logit == pytest.approx(expected, abs=1e-4)


def test_words_of_a_card_are_those_of_the_member_that_scored_the_movie(three_branches: Any):
    case = three_branches
    when = YearInput("title")
    when.years = (1979, 1995)
    inputs: dict[str, Input] = {**case.model.inputs, "when": when}
    networks: dict[str, dict[str, Any]] = {
        "name": {"name": "terms_linear"}, "plot": {"name": "terms_mlp", "hidden": 8},
        "when": {"name": "embedding_head"},
    }  # fmt: skip
    inputs = {name: inputs[name] for name in networks}
    torch.manual_seed(0)
    network = build_network(
        len(GENRES), {name: {**net, "members": 2} for name, net in networks.items()}, inputs
    ).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)
    model = replace(case.model, network=network, inputs=inputs)
    data = MovieDataModule(
        "manifest", inputs, path=str(case.manifest), genres=GENRES, cache_dir=case.data.cache_dir
    )
    data.setup()
    scores = score_split(model, data, "test")
    folds = torch.arange(len(scores.rows)) % 2
    (batch,) = data.loader("test", batch_size=len(folds), device="cpu")
    with torch.inference_mode():
        branch_logits = network.branch_logits(batch.parts, len(batch), folds)
    scores = replace(scores, folds=folds, branch_logits=branch_logits)
    for number in (2, 3, 10, 11):
        card = make_card(model, data, scores, Pick(number, 1))
        logit = network.total({name: each[number] for name, each in branch_logits.items()})[1]
        assert card.logit == pytest.approx(float(logit), abs=1e-4)
        explained = [branch for branch in card.branches if branch.words]
        assert len(explained) >= 2
        for branch in explained:
            assert branch.other_words is not None
            words = sum(value for _, value in branch.words) + branch.other_words
            assert words == pytest.approx(branch.part, abs=1e-4)


@pytest.mark.parametrize("fixture_name", ["two_branches", "three_branches"])
def test_a_card_explains_the_score_it_shows(fixture_name: str, request: pytest.FixtureRequest):
    case = request.getfixturevalue(fixture_name)
    card = card_of(case, 0, 1)
    assert card.score == pytest.approx(1 / (1 + np.exp(-card.logit)), abs=1e-5)
    movie = case.data.movie_set.movies[int(case.scores.rows[0])]
    assert card.true_genres == list(movie.genres)
    assert {g.genre for g in card.genres if g.verdict in ("hit", "missed")} == set(movie.genres)
    shown = [g.score for g in card.genres]
    assert shown == sorted(shown, reverse=True)


def test_texts_that_the_model_reads_are_shown_shortened(two_branches: Any, three_branches: Any):
    assert card_of(two_branches, 0).texts == []
    ((column, text),) = card_of(three_branches, 0).texts
    movie = three_branches.data.movie_set.movies[int(three_branches.scores.rows[0])]
    assert column == "synopsis" and len(text) <= 160 and text.endswith(" …")
    assert movie.value("synopsis").startswith(text[:-2])
    assert card_of(three_branches, 1).texts == []  # this movie has no synopsis


def test_a_column_that_a_movie_lacks_adds_nothing(three_branches: Any):
    branch_cards = by_label(card_of(three_branches, 5))  # has neither poster nor synopsis
    assert [branch.absent for branch in branch_cards.values()] == [False, True, True]
    for name in ("poster", "synopsis"):
        assert (branch_cards[name].part, branch_cards[name].words, branch_cards[name].heat) == (
            0.0,
            [],
            None,
        )
    assert branch_cards["title"].words


def test_a_branch_without_an_explainer_still_has_its_part(make_case: Any):
    class Unknown(nn.Module):
        def forward(self, **numbers: Tensor) -> Tensor:
            return torch.ones(1, 3)

    case = make_case(["Action", "Comedy", "Drama"])
    expected = by_label(card_of(case, 0))
    case.model.network.branches["picture"] = Unknown()
    branch_cards = by_label(card_of(case, 0))
    assert branch_cards["poster"].part == pytest.approx(expected["poster"].part)
    assert branch_cards["poster"].heat is None and not branch_cards["poster"].no_evidence


def open_uri(uri: str) -> Image.Image:
    kind, _, data = uri.partition(";base64,")
    assert kind == "data:image/jpeg"
    return Image.open(io.BytesIO(base64.b64decode(data)))


@pytest.mark.parametrize(
    ("number", "reason"),
    [(0, ""), (3, "poster unreadable"), (4, "poster not there"), (5, "no poster")],
)
def test_cards_say_why_there_is_no_poster(two_branches: Any, number: int, reason: str):
    card = card_of(two_branches, number)
    branch_card = by_label(card)["poster"]
    assert card.no_poster == reason and branch_card.absent == bool(reason)
    if reason:
        assert card.poster is None and branch_card.heat is None and not branch_card.no_evidence
        assert branch_card.part == 0.0
        return
    assert card.poster is not None
    assert open_uri(card.poster).size == (160, 240)  # from 40 x 60
    if branch_card.heat is not None:
        assert open_uri(branch_card.heat).size == (160, 240)
    assert (branch_card.heat is None) == branch_card.no_evidence


def test_a_poster_deleted_after_scoring_has_no_heat_map(make_case: Any):
    case = make_case(["Action", "Comedy", "Drama"])
    (case.manifest.parent / "test0.png").unlink()
    card = card_of(case, 0)
    branch_card = by_label(card)["poster"]
    assert card.no_poster == "poster not there" and branch_card.heat is None
    assert not branch_card.absent and branch_card.part != 0.0


def save(path: Path, size: tuple[int, int], **options: Any) -> PosterFile:
    Image.new("RGB", size, "red").save(path, **options)
    return PosterFile(path, None, path.stat().st_size, 0)


def test_thumbnails_keep_proportions_within_bounds(tmp_path: Path):
    upright = Image.Exif()
    upright[0x0112] = 6  # a quarter turn
    turned, _ = thumbnail(save(tmp_path / "turned.jpg", (60, 40), exif=upright))
    banner, _ = thumbnail(save(tmp_path / "banner.png", (600, 40)))
    assert turned is not None and turned.size == (160, 240)
    assert banner is not None and banner.size == (240, 240)
