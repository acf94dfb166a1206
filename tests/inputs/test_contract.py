"""The contract that every input of the table ``INPUTS`` fulfils."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from genre_lightning.errors import InputError, UserError
from genre_lightning.inputs.encode import encode_items
from genre_lightning.inputs.input import DenseFeatures, Input, check_features, check_prepared
from genre_lightning.inputs.part import JoinedPart, Part
from genre_lightning.inputs.table import (
    INPUTS,
    build_input,
    input_from_text,
    is_column_name,
    state_to_text,
)
from tests.kinds import KINDS, NUM_MOVIES, TRAIN, Opened, opened, use_fake_encoders
from tests.memory import little_memory


@pytest.fixture(autouse=True)
def small_encoders(monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake_encoders(monkeypatch)


@pytest.fixture(params=list(INPUTS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def case(kind: str, tmp_path: Path) -> Opened:
    return opened(kind, tmp_path)


def gather(case: Opened, *batches: list[int]) -> JoinedPart:
    """Gather and concatenate the numbers of batches of movies, as MovieBatches does."""
    row_index = case.features.row_index[
        np.array([row for batch in batches for row in batch], dtype=int)
    ]
    counts = np.array(
        [(case.features.row_index[np.array(batch, dtype=int)] >= 0).sum() for batch in batches]
    )
    rows = [
        n for batch in batches for n, row in enumerate(batch) if case.features.row_index[row] >= 0
    ]
    numbers, lengths = case.features.gather(row_index[row_index >= 0], counts)
    part = Part(torch.tensor(rows, dtype=torch.int64), numbers)
    return JoinedPart(part, counts.tolist(), lengths)


def equal(actual: Any, expected: Any) -> bool:
    return list(actual) == list(expected) and all(
        torch.equal(actual[name], expected[name]) and actual[name].dtype == expected[name].dtype
        for name in actual
    )


def test_each_kind_is_tested() -> None:
    assert set(INPUTS) == set(KINDS), "a new input needs a line in tests/kinds.py"
    for kind, input_class in INPUTS.items():
        assert input_class.kind == kind
        assert input_class.__final__, "an input is final"  # type: ignore[attr-defined]


def test_inputs_describe_themselves(kind: str, case: Opened) -> None:
    assert case.input.gives in ("terms", "pixels", "vectors")
    assert case.input.of in ("text", "poster", "id")
    assert is_column_name(case.input.column)
    assert case.input.fitted and case.input.bytes_per_movie() > 0
    json.dumps(case.input.network_arguments())


def test_a_movie_without_the_column_has_no_row(case: Opened) -> None:
    row_index = case.features.row_index
    assert row_index.dtype == np.int64 and row_index.shape == (NUM_MOVIES,)
    assert (row_index < 0).tolist() == [False, True, False, False, False, True]
    assert sorted(row_index[row_index >= 0].tolist()) == [0, 1, 2, 3]
    assert list(case.features.unreadable) == []
    check_features(case.input, case.features, NUM_MOVIES)


@pytest.mark.parametrize(
    ("dense", "row_index", "message"),
    [
        ((4, 7), [0, -1, 1, 2], r"YearInput\.open gave a row_index of int64 and shape \(4,\), not"),
        ((4, 7), [0.0, -1, 1, 2, 3, -1], r"a row_index of float64 and shape \(6,\), not of int64"),
        ((4, 7), [0, -1, 1, 2, 4, -1], r"rows up to 4, and numbers for 4$"),
        ((4, 6), [0, -1, 1, 2, 3, -1], r"vectors \(1, 6\) float32 for one .* \(1, 7\) float32"),
    ],
    ids=["too few movies", "float row_index", "row out of range", "another width"],
)
def test_features_that_break_the_contract_are_refused(
    dense: tuple[int, int], row_index: list[float], message: str, tmp_path: Path
) -> None:
    branch_input = opened("year", tmp_path).input
    assert branch_input.network_arguments() == {"width": 7}
    features = DenseFeatures("vectors", np.ones(dense, np.float32), np.array(row_index))
    with pytest.raises(ValueError, match=message):
        check_features(branch_input, features, NUM_MOVIES)


def test_an_open_that_returns_no_features_is_refused(tmp_path: Path) -> None:
    branch_input = opened("year", tmp_path).input
    features: Any = np.ones((6, 7), np.float32)
    with pytest.raises(ValueError, match=r"^YearInput.open gave a ndarray, not Features$"):
        check_features(branch_input, features, NUM_MOVIES)


@pytest.mark.parametrize(
    ("encode", "message"),
    [
        (lambda items: {"vectors": torch.ones(1, 7)}, r"vectors \(1, 7\) float32 for 2 movies"),
        (lambda items: {"vectors": torch.ones(2, 7).double()}, r"vectors \(2, 7\) float64"),
        (lambda items: {"numbers": torch.ones(2, 7)}, r"numbers \(2, 7\) float32"),
    ],
    ids=["one row", "another dtype", "another name"],
)
def test_encoded_vectors_that_break_the_contract_are_refused(
    encode: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    branch_input = opened("year", tmp_path).input
    monkeypatch.setattr(branch_input, "encode", encode)
    monkeypatch.setattr(branch_input, "prepare", lambda numbers, seeds: numbers)
    with pytest.raises(ValueError, match=rf"YearInput gives {message}.*, not vectors \(2, 7\)"):
        encode_items({"year": branch_input}, {"year": [1990.0, None, 2000.0]})


def test_vectors_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    branch_input = opened("year", tmp_path).input
    vectors = torch.ones(2, 7)
    vectors[1, 3] = torch.nan
    with pytest.raises(
        ValueError, match=r"^YearInput gives vectors with numbers that are not finite"
    ):
        check_prepared(branch_input, {"vectors": vectors}, 2)


def test_a_state_that_is_not_plain_data_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    branch_input = opened("year", tmp_path).input
    monkeypatch.setattr(branch_input, "state", lambda: {"mean": np.float32(1)})
    with pytest.raises(
        TypeError, match=r"YearInput.state must return a dict of plain data: .*float32"
    ):
        state_to_text(branch_input)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int64])
def test_vectors_of_another_dtype_are_refused(dtype: Any, tmp_path: Path) -> None:
    case = opened("year", tmp_path)
    assert case.features.dense is not None
    features = DenseFeatures("vectors", case.features.dense.astype(dtype), case.features.row_index)
    with pytest.raises(ValueError, match=rf"vectors \(1, \d+\) {np.dtype(dtype).name} for one"):
        check_features(case.input, features, NUM_MOVIES)


def test_gathered_numbers_equal_encoded_ones(case: Opened) -> None:
    rows = [4, 0, 2, 3, 0]
    stored = gather(case, rows).part.numbers
    encoded = case.input.encode([case.items[row] for row in rows])
    assert list(stored) == list(encoded)
    if all(stored[name].shape == encoded[name].shape for name in stored):
        assert equal(stored, encoded)
    else:  # stored vectors have further views, for training
        assert case.input.kind == "embedding"
    part = case.part([5, *rows, 1])
    assert part.rows.tolist() == [1, 2, 3, 4, 5]
    assert equal(part.numbers, case.input.prepare(stored, None))


def test_dense_numbers_are_gathered_by_row(case: Opened) -> None:
    dense = case.features.dense
    if dense is None:
        return
    rows = np.array([2, 0])
    numbers, _ = case.features.gather(rows, np.array([2]))
    assert list(numbers) == [case.features.name]
    np.testing.assert_array_equal(numbers[case.features.name].numpy(), dense[rows])
    case.features.read_ahead(rows)


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_joined_batches_equal_separate_batches(training: bool, case: Opened) -> None:
    # In the second batch no movie has the column, in the last batch one has it.
    batches = [[0, 1, 2], [5, 1], [4, 3, 0], [1, 2]]
    joined = gather(case, *batches)
    seeds = [(count, 7 + k) for k, count in enumerate(joined.counts)]
    prepared = case.input.prepare(joined.part.numbers, seeds if training else None)
    lengths = {name: joined.lengths.get(name, joined.counts) for name in prepared}
    parts = JoinedPart(Part(joined.part.rows, prepared), joined.counts, lengths).parts()
    for part, batch, own in zip(parts, batches, seeds, strict=True):
        alone = gather(case, batch).part
        assert torch.equal(part.rows, alone.rows)
        assert equal(part.numbers, case.input.prepare(alone.numbers, [own] if training else None))


def test_equal_seeds_give_equal_numbers(case: Opened) -> None:
    numbers = gather(case, [0, 2, 3]).part.numbers
    kept = {name: value.clone() for name, value in numbers.items()}
    state = torch.random.get_rng_state()
    first, again = (case.input.prepare(numbers, [(3, 5)]) for _ in range(2))
    assert equal(first, again) and equal(numbers, kept)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert equal(case.input.prepare(numbers, None), case.input.prepare(numbers, None))


def test_batches_without_any_movie(case: Opened) -> None:
    for part in (gather(case, []).part, gather(case, [1, 5]).part, case.part([]), case.part([5])):
        assert len(part) == 0 and part.rows.dtype == torch.int64
        assert all(len(value) == 0 for value in part.numbers.values())
    empty = case.input.encode([])
    full = case.input.encode([item for item in case.items if item is not None])
    for name, value in empty.items():
        assert value.dtype == full[name].dtype and value.shape[1:] == full[name].shape[1:]
    for seeds in (None, [], [(0, 3)]):
        prepared, expected = case.input.prepare(empty, seeds), case.input.prepare(full, None)
        for name, value in prepared.items():
            assert len(value) == 0 and value.dtype == expected[name].dtype
            assert value.shape[1:] == expected[name].shape[1:]


def test_inputs_learn_only_from_train(kind: str, case: Opened, tmp_path: Path) -> None:
    other = KINDS[kind].make(tmp_path)
    values = list(case.values)
    values[3] = values[2]  # held out
    other.open(values, TRAIN, case.store)
    assert state_to_text(other) == state_to_text(case.input)


def test_opening_twice_gives_the_same(kind: str, case: Opened, tmp_path: Path) -> None:
    def files() -> dict[str, int]:
        found = [path for path in case.store.folder.rglob("*") if path.suffix != ".lock"]
        return {str(path): path.stat().st_mtime_ns for path in found if path.is_file()}

    before = files()
    again = KINDS[kind].make(tmp_path)
    features = again.open(case.values, TRAIN, case.store)
    np.testing.assert_array_equal(features.row_index, case.features.row_index)
    numbers, lengths = features.gather(features.row_index[[0, 2, 3, 4]], np.array([3, 1]))
    joined = gather(case, [0, 2, 3], [4])
    assert equal(numbers, joined.part.numbers) and lengths == joined.lengths
    assert state_to_text(again) == state_to_text(case.input) and files() == before


# State in checkpoints.


def test_state_rebuilds_the_input(case: Opened) -> None:
    text = state_to_text(case.input)
    rebuilt = input_from_text(text)
    assert type(rebuilt) is type(case.input) and rebuilt.fitted
    assert state_to_text(rebuilt) == text
    assert rebuilt.column == case.input.column and rebuilt.of == case.input.of
    assert rebuilt.network_arguments() == case.input.network_arguments()
    items = [item for item in case.items if item is not None]
    assert equal(rebuilt.encode(items), case.input.encode(items))
    prepared = [
        branch_input.prepare(branch_input.encode(items), None)
        for branch_input in (rebuilt, case.input)
    ]
    assert equal(*prepared)
    # A fitted input learns nothing from other movies.
    features = rebuilt.open(case.values[2:], np.array([0, 1]), case.store)
    assert state_to_text(rebuilt) == text
    numbers, _ = features.gather(features.row_index[[0, 1]], np.array([2]))
    assert equal(numbers, gather(case, [2, 3]).part.numbers)


def nested_lists(depth: int = 10**5) -> str:
    return "[" * depth + "]" * depth


#: JSON values that replace a valid one.
HOSTILE = [
    "null", "true", "-1", "0", "9", "1.5", "1e308", "1e999", "NaN", "-Infinity", "9" * 60,
    "1" + "0" * 30, '""', '"x"', '"os.system"', '"' + "x" * 10**6 + '"', "[]", "[[]]", "[null]",
    "[NaN]", "[1e999]", '["a", "a"]', "[1, 1000000000]", "[" + "0," * 10**6 + "0]", "{}",
    '{"_target_": "os.system"}', '["\\u001b"]', nested_lists(),
]  # fmt: skip


@pytest.mark.parametrize("value", HOSTILE, ids=lambda value: value[:20])
def test_a_hostile_value_is_refused_or_harmless(value: str, case: Opened) -> None:
    valid = json.loads(state_to_text(case.input))
    for key in valid:
        parts = [f'"{k}": {value if k == key else json.dumps(v)}' for k, v in valid.items()]
        text = "{" + ", ".join(parts) + "}"
        with little_memory():
            try:
                rebuilt = input_from_text(text)
            except ValueError as error:
                assert len(str(error)) < 2000, key
                continue
        # An accepted state behaves like a state that this program wrote.
        written = state_to_text(rebuilt)
        assert state_to_text(input_from_text(written)) == written, key
        rebuilt.network_arguments()
        assert rebuilt.bytes_per_movie() < 2**40


def test_missing_and_unknown_keys_are_refused_by_name(case: Opened) -> None:
    valid = json.loads(state_to_text(case.input))
    for key in valid:
        incomplete = {name: value for name, value in valid.items() if name != key}
        with pytest.raises(ValueError, match=key):
            input_from_text(json.dumps(incomplete))
    for key in ("_target_", "x" * 10**4, "", "__class__", "self"):
        with pytest.raises(ValueError, match="unknown key") as caught:
            input_from_text(json.dumps({**valid, key: "os.system"}))
        assert len(str(caught.value)) < 500


# Values of new movies.


def test_unreadable_values_are_refused(kind: str, case: Opened) -> None:
    for value in KINDS[kind].unreadable:
        with pytest.raises((InputError, TypeError)) as caught:
            case.input.read(value)
        assert 0 < len(str(caught.value)) < 500


# Settings from the configuration.


def test_unknown_settings_are_refused_by_key(kind: str) -> None:
    with pytest.raises(UserError, match=r"model\.branches\.b\.input\.nothing: the input"):
        build_input("b", {"kind": kind, "nothing": 1})


def test_a_class_that_lacks_a_method_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Half(Input):
        kind = "half"

    monkeypatch.setitem(INPUTS, "half", Half)
    with pytest.raises(UserError, match=r"input\.kind=half: its class Half lacks .*encode, .*open"):
        build_input("b", {"kind": "half"})


def test_missing_setting_is_named_by_key() -> None:
    with pytest.raises(UserError, match=r"^model\.branches\.b\.input\.column has to be given"):
        build_input("b", {"kind": "terms"})


@pytest.mark.parametrize("setting", [{"ngram_range": 1}, {"vocabulary_size": "many"}], ids=repr)
def test_a_setting_of_a_wrong_type_is_shown_with_its_value(setting: dict[str, Any]) -> None:
    with pytest.raises(UserError) as caught:
        build_input("b", {"kind": "terms", "column": "title", **setting})
    (name, value), message = *setting.items(), str(caught.value)
    assert message.startswith("model.branches.b.input has a value of a wrong type (column=title, ")
    assert f"{name}={value}" in message


@pytest.mark.parametrize("kind", [None, "os.system", "", ["terms"]], ids=repr)
def test_an_unknown_kind_is_refused_naming_the_known_ones(kind: Any) -> None:
    with pytest.raises(UserError, match=r"model\.branches\.b\.input\.kind=.*terms, pixels"):
        build_input("b", {"kind": kind})


@pytest.mark.parametrize("column", ["", None, 7, 'a"b', "a\\b", "a\nb", "[a]", "x" * 201], ids=repr)
def test_invalid_column_names_are_refused(column: Any) -> None:
    assert not is_column_name(column)
    with pytest.raises(UserError, match=r"model\.branches\.b\.input\.column="):
        build_input("b", {"kind": "terms", "column": column})


def test_absent_columns_of_a_movie_are_left_out(tmp_path: Path) -> None:
    inputs, items = {}, {}
    for kind in INPUTS:
        (tmp_path / kind).mkdir()
        case = opened(kind, tmp_path / kind)
        inputs[kind], items[kind] = case.input, case.items
    parts = encode_items(inputs, items)
    assert list(parts) == list(INPUTS)
    for part in parts.values():
        assert part.rows.tolist() == [0, 2, 3, 4]
