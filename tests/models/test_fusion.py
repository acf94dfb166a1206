"""The sum of two branches, and what a description may ask for."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from genre_lightning.models.networks import NETWORKS, build_network

TITLE: dict[str, Any] = {"name": "title_mlp", "vocabulary_size": 50, "hidden": 8}
POSTER: dict[str, Any] = {"name": "poster_resnet", "widths": [4, 8], "blocks": [1, 1]}


def batch(posters: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "title_indices": torch.tensor([1, 4, 49, 4, 7]),
        "title_offsets": torch.tensor([0, 2, 3, 3]),  # the third title is empty
        "title_weights": torch.tensor([0.5, 0.5, 1.0, 0.2, 0.9]),
        "posters": torch.randn(posters, 3, 32, 32, generator=generator),
        "poster_rows": torch.tensor([3, 1])[:posters],
    }


def test_sum_scatters_posters_to_their_rows() -> None:
    network = build_network(3, TITLE, POSTER, dropout=0.0).eval()
    inputs = batch()
    assert network.title is not None and network.poster is not None
    titles = network.title(*(inputs[f"title_{name}"] for name in ("indices", "offsets", "weights")))
    posters = network.poster(inputs["posters"])
    expected = torch.stack([titles[0], titles[1] + posters[1], titles[2], titles[3] + posters[0]])
    torch.testing.assert_close(network(**inputs), expected)


def test_a_missing_poster_adds_exactly_nothing() -> None:
    network = build_network(3, TITLE, POSTER, dropout=0.0).eval()
    title, poster = network.branch_logits(**batch())
    assert torch.equal(poster[[0, 2]], torch.zeros(2, 3))
    assert torch.equal(network(**batch())[[0, 2]], title[[0, 2]])


def test_other_movies_posters_do_not_change_a_movie() -> None:
    network = build_network(3, TITLE, POSTER, dropout=0.0).eval()
    changed = batch()
    changed["posters"][0] += 1  # belongs to row 3
    before, after = network(**batch()), network(**changed)
    torch.testing.assert_close(before[:3], after[:3])
    assert not torch.allclose(before[3], after[3])


def test_a_movie_of_which_nothing_is_known_scores_as_often_as_the_genre_occurs() -> None:
    network = build_network(3, None, POSTER, dropout=0.0).eval()
    network.start_from_priors([50, 5, 0], 100)
    scores = torch.sigmoid(network(**batch()))[[0, 2]]
    torch.testing.assert_close(scores, torch.tensor([[0.5, 5.5 / 101, 0.5 / 101]] * 2))


def test_a_batch_without_posters_still_gives_every_parameter_a_gradient() -> None:
    network = build_network(3, TITLE, POSTER)
    network(**batch(posters=0)).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("absent", ["title", "poster"])
def test_one_branch_alone(absent: str) -> None:
    parts: dict[str, Any] = {"title": TITLE, "poster": POSTER, absent: None}
    network = build_network(3, dropout=0.0, **parts).eval()
    title, poster = network.branch_logits(**batch())
    assert not {"title": title, "poster": poster}[absent].any()
    assert network(**batch()).any()


@pytest.mark.parametrize("name", sorted(BRANCHES))
def test_every_number_of_a_branch_has_limits_and_a_default_inside_them(name: str) -> None:
    key = name.split("_")[0]
    parts: dict[str, Any] = {key: {"name": name}}
    described = build_network(2, **parts).description[key]
    assert set(described) - {"name"} == set(BRANCHES[name].limits)


def test_description_rebuilds_the_same_network() -> None:
    network = build_network(3, TITLE, POSTER, dropout=0.4)
    twin = build_network(**network.description)
    assert twin.description == network.description
    assert network.description["title"]["dropout"] == 0.4
    twin.load_state_dict(network.state_dict())
    torch.testing.assert_close(twin.eval()(**batch()), network.eval()(**batch()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"title": None, "poster": None}, "a title branch or a poster branch"),
        ({"num_genres": 0}, "num_genres"),
        ({"num_genres": True}, "num_genres"),
        ({"title": {**TITLE, "hidden": 10**9}}, "model.title.hidden"),
        ({"title": {**TITLE, "hidden": 8.0}}, "model.title.hidden"),
        ({"title": {**TITLE, "dropout": float("nan")}}, "model.title.dropout"),
        ({"title": {**TITLE, "hiden": 8}}, "no argument 'hiden'"),
        ({"title": {"name": "os.system"}}, "known title branches are"),
        ({"title": {"name": "poster_resnet"}}, "known title branches are"),
        ({"poster": {**POSTER, "widths": [4] * 99}}, "model.poster.widths"),
        ({"poster": {**POSTER, "widths": [4, 10**9]}}, "model.poster.widths"),
        ({"poster": {**POSTER, "widths": [4]}}, "differ in length"),
        ({"poster": {**POSTER, "widths": [4096] * 16, "blocks": [64] * 16}}, "parameters"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_descriptions_are_refused_by_key(change: dict[str, Any], message: str) -> None:
    arguments = {"num_genres": 3, "title": TITLE, "poster": POSTER, **change}
    with pytest.raises(ValueError, match=message):
        build_network(**arguments)
