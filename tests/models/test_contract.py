"""Contract of every network in the table, with every input that it takes."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genre_lightning.inputs.part import Part
from genre_lightning.models.fusion import Fusion
from genre_lightning.models.networks import (
    NETWORKS,
    build_network,
    check_fit,
    complete_description,
    sketch_network,
)
from tests.kinds import KINDS, SMALL, Opened, fits, opened, randomize_weights, use_fake_encoders
from tests.memory import little_memory

PAIRS = [(kind, name) for name in NETWORKS for kind in fits(name)]
GENRES = 3


@pytest.fixture(autouse=True)
def small_encoders(monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake_encoders(monkeypatch)


@pytest.fixture(params=PAIRS, ids="-".join)
def pair(request: pytest.FixtureRequest) -> tuple[str, str]:
    kind, name = request.param
    return kind, name


@pytest.fixture
def one(pair: tuple[str, str], tmp_path: Path) -> Opened:
    return opened(pair[0], tmp_path)


def small(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, **SMALL[name], **more}


@pytest.fixture
def network(pair: tuple[str, str], one: Opened) -> Fusion:
    torch.manual_seed(0)
    network = build_network(GENRES, {"b": small(pair[1])}, {"b": one.input})
    randomize_weights(network)
    return network


def trained(network: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in network.named_parameters() if p.requires_grad}


def branch(network: Fusion) -> nn.Module:
    return network.branches["b"]


def test_each_network_is_tested() -> None:
    assert set(SMALL) == set(NETWORKS), "a new network needs a line in tests/kinds.py"
    assert {kind for kind, _ in PAIRS} == set(KINDS), "an input that no network takes"


def test_every_argument_has_limits_and_a_default_inside_them(
    pair: tuple[str, str], network: Fusion
) -> None:
    described = network.description["branches"]["b"]
    assert described["name"] == pair[1]
    assert set(described) - {"name"} == set(NETWORKS[pair[1]].limits)


def test_it_gives_logits_of_the_rows_it_is_given(network: Fusion, one: Opened) -> None:
    network.eval()
    part = one.part([0, 2, 3, 4])
    logits = branch(network)(**part.numbers)
    assert logits.shape == (4, GENRES) and logits.dtype == torch.float32
    assert logits.isfinite().all() and len({tuple(row) for row in logits.tolist()}) == 4
    # A movie's do not depend on the others'.
    for n, row in enumerate([0, 2, 3, 4]):
        alone = branch(network)(**one.part([row]).numbers)
        torch.testing.assert_close(alone[0], logits[n], rtol=1e-4, atol=1e-5)


def test_a_movie_without_the_column_gets_exactly_nothing(network: Fusion, one: Opened) -> None:
    network.eval()
    part = one.part([1, 0, 5, 3])
    logits = network.branch_logits({"b": part}, 4)["b"]
    assert torch.equal(logits[[0, 2]], torch.zeros(2, GENRES))
    assert torch.equal(logits[[1, 3]], branch(network)(**part.numbers))
    assert torch.equal(network({"b": part}, 4)[[0, 2]], network.prior.expand(2, -1))


@pytest.mark.parametrize("training", [True, False], ids=["training", "predicting"])
@pytest.mark.parametrize("rows", [[], [1, 5], [1, 2, 5], [4]], ids=str)
def test_few_movies_or_none_have_the_column(
    rows: list[int], training: bool, network: Fusion, one: Opened
) -> None:
    network.train(training)
    before = copy.deepcopy(network.state_dict())
    part = one.part(rows)
    logits = network({"b": part}, len(rows))
    assert logits.shape[-2:] == (len(rows), GENRES) and logits.isfinite().all()
    logits.square().sum().backward()
    # As distributed training waits for, on every rank.
    for name, parameter in trained(network).items():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        if len(part) == 0:
            assert not parameter.grad.any(), name
    if len(part) == 0 or not training:
        after = network.state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(value.isfinite().all() for value in network.state_dict().values())
    with torch.no_grad():
        assert network({"b": part}, len(rows)).shape[-2:] == (len(rows), GENRES)


def test_a_gradient_reaches_every_weight(network: Fusion, one: Opened) -> None:
    network.train()
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    logits = network({"b": one.part([0, 2, 3, 4])}, 4)
    (logits.sigmoid() * torch.tensor([1.0, -2.0, 3.0])).square().sum().backward()
    for name, parameter in trained(network).items():
        assert parameter.grad is not None and parameter.grad.any(), name


def test_it_starts_from_the_priors(network: Fusion, one: Opened) -> None:
    network.start_from_priors([50, 5, 0], 100)
    scores = torch.sigmoid(network.eval()({"b": one.part([1])}, 1))
    torch.testing.assert_close(scores, torch.tensor([[0.5, 5.5 / 101, 0.5 / 101]]))
    assert not branch(network).get_parameter("head.bias").any()


def test_the_description_rebuilds_it_without_drawing(network: Fusion, one: Opened) -> None:
    plain = json.loads(json.dumps(network.description))
    assert complete_description(**plain) == network.description
    check_fit(plain, {"b": one.input})
    state = torch.random.get_rng_state()
    sketch = sketch_network(plain)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(value.is_meta for value in sketch.state_dict().values())
    sketch.load_state_dict(network.state_dict(), assign=True)
    part = one.part([0, 2, 3])
    assert torch.equal(sketch.eval()({"b": part}, 3), network.eval()({"b": part}, 3))


def test_bfloat16(network: Fusion, one: Opened) -> None:
    part = one.part([0, 2, 3])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = network.eval()({"b": part}, 3)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, network({"b": part}, 3), rtol=0.1, atol=0.3)


def test_models_dropout_reaches_it_where_it_names_none(pair: tuple[str, str], one: Opened) -> None:
    if "dropout" not in NETWORKS[pair[1]].limits:
        return
    networks = {"a": small(pair[1]), "b": small(pair[1], dropout=0.125)}
    inputs = {"a": one.input, "b": one.input}
    built = build_network(GENRES, networks, inputs, dropout=0.75)
    described = built.description["branches"]
    assert [described[name]["dropout"] for name in "ab"] == [0.75, 0.125]
    for name, p in (("a", 0.75), ("b", 0.125)):
        rates = {m.p for m in built.branches[name].modules() if isinstance(m, nn.Dropout)}
        assert p in rates, name


# An untrusted description.

ABSURD: list[Any] = [
    None, True, "x", "os.system", -1, 10**9, 10**30, 1e308, float("nan"), float("inf"), [], [[]],
    [10**9], [10**9] * 2, [1] * 10**5, [float("nan")], {}, {"_target_": "os.system"}, "x" * 10**6,
]  # fmt: skip


@pytest.mark.parametrize("value", ABSURD, ids=lambda value: repr(value)[:20])
def test_absurd_arguments_are_refused_by_key_without_memory(
    value: Any, pair: tuple[str, str], network: Fusion
) -> None:
    honest = network.description["branches"]["b"]
    for argument in honest:
        described = {**honest, argument: value}
        with little_memory():
            try:
                complete = complete_description(GENRES, {"b": described})
                sketch_network(complete)
            except (ValueError, RuntimeError) as error:
                assert len(str(error)) < 1000
                continue
        # What is let through is an honest value: one of the words, or a list of few numbers.
        assert complete["branches"]["b"][argument] == value, argument


def test_missing_and_unknown_arguments_are_refused(pair: tuple[str, str], network: Fusion) -> None:
    honest = network.description["branches"]["b"]
    for key in ("_target_", "self", "num_genres", "x" * 10**5):
        with pytest.raises(ValueError, match="has no argument") as caught:
            complete_description(GENRES, {"b": {**honest, key: 1}})
        assert len(str(caught.value)) < 1000
    with pytest.raises(ValueError, match=r"model\.branches\.b\.network.*name"):
        complete_description(GENRES, {"b": {k: v for k, v in honest.items() if k != "name"}})


def test_an_input_of_another_width_does_not_fit(network: Fusion, one: Opened) -> None:
    other = copy.deepcopy(network.description)
    for argument, value in one.input.network_arguments().items():
        changed = [side + 1 for side in value] if isinstance(value, list) else value + 1
        other["branches"]["b"][argument] = changed
    with pytest.raises(ValueError, match=r"model\.branches\.b: its network is made for"):
        check_fit(other, {"b": one.input})


# All of them together.


def all_of(folder: Path) -> tuple[Fusion, dict[str, Part], int]:
    """A model of every pair, and a batch in which each movie lacks some columns."""
    inputs, networks, parts = {}, {}, {}
    rows = [[0, 1, 2, 5], [1, 2, 3, 5], [2, 0, 5, 5]]
    for number, (kind, name) in enumerate(PAIRS):
        folder_of_kind = folder / kind
        folder_of_kind.mkdir(exist_ok=True)
        one = opened(kind, folder_of_kind)
        branch_name = f"{kind}_{name}"
        inputs[branch_name], networks[branch_name] = one.input, small(name)
        parts[branch_name] = one.part(rows[number % 3])
    network = build_network(GENRES, networks, inputs)
    randomize_weights(network)
    return network, parts, 4


def test_the_total_is_the_sum_in_the_order_of_the_list(tmp_path: Path) -> None:
    network, parts, num = all_of(tmp_path)
    network.eval()
    by_branch = network.branch_logits(parts, num)
    assert list(by_branch) == list(network.branches) == list(network.description["branches"])
    total: Tensor = network.prior
    for name in by_branch:
        total = total + by_branch[name]
    assert torch.equal(network(parts, num), total) and torch.equal(network.total(by_branch), total)
    # A movie that lacks a column has the sum of the others, to the last bit.
    for row in range(num):
        alone: Tensor = network.prior
        for name, part in parts.items():
            if row in part.rows.tolist():
                alone = alone + by_branch[name][row]
        assert torch.equal(network(parts, num)[row], alone), row
    assert torch.equal(network(parts, num)[3], network.prior)


def test_rows_without_the_column_are_not_computed(tmp_path: Path) -> None:
    network, parts, num = all_of(tmp_path)
    computed: dict[str, int] = {}

    def count(name: str) -> Any:
        def hook(module: nn.Module, args: Any, result: Tensor) -> None:
            computed[name] = computed.get(name, 0) + result.shape[-2]

        return hook

    for name, module in network.branches.items():
        module.register_forward_hook(count(name))
    network.eval()
    empty = {name: part.map_tensors(lambda tensor: tensor[:0]) for name, part in parts.items()}
    network(empty, num)
    assert computed == {}
    network(parts, num)
    assert computed == {name: len(part) for name, part in parts.items()}
    assert all(1 <= count < num for count in computed.values())
