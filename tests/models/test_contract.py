"""The contract of every network in the table, with every input that it takes."""

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
def fitted(pair: tuple[str, str], tmp_path: Path) -> Opened:
    return opened(pair[0], tmp_path)


def small_network(name: str, **kwargs: Any) -> dict[str, Any]:
    return {"name": name, **SMALL[name], **kwargs}


@pytest.fixture
def network(pair: tuple[str, str], fitted: Opened) -> Fusion:
    torch.manual_seed(0)
    network = build_network(GENRES, {"b": small_network(pair[1])}, {"b": fitted.input})
    randomize_weights(network)
    return network


def trainable(network: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in network.named_parameters() if p.requires_grad}


def branch(network: Fusion) -> nn.Module:
    return network.branches["b"]


def test_every_network_and_input_is_tested() -> None:
    assert set(SMALL) == set(NETWORKS), "a new network needs a line in tests/kinds.py"
    assert {kind for kind, _ in PAIRS} == set(KINDS), "an input that no network takes"


def test_every_argument_has_limits(pair: tuple[str, str], network: Fusion) -> None:
    description = network.description["branches"]["b"]
    assert description["name"] == pair[1]
    assert set(description) - {"name"} == set(NETWORKS[pair[1]].limits)


def test_logits_of_a_row_do_not_depend_on_other_rows(network: Fusion, fitted: Opened) -> None:
    network.eval()
    part = fitted.part([0, 2, 3, 4])
    logits = branch(network)(**part.numbers)
    assert logits.shape == (4, GENRES) and logits.dtype == torch.float32
    assert logits.isfinite().all() and len({tuple(row) for row in logits.tolist()}) == 4
    # A movie's logits do not depend on the other movies of the batch.
    for n, row in enumerate([0, 2, 3, 4]):
        alone = branch(network)(**fitted.part([row]).numbers)
        torch.testing.assert_close(alone[0], logits[n], rtol=1e-4, atol=1e-5)


def test_a_movie_without_the_column_gets_exactly_nothing(network: Fusion, fitted: Opened) -> None:
    network.eval()
    part = fitted.part([1, 0, 5, 3])
    logits = network.branch_logits({"b": part}, 4)["b"]
    assert torch.equal(logits[[0, 2]], torch.zeros(2, GENRES))
    assert torch.equal(logits[[1, 3]], branch(network)(**part.numbers))
    assert torch.equal(network({"b": part}, 4)[[0, 2]], network.prior.expand(2, -1))


@pytest.mark.parametrize("training", [True, False], ids=["training", "predicting"])
@pytest.mark.parametrize("rows", [[], [1, 5], [1, 2, 5], [4]], ids=str)
def test_few_movies_or_none_have_the_column(
    rows: list[int], training: bool, network: Fusion, fitted: Opened
) -> None:
    network.train(training)
    before = copy.deepcopy(network.state_dict())
    part = fitted.part(rows)
    logits = network({"b": part}, len(rows))
    assert logits.shape[-2:] == (len(rows), GENRES) and logits.isfinite().all()
    logits.square().sum().backward()
    # Distributed training waits for every gradient on every rank.
    for name, parameter in trainable(network).items():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        if len(part) == 0:
            assert not parameter.grad.any(), name
    if len(part) == 0 or not training:
        after = network.state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(value.isfinite().all() for value in network.state_dict().values())
    with torch.no_grad():
        assert network({"b": part}, len(rows)).shape[-2:] == (len(rows), GENRES)


def test_a_gradient_reaches_every_weight(network: Fusion, fitted: Opened) -> None:
    network.train()
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    logits = network({"b": fitted.part([0, 2, 3, 4])}, 4)
    (logits.sigmoid() * torch.tensor([1.0, -2.0, 3.0])).square().sum().backward()
    for name, parameter in trainable(network).items():
        assert parameter.grad is not None and parameter.grad.any(), name


def test_initial_scores_are_the_genre_frequencies(network: Fusion, fitted: Opened) -> None:
    network.start_from_priors([50, 5, 0], 100)
    scores = torch.sigmoid(network.eval()({"b": fitted.part([1])}, 1))
    torch.testing.assert_close(scores, torch.tensor([[0.5, 5.5 / 101, 0.5 / 101]]))
    assert not branch(network).get_parameter("head.bias").any()


def test_the_description_rebuilds_the_network_without_random_numbers(
    network: Fusion, fitted: Opened
) -> None:
    plain = json.loads(json.dumps(network.description))
    assert complete_description(**plain) == network.description
    check_fit(plain, {"b": fitted.input})
    state = torch.random.get_rng_state()
    sketch = sketch_network(plain)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(value.is_meta for value in sketch.state_dict().values())
    sketch.load_state_dict(network.state_dict(), assign=True)
    part = fitted.part([0, 2, 3])
    assert torch.equal(sketch.eval()({"b": part}, 3), network.eval()({"b": part}, 3))


def test_bfloat16(network: Fusion, fitted: Opened) -> None:
    part = fitted.part([0, 2, 3])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = network.eval()({"b": part}, 3)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, network({"b": part}, 3), rtol=0.1, atol=0.3)


def test_a_network_without_its_own_dropout_gets_that_of_the_model(
    pair: tuple[str, str], fitted: Opened
) -> None:
    if "dropout" not in NETWORKS[pair[1]].limits:
        return
    networks = {"a": small_network(pair[1]), "b": small_network(pair[1], dropout=0.125)}
    inputs = {"a": fitted.input, "b": fitted.input}
    model = build_network(GENRES, networks, inputs, dropout=0.75)
    branches = model.description["branches"]
    assert [branches[name]["dropout"] for name in "ab"] == [0.75, 0.125]
    for name, p in (("a", 0.75), ("b", 0.125)):
        rates = {m.p for m in model.branches[name].modules() if isinstance(m, nn.Dropout)}
        assert p in rates, name


# Untrusted descriptions.

ABSURD: list[Any] = [
    None, True, "x", "os.system", -1, 10**9, 10**30, 1e308, float("nan"), float("inf"), [], [[]],
    [10**9], [10**9] * 2, [1] * 10**5, [float("nan")], {}, {"_target_": "os.system"}, "x" * 10**6,
]  # fmt: skip


@pytest.mark.parametrize("value", ABSURD, ids=lambda value: repr(value)[:20])
def test_absurd_arguments_are_refused_in_little_memory(
    value: Any, pair: tuple[str, str], network: Fusion
) -> None:
    valid = network.description["branches"]["b"]
    for argument in valid:
        changed = {**valid, argument: value}
        with little_memory():
            try:
                complete = complete_description(GENRES, {"b": changed})
                sketch_network(complete)
            except (ValueError, RuntimeError) as error:
                assert len(str(error)) < 1000
                continue
        # An accepted value is valid: one of the allowed strings, or a short list of numbers.
        assert complete["branches"]["b"][argument] == value, argument


def test_missing_and_unknown_arguments_are_refused(pair: tuple[str, str], network: Fusion) -> None:
    valid = network.description["branches"]["b"]
    for key in ("_target_", "self", "num_genres", "x" * 10**5):
        with pytest.raises(ValueError, match="has no argument") as caught:
            complete_description(GENRES, {"b": {**valid, key: 1}})
        assert len(str(caught.value)) < 1000
    with pytest.raises(ValueError, match=r"model\.branches\.b\.network.*name"):
        complete_description(GENRES, {"b": {k: v for k, v in valid.items() if k != "name"}})


def test_an_input_of_another_width_is_refused(network: Fusion, fitted: Opened) -> None:
    other = copy.deepcopy(network.description)
    for argument, value in fitted.input.network_arguments().items():
        changed = [side + 1 for side in value] if isinstance(value, list) else value + 1
        other["branches"]["b"][argument] = changed
    with pytest.raises(ValueError, match=r"model\.branches\.b: its network is made for"):
        check_fit(other, {"b": fitted.input})


# A model of all pairs together.


def build_all(folder: Path) -> tuple[Fusion, dict[str, Part], int]:
    """A model of every pair, and a batch whose movies lack some columns: its parts and size."""
    inputs, networks, parts = {}, {}, {}
    rows = [[0, 1, 2, 5], [1, 2, 3, 5], [2, 0, 5, 5]]
    for n, (kind, name) in enumerate(PAIRS):
        folder_of_kind = folder / kind
        folder_of_kind.mkdir(exist_ok=True)
        fitted = opened(kind, folder_of_kind)
        branch_name = f"{kind}_{name}"
        inputs[branch_name], networks[branch_name] = fitted.input, small_network(name)
        parts[branch_name] = fitted.part(rows[n % 3])
    network = build_network(GENRES, networks, inputs)
    randomize_weights(network)
    return network, parts, 4


def test_the_total_is_the_sum_in_the_order_of_the_branches(tmp_path: Path) -> None:
    network, parts, num = build_all(tmp_path)
    network.eval()
    by_branch = network.branch_logits(parts, num)
    assert list(by_branch) == list(network.branches) == list(network.description["branches"])
    total: Tensor = network.prior
    for name in by_branch:
        total = total + by_branch[name]
    assert torch.equal(network(parts, num), total) and torch.equal(network.total(by_branch), total)
    # A movie that lacks a column gets the sum of the other branches, to the last bit.
    for row in range(num):
        expected: Tensor = network.prior
        for name, part in parts.items():
            if row in part.rows.tolist():
                expected = expected + by_branch[name][row]
        assert torch.equal(network(parts, num)[row], expected), row
    assert torch.equal(network(parts, num)[3], network.prior)


def test_rows_without_the_column_are_not_computed(tmp_path: Path) -> None:
    network, parts, num = build_all(tmp_path)
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
