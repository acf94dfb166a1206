"""The contract that every input of the table keeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from genre_lightning.errors import InputError, UserError
from genre_lightning.inputs.encode import encode_items
from genre_lightning.inputs.input import DenseFeatures, Input, check_features
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
def one(kind: str, tmp_path: Path) -> Opened:
    return opened(kind, tmp_path)


def gathered(one: Opened, *batches: list[int]) -> JoinedPart:
    """The concatenated numbers of batches of movies, as MovieBatches gathers them."""
    row_index = one.features.row_index[
        np.array([row for batch in batches for row in batch], dtype=int)
    ]
    counts = np.array(
        [(one.features.row_index[np.array(batch, dtype=int)] >= 0).sum() for batch in batches]
    )
    rows = [
        n for batch in batches for n, row in enumerate(batch) if one.features.row_index[row] >= 0
    ]
    numbers, lengths = one.features.gather(row_index[row_index >= 0], counts)
    part = Part(torch.tensor(rows, dtype=torch.int64), numbers)
    return JoinedPart(part, counts.tolist(), lengths)


def equal(some: Any, other: Any) -> bool:
    return list(some) == list(other) and all(
        torch.equal(some[name], other[name]) and some[name].dtype == other[name].dtype
        for name in some
    )


def test_each_kind_is_tested() -> None:
    assert set(INPUTS) == set(KINDS), "a new input needs a line in tests/kinds.py"
    for kind, input_class in INPUTS.items():
        assert input_class.kind == kind
        assert input_class.__final__, "an input is final"  # type: ignore[attr-defined]


def test_inputs_describe_themselves(kind: str, one: Opened) -> None:
    assert one.input.gives in ("terms", "pixels", "vectors")
    assert one.input.of in ("text", "poster", "id")
    assert is_column_name(one.input.column)
    assert one.input.fitted and one.input.bytes_per_movie() > 0
    json.dumps(one.input.network_arguments())


def test_a_movie_without_the_column_has_no_row(one: Opened) -> None:
    row_index = one.features.row_index
    assert row_index.dtype == np.int64 and row_index.shape == (NUM_MOVIES,)
    assert (row_index < 0).tolist() == [False, True, False, False, False, True]
    assert sorted(row_index[row_index >= 0].tolist()) == [0, 1, 2, 3]
    assert list(one.features.unreadable) == []
    check_features(one.input, one.features, NUM_MOVIES)


@pytest.mark.parametrize(
    ("dense", "row_index", "message"),
    [
        ((4, 7), [0, -1, 1, 2], r"YearInput\.open gave a row_index of int64 and shape \(4,\), not"),
        ((4, 7), [0.0, -1, 1, 2, 3, -1], r"a row_index of float64 and shape \(6,\), not of int64"),
        ((4, 7), [0, -1, 1, 2, 4, -1], r"rows up to 4, and numbers for 4$"),
        ((4, 6), [0, -1, 1, 2, 3, -1], r"vectors \(1, 6\) float32 for one .* \(1, 7\) float32"),
    ],
    ids=["rows for some", "no whole numbers", "a row too many", "another width"],
)
def test_numbers_that_an_input_does_not_promise_are_refused(
    dense: tuple[int, int], row_index: list[float], message: str, tmp_path: Path
) -> None:
    branch_input = opened("year", tmp_path).input
    assert branch_input.network_arguments() == {"width": 7}
    features = DenseFeatures("vectors", np.ones(dense, np.float32), np.array(row_index))
    with pytest.raises(ValueError, match=message):
        check_features(branch_input, features, NUM_MOVIES)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int64])
def test_vectors_are_float32(dtype: Any, tmp_path: Path) -> None:
    one = opened("year", tmp_path)
    assert one.features.dense is not None
    features = DenseFeatures("vectors", one.features.dense.astype(dtype), one.features.row_index)
    with pytest.raises(ValueError, match=rf"vectors \(1, \d+\) {np.dtype(dtype).name} for one"):
        check_features(one.input, features, NUM_MOVIES)


def test_gathered_numbers_equal_encoded_ones(one: Opened) -> None:
    rows = [4, 0, 2, 3, 0]
    stored = gathered(one, rows).part.numbers
    encoded = one.input.encode([one.items[row] for row in rows])
    assert list(stored) == list(encoded)
    if all(stored[name].shape == encoded[name].shape for name in stored):
        assert equal(stored, encoded)
    else:  # stored vectors have further views for training
        assert one.input.kind == "embedding"
    part = one.part([5, *rows, 1])
    assert part.rows.tolist() == [1, 2, 3, 4, 5]
    assert equal(part.numbers, one.input.prepare(stored, None))


def test_dense_numbers_are_gathered_by_row(one: Opened) -> None:
    dense = one.features.dense
    if dense is None:
        return
    rows = np.array([2, 0])
    numbers, _ = one.features.gather(rows, np.array([2]))
    assert list(numbers) == [one.features.name]
    np.testing.assert_array_equal(numbers[one.features.name].numpy(), dense[rows])
    one.features.read_ahead(rows)


@pytest.mark.parametrize("training", [False, True], ids=["as they are", "varied"])
def test_joined_batches_are_those_alone(training: bool, one: Opened) -> None:
    # The second batch has no movie with the column, the last batch has one.
    batches = [[0, 1, 2], [5, 1], [4, 3, 0], [1, 2]]
    joined = gathered(one, *batches)
    seeds = [(count, 7 + k) for k, count in enumerate(joined.counts)]
    prepared = one.input.prepare(joined.part.numbers, seeds if training else None)
    lengths = {name: joined.lengths.get(name, joined.counts) for name in prepared}
    parts = JoinedPart(Part(joined.part.rows, prepared), joined.counts, lengths).parts()
    for part, batch, own in zip(parts, batches, seeds, strict=True):
        alone = gathered(one, batch).part
        assert torch.equal(part.rows, alone.rows)
        assert equal(part.numbers, one.input.prepare(alone.numbers, [own] if training else None))


def test_equal_seeds_give_equal_numbers(one: Opened) -> None:
    numbers = gathered(one, [0, 2, 3]).part.numbers
    kept = {name: value.clone() for name, value in numbers.items()}
    state = torch.random.get_rng_state()
    first, again = (one.input.prepare(numbers, [(3, 5)]) for _ in range(2))
    assert equal(first, again) and equal(numbers, kept)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert equal(one.input.prepare(numbers, None), one.input.prepare(numbers, None))


def test_no_movie_at_all(one: Opened) -> None:
    for part in (gathered(one, []).part, gathered(one, [1, 5]).part, one.part([]), one.part([5])):
        assert len(part) == 0 and part.rows.dtype == torch.int64
        assert all(len(value) == 0 for value in part.numbers.values())
    empty = one.input.encode([])
    full = one.input.encode([item for item in one.items if item is not None])
    for name, value in empty.items():
        assert value.dtype == full[name].dtype and value.shape[1:] == full[name].shape[1:]
    for seeds in (None, [], [(0, 3)]):
        prepared, expected = one.input.prepare(empty, seeds), one.input.prepare(full, None)
        for name, value in prepared.items():
            assert len(value) == 0 and value.dtype == expected[name].dtype
            assert value.shape[1:] == expected[name].shape[1:]


def test_only_train_is_learnt_from(kind: str, one: Opened, tmp_path: Path) -> None:
    other = KINDS[kind].make(tmp_path)
    values = list(one.values)
    values[3] = values[2]  # held out
    other.open(values, TRAIN, one.store)
    assert state_to_text(other) == state_to_text(one.input)


def test_opening_twice_gives_the_same(kind: str, one: Opened, tmp_path: Path) -> None:
    def files() -> dict[str, int]:
        found = [path for path in one.store.folder.rglob("*") if path.suffix != ".lock"]
        return {str(path): path.stat().st_mtime_ns for path in found if path.is_file()}

    before = files()
    again = KINDS[kind].make(tmp_path)
    features = again.open(one.values, TRAIN, one.store)
    np.testing.assert_array_equal(features.row_index, one.features.row_index)
    numbers, lengths = features.gather(features.row_index[[0, 2, 3, 4]], np.array([3, 1]))
    joined = gathered(one, [0, 2, 3], [4])
    assert equal(numbers, joined.part.numbers) and lengths == joined.lengths
    assert state_to_text(again) == state_to_text(one.input) and files() == before


# State in checkpoints.


def test_the_state_rebuilds_it(one: Opened) -> None:
    text = state_to_text(one.input)
    rebuilt = input_from_text(text)
    assert type(rebuilt) is type(one.input) and rebuilt.fitted
    assert state_to_text(rebuilt) == text
    assert rebuilt.column == one.input.column and rebuilt.of == one.input.of
    assert rebuilt.network_arguments() == one.input.network_arguments()
    items = [item for item in one.items if item is not None]
    assert equal(rebuilt.encode(items), one.input.encode(items))
    prepared = [
        branch_input.prepare(branch_input.encode(items), None)
        for branch_input in (rebuilt, one.input)
    ]
    assert equal(*prepared)
    # A fitted input learns nothing from other movies.
    features = rebuilt.open(one.values[2:], np.array([0, 1]), one.store)
    assert state_to_text(rebuilt) == text
    numbers, _ = features.gather(features.row_index[[0, 1]], np.array([2]))
    assert equal(numbers, gathered(one, [2, 3]).part.numbers)


def deep(depth: int = 10**5) -> str:
    return "[" * depth + "]" * depth


#: JSON values that replace a valid one.
HOSTILE = [
    "null", "true", "-1", "0", "9", "1.5", "1e308", "1e999", "NaN", "-Infinity", "9" * 60,
    "1" + "0" * 30, '""', '"x"', '"os.system"', '"' + "x" * 10**6 + '"', "[]", "[[]]", "[null]",
    "[NaN]", "[1e999]", '["a", "a"]', "[1, 1000000000]", "[" + "0," * 10**6 + "0]", "{}",
    '{"_target_": "os.system"}', '["\\u001b"]', deep(),
]  # fmt: skip


@pytest.mark.parametrize("value", HOSTILE, ids=lambda value: value[:20])
def test_a_hostile_value_is_refused_or_harmless(value: str, one: Opened) -> None:
    honest = json.loads(state_to_text(one.input))
    for key in honest:
        parts = [f'"{k}": {value if k == key else json.dumps(v)}' for k, v in honest.items()]
        text = "{" + ", ".join(parts) + "}"
        with little_memory():
            try:
                rebuilt = input_from_text(text)
            except ValueError as error:
                assert len(str(error)) < 2000, key
                continue
        # An accepted state behaves like one that was written by this program.
        written = state_to_text(rebuilt)
        assert state_to_text(input_from_text(written)) == written, key
        rebuilt.network_arguments()
        assert rebuilt.bytes_per_movie() < 2**40


def test_missing_and_unknown_keys_are_refused_by_name(one: Opened) -> None:
    honest = json.loads(state_to_text(one.input))
    for key in honest:
        less = {name: value for name, value in honest.items() if name != key}
        with pytest.raises(ValueError, match=key):
            input_from_text(json.dumps(less))
    for key in ("_target_", "x" * 10**4, "", "__class__", "self"):
        with pytest.raises(ValueError, match="unknown key") as caught:
            input_from_text(json.dumps({**honest, key: "os.system"}))
        assert len(str(caught.value)) < 500


# Values of new movies.


def test_what_can_not_be_read_is_refused(kind: str, one: Opened) -> None:
    for value in KINDS[kind].unreadable:
        with pytest.raises((InputError, TypeError)) as caught:
            one.input.read(value)
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


def test_a_setting_that_is_not_given_is_named_by_key() -> None:
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
def test_a_column_has_a_name_that_can_be_written(column: Any) -> None:
    assert not is_column_name(column)
    with pytest.raises(UserError, match=r"model\.branches\.b\.input\.column="):
        build_input("b", {"kind": "terms", "column": column})


def test_absent_columns_of_a_movie_are_left_out(tmp_path: Path) -> None:
    inputs, items = {}, {}
    for kind in INPUTS:
        (tmp_path / kind).mkdir()
        one = opened(kind, tmp_path / kind)
        inputs[kind], items[kind] = one.input, one.items
    parts = encode_items(inputs, items)
    assert list(parts) == list(INPUTS)
    for part in parts.values():
        assert part.rows.tolist() == [0, 2, 3, 4]
