"""The sum of branches, on hand-made parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from genre_lightning.inputs.part import JoinedPart, Part
from genre_lightning.inputs.pixels import PixelsInput
from genre_lightning.inputs.terms import TermsInput
from genre_lightning.models.fusion import Fusion
from genre_lightning.models.networks import build_network

INPUTS = {
    "title": TermsInput("title", 50),
    "poster": PixelsInput(size=32),
    "plot": TermsInput("synopsis", 50, "word", (1, 1)),
}
NETWORKS: dict[str, dict[str, Any]] = {
    "title": {"name": "terms_mlp", "hidden": 8},
    "poster": {"name": "poster_resnet", "widths": [4, 8], "blocks": [1, 1]},
    "plot": {"name": "terms_mlp", "hidden": 4, "skip": True},
}


def build(*names: str, dropout: float = 0.0) -> Fusion:
    torch.manual_seed(0)
    return build_network(
        3,
        {name: NETWORKS[name] for name in names},
        {name: INPUTS[name] for name in names},
        dropout=dropout,
    )


def batch(posters: int = 2) -> dict[str, Part]:
    """Four movies: all with a title, two with a poster, none with a synopsis."""
    generator = torch.Generator().manual_seed(1)
    titles = {
        "indices": torch.tensor([1, 4, 49, 4, 7]),
        "offsets": torch.tensor([0, 2, 3, 3]),  # the third title is empty
        "weights": torch.tensor([0.5, 0.5, 1.0, 0.2, 0.9]),
    }
    pixels = torch.randn(posters, 3, 32, 32, generator=generator)
    no_plots = {name: value[:0] for name, value in titles.items()}
    return {
        "title": Part(torch.arange(4), titles),
        "poster": Part(torch.tensor([1, 3])[:posters], {"pixels": pixels}),
        "plot": Part(torch.arange(0), no_plots),
    }


@pytest.mark.parametrize(
    ("output_of", "message"),
    [
        (lambda rows: torch.zeros(rows, 1), r"\(4, 1\)"),
        (lambda rows: torch.zeros(1, 3), r"\(1, 3\)"),
        (lambda rows: torch.zeros(1, rows, 3), r"\(1, 4, 3\)"),
        (lambda rows: torch.zeros(3), r"\(3,\)"),
        (lambda rows: (torch.zeros(rows, 3), None), "tuple"),
        (lambda rows: None, "NoneType"),
    ],
    ids=["one logit", "one row", "a dimension too many", "no movies", "two things", "nothing"],
)
def test_outputs_that_are_not_logits_are_refused(output_of: Any, message: str) -> None:
    class Odd(nn.Module):
        def forward(self, vectors: torch.Tensor) -> Any:
            return output_of(len(vectors))

    network = Fusion(3, {"title": Odd()})
    parts = {"title": Part(torch.arange(4), {"vectors": torch.zeros(4, 2)})}
    with pytest.raises(ValueError, match=rf"class Odd gives {message}; .* logits, here \(4, 3\)"):
        network(parts, 4)


def test_logits_of_members_are_checked_in_training() -> None:
    class Odd(nn.Module):
        members = 2

        def forward(self, vectors: torch.Tensor, per_member: bool) -> torch.Tensor:
            return torch.zeros(len(vectors), 3)

    network = Fusion(3, {"title": Odd()})
    parts = {"title": Part(torch.arange(4), {"vectors": torch.zeros(4, 2)})}
    with pytest.raises(
        ValueError, match=r"gives \(4, 3\); .* \(M, P, G\) logits, here \(2, 4, 3\)"
    ):
        network.branch_logits(parts, 4)


@pytest.mark.parametrize(
    "layers", [{}, {"head": nn.Linear(2, 3, bias=False)}], ids=["no head", "no bias"]
)
def test_a_network_without_the_bias_of_a_head_is_named(layers: dict[str, nn.Module]) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, layer in layers.items():
                self.add_module(name, layer)

    with pytest.raises(ValueError, match="class Odd needs a last layer called head, with a bias"):
        Fusion(3, {"title": Odd()}).start_from_priors([1, 2, 3], 10)


def test_poster_logits_are_added_to_their_rows() -> None:
    network = build("title", "poster").eval()
    parts = batch()
    titles = network.branches["title"](**parts["title"].numbers)
    posters = network.branches["poster"](**parts["poster"].numbers)
    expected = torch.stack([titles[0], titles[1] + posters[0], titles[2], titles[3] + posters[1]])
    torch.testing.assert_close(network(parts, 4), expected)


def test_a_missing_poster_adds_exactly_nothing() -> None:
    network = build("title", "poster").eval()
    branch_logits = network.branch_logits(batch(), 4)
    assert torch.equal(branch_logits["poster"][[0, 2]], torch.zeros(2, 3))
    assert torch.equal(network(batch(), 4)[[0, 2]], branch_logits["title"][[0, 2]])


def test_other_movies_posters_do_not_change_a_movie() -> None:
    network = build("title", "poster").eval()
    changed = batch()
    changed["poster"].numbers["pixels"][1] += 1  # belongs to row 3
    before, after = network(batch(), 4), network(changed, 4)
    torch.testing.assert_close(before[:3], after[:3])
    assert not torch.allclose(before[3], after[3])


def test_an_empty_branch_changes_no_bit() -> None:
    network = build("title", "plot").eval()
    alone = Fusion(3, {"title": network.branches["title"]}).eval()
    assert torch.equal(network(batch(), 4), alone(batch(), 4))


def test_a_movie_without_columns_gets_the_genre_frequencies() -> None:
    network = build("poster").eval()
    network.start_from_priors([50, 5, 0], 100)
    scores = torch.sigmoid(network(batch(), 4))[[0, 2]]
    torch.testing.assert_close(scores, torch.tensor([[0.5, 5.5 / 101, 0.5 / 101]] * 2))


def test_without_posters_every_parameter_still_gets_a_gradient() -> None:
    network = build("title", "poster", "plot")
    network(batch(posters=0), 4).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("name", ["title", "poster"])
def test_one_branch_alone(name: str) -> None:
    network = build(name).eval()
    branch_logits = network.branch_logits(batch(), 4)
    assert list(branch_logits) == [name] and torch.equal(network(batch(), 4), branch_logits[name])
    assert branch_logits[name].any()


def test_branches_are_summed_in_their_order() -> None:
    # The last bit of a sum of three floats depends on the order.
    first, other = build("title", "poster", "plot").eval(), build("plot", "poster", "title").eval()
    assert list(first.branch_logits(batch(), 4)) == ["title", "poster", "plot"]
    assert list(other.branch_logits(batch(), 4)) == ["plot", "poster", "title"]
    branch_logits = {"a": torch.tensor([0.1]), "b": torch.tensor([0.2]), "c": torch.tensor([0.3])}
    single = Fusion(1, {"a": nn.Identity()})
    expected = ((single.prior + branch_logits["a"]) + branch_logits["b"]) + branch_logits["c"]
    assert torch.equal(single.total(branch_logits), expected)
    assert torch.equal(single.total({}), single.prior)


def test_frozen_branches_need_no_gradient() -> None:
    network = build("title", "poster")
    network.branches["poster"].requires_grad_(False)
    network(batch(posters=0), 4).sum().backward()
    assert all(p.grad is not None for p in network.branches["title"].parameters())


def test_a_network_without_branches_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one branch"):
        Fusion(3, {})


def test_map_tensors_changes_every_tensor_of_a_part() -> None:
    part = batch()["poster"]
    moved = part.map_tensors(lambda tensor: tensor.to("meta"))
    assert moved.rows.is_meta and moved.numbers["pixels"].is_meta and len(moved) == len(part) == 2
    joined = JoinedPart(part, [2, 0], {"pixels": [2, 0]})
    first, second = joined.map_tensors(lambda tensor: tensor + 1).parts()
    assert first.rows.tolist() == [2, 4] and len(second) == 0
    assert second.numbers["pixels"].shape == (0, 3, 32, 32)
