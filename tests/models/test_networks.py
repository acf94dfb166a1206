"""Building networks from the description of a model's branches, and its checks."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from genre_lightning.inputs.pixels import PixelsInput
from genre_lightning.inputs.terms import TermsInput
from genre_lightning.models.networks import (
    MAX_BRANCHES,
    NETWORKS,
    NetworkType,
    build_network,
    check_fit,
    complete_description,
    sketch_network,
)
from tests.memory import little_memory

TITLE: dict[str, Any] = {"name": "terms_mlp", "hidden": 8}
POSTER: dict[str, Any] = {"name": "poster_resnet", "widths": [4, 8], "blocks": [1, 1]}
INPUTS = {"title": TermsInput("title", 50), "poster": PixelsInput(size=32)}
DESCRIBED = {"title": {**TITLE, "vocabulary_size": 50}, "poster": {**POSTER, "size": [32, 32]}}


def test_description_rebuilds_the_same_network() -> None:
    network = build_network(3, {"title": TITLE, "poster": POSTER}, INPUTS, dropout=0.4)
    branches = network.description["branches"]
    assert branches["title"] == {
        "name": "terms_mlp", "vocabulary_size": 50, "hidden": 8, "dropout": 0.4, "skip": False,
    }  # fmt: skip
    assert branches["poster"]["size"] == [32, 32] and branches["poster"]["dropout"] == 0.4
    assert complete_description(**network.description) == network.description
    rebuilt = sketch_network(network.description)
    rebuilt.load_state_dict(network.state_dict(), assign=True)
    assert list(rebuilt.state_dict()) == list(network.state_dict())


def test_a_network_can_set_its_own_dropout() -> None:
    networks = {"title": {**TITLE, "dropout": 0.1}, "poster": POSTER}
    branches = build_network(3, networks, INPUTS, dropout=0.7).description["branches"]
    assert (branches["title"]["dropout"], branches["poster"]["dropout"]) == (0.1, 0.7)
    branches = build_network(3, networks, INPUTS).description["branches"]
    assert (branches["title"]["dropout"], branches["poster"]["dropout"]) == (0.1, 0.3)


def test_two_branches_of_one_column_share_no_parameters() -> None:
    networks = {"words": TITLE, "letters": {**TITLE, "hidden": 4}}
    inputs = {"words": TermsInput("title", 50), "letters": TermsInput("title", 30)}
    network = build_network(3, networks, inputs)
    branches = network.description["branches"]
    assert [branch["vocabulary_size"] for branch in branches.values()] == [50, 30]
    assert not {id(p) for p in network.branches["words"].parameters()} & {
        id(p) for p in network.branches["letters"].parameters()
    }


def test_weights_are_initialised_in_the_order_of_the_branches() -> None:
    torch.manual_seed(0)
    original = build_network(3, {"title": TITLE, "poster": POSTER}, INPUTS)
    torch.manual_seed(0)
    reordered = build_network(
        3, {"poster": POSTER, "title": TITLE}, dict(reversed(list(INPUTS.items())))
    )
    torch.manual_seed(0)
    alone = build_network(3, {"title": TITLE}, {"title": INPUTS["title"]})
    assert list(reordered.branches) == ["poster", "title"]
    name = "branches.title.head.weight"
    weights = [network.state_dict()[name] for network in (original, alone, reordered)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


# If the command line changes only a network's name, arguments of the old network remain.


def test_arguments_of_another_network_are_ignored_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = {"name": "terms_mlp", "hidden": 4, "widths": [24, 48], "stem_kernel": 3}
    with caplog.at_level(logging.WARNING):
        network = build_network(3, {"title": settings}, {"title": INPUTS["title"]})
    assert caplog.messages == [
        "model.branches.title: the network terms_mlp takes no widths, stem_kernel: left out"
    ]
    assert network.description["branches"]["title"]["hidden"] == 4


def test_unknown_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"branches\.title\.network has no argument 'hiden'"):
        build_network(3, {"title": {"name": "terms_mlp", "hiden": 8}}, {"title": INPUTS["title"]})


def test_arguments_from_the_input_override_configured_ones() -> None:
    # The vocabulary size of the input replaces the configured one.
    network = build_network(
        3, {"title": {**TITLE, "vocabulary_size": 99}}, {"title": INPUTS["title"]}
    )
    assert network.description["branches"]["title"]["vocabulary_size"] == 50


# Networks, inputs and descriptions that do not fit together.


@pytest.mark.parametrize(
    ("branches", "inputs", "message"),
    [
        (
            {"title": POSTER},
            {"title": INPUTS["title"]},
            r"model\.branches\.title: the network poster_resnet takes pixels, and the input terms "
            "gives terms; networks of terms: terms_mlp, terms_linear$",
        ),
        (
            {"poster": TITLE},
            {"poster": INPUTS["poster"]},
            r"model\.branches\.poster: the network terms_mlp takes terms, .* gives pixels; "
            "networks of pixels: poster_resnet, poster_encoder$",
        ),
    ],
    ids=["pixels of a title", "terms of a poster"],
)
def test_a_network_that_does_not_fit_its_input_is_refused(
    branches: Any, inputs: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build_network(3, branches, inputs)


def test_inputs_must_match_the_branches_in_order() -> None:
    description = complete_description(3, DESCRIBED)
    check_fit(description, INPUTS)
    for inputs in ({"title": INPUTS["title"]}, dict(reversed(list(INPUTS.items())))):
        with pytest.raises(ValueError, match="its branches are title, poster, its inputs"):
            check_fit(description, inputs)
    swapped = {"title": INPUTS["poster"], "poster": INPUTS["title"]}
    with pytest.raises(ValueError, match=r"branches\.title: the network terms_mlp takes terms"):
        check_fit(description, swapped)


LARGE_STEM = {"stem_kernel": 16, "stem_stride": 16}
TITLE_OF_50, POSTER_OF_32 = DESCRIBED["title"], DESCRIBED["poster"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_genres": 0}, "num_genres"),
        ({"num_genres": True}, "num_genres"),
        ({"num_genres": 10**7}, "num_genres"),
        ({"branches": {}}, "1 to 64 branches"),
        ({"branches": None}, "1 to 64 branches"),
        ({"branches": [TITLE_OF_50]}, "1 to 64 branches"),
        ({"branches": {f"b{n}": TITLE_OF_50 for n in range(MAX_BRANCHES + 1)}}, "1 to 64 branch"),
        ({"branches": {"title": None}}, r"branches\.title\.network must be a mapping"),
        (
            {"branches": {"a.b": TITLE_OF_50}},
            r"model\.branches\.a\.b: not a valid name of a branch",
        ),
        ({"branches": {"": TITLE_OF_50}}, "not a valid name of a branch"),
        ({"branches": {7: TITLE_OF_50}}, "not a valid name of a branch"),
        ({"branches": {"x" * 99: TITLE_OF_50}}, "not a valid name of a branch"),
        ({"branches": {"_title": TITLE_OF_50}}, "name of a branch: .* a letter first"),
        ({"branches": {"keys": TITLE_OF_50}}, "name of a branch: PyTorch uses it .* keys_text"),
        ({"branches": {"train": TITLE_OF_50}}, "not a valid name of a branch"),
        ({"title": {**TITLE_OF_50, "hidden": 10**9}}, r"branches\.title\.network\.hidden"),
        ({"title": {**TITLE_OF_50, "hidden": 8.0}}, r"title\.network\.hidden must be an int"),
        ({"title": {**TITLE_OF_50, "dropout": float("nan")}}, r"title\.network\.dropout"),
        ({"title": {**TITLE_OF_50, "skip": 1}}, r"title\.network\.skip must be a bool"),
        ({"title": {**TITLE_OF_50, "hiden": 8}}, "no argument 'hiden'"),
        ({"title": {"name": "os.system"}}, r"network\.name is 'os.system'; there is terms_mlp"),
        ({"title": {"name": ["terms_mlp"]}}, r"network\.name"),
        ({"title": TITLE}, "terms_mlp needs vocabulary_size"),
        ({"poster": POSTER}, "poster_resnet needs size"),
        ({"poster": {**POSTER_OF_32, "widths": [4] * 99}}, r"poster\.network\.widths"),
        ({"poster": {**POSTER_OF_32, "widths": [4, 10**9]}}, r"poster\.network\.widths"),
        ({"poster": {**POSTER_OF_32, "widths": 4}}, r"poster\.network\.widths"),
        ({"poster": {**POSTER_OF_32, "size": [32, 10**9]}}, r"poster\.network\.size"),
        ({"poster": {**POSTER_OF_32, "size": 32}}, r"poster\.network\.size must be a list"),
        ({"title": {**TITLE_OF_50, "vocabulary_size": [50]}}, "vocabulary_size must be an int"),
        ({"poster": {**POSTER_OF_32, "size": [32]}}, "too small"),
        ({"poster": {**POSTER_OF_32, "size": [9, 9], **LARGE_STEM}}, "too small"),
        ({"poster": {**POSTER_OF_32, "widths": [4]}}, "differ in length"),
        ({"poster": {**POSTER_OF_32, "widths": [4096] * 16, "blocks": [64] * 16}}, "parameters"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_invalid_descriptions_are_refused(changes: dict[str, Any], message: str) -> None:
    branches = {**DESCRIBED, **{k: v for k, v in changes.items() if k in DESCRIBED}}
    arguments: dict[str, Any] = {"num_genres": 3, "branches": branches}
    arguments |= {key: value for key, value in changes.items() if key in arguments}
    with little_memory(), pytest.raises(ValueError, match=message) as caught:
        sketch_network(complete_description(**arguments))
    assert len(str(caught.value)) < 1000


def test_sketching_a_huge_model_needs_no_memory() -> None:
    wide = {"name": "terms_mlp", "vocabulary_size": 2**20, "hidden": 400}
    with little_memory():
        sketch = sketch_network(complete_description(4, {"title": wide}))
    assert sum(p.numel() for p in sketch.parameters()) > 4 * 10**8


def test_an_argument_without_a_range_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wide(torch.nn.Module):
        def __init__(self, num_genres: int, vocabulary_size: int, wide: int = 3) -> None:
            super().__init__()

    entry = NetworkType(Wide, "terms", {"vocabulary_size": (1, 100)})
    monkeypatch.setitem(NETWORKS, "wide", entry)
    with pytest.raises(ValueError, match=r"NETWORKS\['wide'\] has no range for the argument wide"):
        build_network(3, {"title": {"name": "wide"}}, {"title": INPUTS["title"]})
