"""Checkpoints: they alone rebuild a model, and are safe to load from an untrusted source."""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from genre_lightning.checkpoint.card import CHECKPOINT_KEY, CheckpointError, read_checkpoint
from genre_lightning.checkpoint.model import load_model
from genre_lightning.inputs.table import state_to_text
from genre_lightning.inputs.terms import TermsInput
from tests.memory import little_memory
from tests.running import logits

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture(scope="session")
def trained_ckpt(trained_run: Path) -> Path:
    """A checkpoint written by training."""
    return trained_run / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="session")
def content(trained_ckpt: Path) -> dict[str, Any]:
    """Content of the trained checkpoint; tests must not change it."""
    loaded: dict[str, Any] = torch.load(trained_ckpt, weights_only=True)
    return loaded


@pytest.fixture
def forge(content: dict[str, Any], tmp_path: Path) -> Callable[[Change], Path]:
    """Writes the trained checkpoint with a change: `forge(lambda c: c.pop("state_dict"))`.

    The change gets the inputs' states as mappings. They are written as strings again, unless JSON
    can't represent them.
    """

    def write_forged(change: Change) -> Path:
        checkpoint: Any = copy.deepcopy(content)
        description = checkpoint[CHECKPOINT_KEY]
        texts = description["inputs"]
        texts |= {name: json.loads(text) for name, text in texts.items()}
        change(checkpoint)
        if checkpoint.get(CHECKPOINT_KEY) is description and description.get("inputs") is texts:
            for name, state in texts.items():
                if not isinstance(state, str):
                    with suppress(TypeError):
                        texts[name] = json.dumps(state, ensure_ascii=False)
        path = tmp_path / "forged.ckpt"
        torch.save(checkpoint, path)
        return path

    return write_forged


def put(*keys: Any, value: Any) -> Change:
    """A change that sets `checkpoint[keys[0]][keys[1]]... = value`."""

    def change(checkpoint: dict[str, Any]) -> None:
        place: Any = checkpoint
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value

    return change


def card(*keys: Any, value: Any) -> Change:
    return put(CHECKPOINT_KEY, *keys, value=value)


def title(*keys: Any, value: Any) -> Change:
    return card("inputs", "title_tfidf", *keys, value=value)


def poster(*keys: Any, value: Any) -> Change:
    return card("inputs", "poster_resnet", *keys, value=value)


def reverse_inputs(checkpoint: dict[str, Any]) -> None:
    inputs = checkpoint[CHECKPOINT_KEY]["inputs"]
    for name in list(reversed(inputs)):
        inputs[name] = inputs.pop(name)


#: The state of an input that the trained checkpoint does not have.
INPUT = state_to_text(TermsInput("title", 16))


def copy_zip(
    source: Path, target: Path, change: Callable[[str, bytes], bytes], method: int = 0
) -> Path:
    """Copy a zip file, replacing the data of each entry by `change(name, data)`."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", method) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, change(entry.filename, old.read(entry)))
    return target


def with_pickle(source: Path, target: Path, data: bytes) -> Path:
    """Copy a checkpoint with another pickle in its archive."""
    return copy_zip(source, target, lambda n, old: data if n.endswith("data.pkl") else old)


# Format and content.


def test_a_checkpoint_is_plain_data(trained_ckpt: Path) -> None:
    checkpoint = torch.load(trained_ckpt, weights_only=True)
    assert {"state_dict", "optimizer_states", CHECKPOINT_KEY} <= set(checkpoint)
    assert "hyper_parameters" not in checkpoint
    assert set(checkpoint[CHECKPOINT_KEY]) == {
        "format", "network", "activation", "loss", "thresholds",
        "threshold_fit", "stacking", "label_sets", "genres", "inputs", "learnt_from",
        "learnt_movies", "content", "data",
    }  # fmt: skip


@pytest.mark.parametrize("other", [1, 2, 3, 5, "4", None, True, [4]], ids=repr)
def test_another_format_is_refused_with_a_short_message(
    other: Any, forge: Callable[[Change], Path]
) -> None:
    with pytest.raises(CheckpointError) as caught:
        load_model(forge(card("format", value=other)))
    message = str(caught.value)
    assert f"its format is {other!r}, and this version reads 4: train it again with this" in message
    assert "\n" not in message and len(message) < 500


def test_a_checkpoint_of_the_previous_format_is_refused(trained_ckpt: Path, tmp_path: Path) -> None:
    checkpoint = torch.load(trained_ckpt, weights_only=True)
    description = checkpoint[CHECKPOINT_KEY]
    titles = description.pop("inputs")["title_tfidf"]
    description.update(format=3, titles=titles, poster_size=32, poster_pool=1)
    description["network"] = {"num_genres": 8, "title": {"name": "title_mlp"}, "poster": None}
    torch.save(checkpoint, tmp_path / "older.ckpt")
    with pytest.raises(CheckpointError, match=r"older\.ckpt: its format is 3.*train it again"):
        load_model(tmp_path / "older.ckpt")


# Payloads.


class Payload:
    """An object that is pickled as a function call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)
        self.name = f"{function.__module__}.{function.__qualname__}{arguments}"

    def __reduce__(self) -> Any:
        return self.call


BIAS = "network.branches.title_tfidf.head.bias"
VARIANCE = "network.branches.title_tfidf.norm.running_var"
PLACES = {
    **{
        name: (name,)
        for name in (
            "epoch", "global_step", "pytorch-lightning_version", "state_dict", "loops",
            "callbacks", "optimizer_states", "lr_schedulers", CHECKPOINT_KEY, "unknown",
        )
    },
    "a weight": ("state_dict", BIAS),
    "a term of a title": (CHECKPOINT_KEY, "inputs", "title_tfidf", "terms", 0),
    "an input": (CHECKPOINT_KEY, "inputs", "poster_resnet"),
    "a threshold": (CHECKPOINT_KEY, "thresholds", 1),
    "the loss": (CHECKPOINT_KEY, "loss", "name"),
    "a reader's option": (CHECKPOINT_KEY, "data", "root"),
    "the optimizer": ("optimizer_states", 0, "state", 0, "step"),
    "a branch": (CHECKPOINT_KEY, "network", "branches", "title_tfidf", "name"),
}  # fmt: skip


@pytest.mark.parametrize("place", PLACES.values(), ids=list(PLACES))
def test_a_payload_does_not_run(
    place: tuple[Any, ...], forge: Callable[[Change], Path], tmp_path: Path
) -> None:
    marker = tmp_path / "marker"
    path = forge(put(*place, value=Payload(os.system, f"touch {marker}")))
    with pytest.raises(CheckpointError, match=r"forged\.ckpt.*refused.*system"):
        load_model(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    "payload",
    [
        Payload(eval, "1"),
        Payload(exec, "1"),
        Payload(__import__, "os"),
        Payload(getattr, "", "format"),
        Payload(torch.load, "/dev/null"),
        Payload(torch.hub.load, "x"),
        # torch itself allows these two: a terabyte of zeros, and hours of work.
        Payload(bytearray, 10**12),
        Payload(torch.Tensor, 10**9),
        set(),
        b"bytes",
        1 + 2j,
        torch.device("meta"),
        torch.float32,
        torch.nn.Parameter(torch.zeros(2)),
        torch.zeros(2, 2).to_sparse(),
        torch.zeros(2, device="meta"),
        torch.zeros(3, dtype=torch.complex64),
    ],
    ids=lambda payload: payload.name if isinstance(payload, Payload) else type(payload).__name__,
)
def test_values_that_training_never_writes_are_refused(
    payload: Any, forge: Callable[[Change], Path]
) -> None:
    path = forge(put("loops", "x", value=payload))
    with little_memory(), pytest.raises(CheckpointError, match=r"forged\.ckpt: "):
        read_checkpoint(path)


def test_a_payload_in_another_pickle_does_not_run(trained_ckpt: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    payload = Payload(os.system, f"touch {marker}")
    path = tmp_path / "other.ckpt"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        data = pickle.dumps({CHECKPOINT_KEY: payload}, protocol)
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=r"other\.ckpt"):
            load_model(path)
        with_pickle(trained_ckpt, path, data)
        with pytest.raises(CheckpointError, match=r"other\.ckpt"):
            load_model(path)
        # A pickle and a zip file in one: readers of zip files start at the end.
        path.write_bytes(data + trained_ckpt.read_bytes())
        with pytest.raises(CheckpointError, match=r"other\.ckpt"):
            load_model(path)
    torch.save({CHECKPOINT_KEY: payload}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"other\.ckpt"):
        load_model(path)
    assert not marker.exists()


def test_an_instantiator_of_lightning_is_refused(forge: Callable[[Change], Path]) -> None:
    path = forge(
        put(
            "hyper_parameters",
            value={"_instantiator": "pytorch_lightning.cli.instantiate_module"},
        )
    )
    with pytest.raises(CheckpointError, match=r"hyper_parameters|_instantiator"):
        load_model(path)


@pytest.mark.parametrize("key", ["_target_", "_instantiator", "_partial_", "_args_"])
@pytest.mark.parametrize(
    "place",
    [
        (),
        ("loops",),
        ("callbacks",),
        ("optimizer_states", 0, "param_groups", 0),
        (CHECKPOINT_KEY,),
        (CHECKPOINT_KEY, "network"),
        (CHECKPOINT_KEY, "network", "branches", "poster_resnet"),
        (CHECKPOINT_KEY, "loss"),
        (CHECKPOINT_KEY, "inputs", "title_tfidf"),
        (CHECKPOINT_KEY, "inputs", "poster_resnet"),
        (CHECKPOINT_KEY, "data"),
    ],
    ids=lambda place: ".".join(map(str, place)) or "top",
)
def test_keys_that_name_code_are_refused(
    key: str, place: tuple[Any, ...], forge: Callable[[Change], Path]
) -> None:
    path = forge(put(*place, key, value="os.system"))
    with pytest.raises(CheckpointError, match=key):
        load_model(path)


@pytest.mark.parametrize(
    "place",
    [
        ("network", "branches", "title_tfidf", "name"),
        ("network", "branches", "poster_resnet", "name"),
        ("inputs", "title_tfidf", "kind"),
        ("inputs", "poster_resnet", "kind"),
        ("loss", "name"),
        ("activation",),
        ("inputs", "title_tfidf", "analyzer"),
    ],
    ids=".".join,
)
@pytest.mark.parametrize(
    "name",
    ["genre_lightning.data.os.system", "os.system", "__class__", "", None, [], {}, 1, "poster_x"],
    ids=repr,
)
def test_names_that_are_in_no_table_are_refused(
    place: tuple[str, ...], name: Any, forge: Callable[[Change], Path]
) -> None:
    with pytest.raises(CheckpointError, match=r"forged\.ckpt"):
        load_model(forge(card(*place, value=name)))


# Values that are no valid model.


def resized(name: str, *shape: int) -> Change:
    return put("state_dict", name, value=torch.zeros(*shape))


def drop(*keys: str) -> Change:
    def change(checkpoint: dict[str, Any]) -> None:
        place: Any = checkpoint
        for key in keys[:-1]:
            place = place[key]
        del place[keys[-1]]

    return change


DEEP: list[Any] = []
for _ in range(200):
    DEEP = [DEEP]
BAD_VALUES: dict[str, tuple[Change, str]] = {
    "shape": (resized(BIAS, 9), "head.bias is"),
    "rank": (resized(BIAS, 8, 1), "head.bias is"),
    "dtype": (put("state_dict", BIAS, value=torch.zeros(8, dtype=torch.long)), "head.bias is"),
    "double": (put("state_dict", BIAS, value=torch.zeros(8).double()), "head.bias is"),
    "weight is a list": (put("state_dict", BIAS, value=[0.0] * 8), "head.bias is list"),
    "nan": (put("state_dict", BIAS, value=torch.full((8,), torch.nan)), "not finite"),
    "inf": (put("state_dict", BIAS, value=torch.full((8,), torch.inf)), "not finite"),
    "variance below 0": (
        put("state_dict", VARIANCE, value=torch.full((8,), -1.0)),
        "variance",
    ),
    "weight missing": (drop("state_dict", BIAS), "head.bias"),
    "extra weight": (resized("network.branches.title_tfidf.extra", 1), "title_tfidf.extra"),
    "weight outside of the network": (resized("other.weight", 1), "more than a network"),
    "weight named by a number": (put("state_dict", 0, value=torch.zeros(1)), "no weights"),
    "no weights": (put("state_dict", value=[]), "no weights"),
    "stride 0": (put("state_dict", BIAS, value=torch.zeros(1).expand(8)), "claims more numbers"),
    "no card": (drop(CHECKPOINT_KEY), "not a checkpoint of this project"),
    "card is a list": (put(CHECKPOINT_KEY, value=[]), "not a mapping"),
    "format": (card("format", value=99), "format is 99"),
    "format is long": (card("format", value="x" * 10**6), "format is"),
    "no genres": (card("genres", value=[]), "genres"),
    "genre twice": (card("genres", 0, value="Comedy"), "genres"),
    "genre is a number": (card("genres", 0, value=1), "genres"),
    "genre with a terminal escape": (card("genres", 0, value="\x1b[2J"), "genres"),
    "genre is a lone surrogate": (card("genres", 0, value="\ud800"), "not text"),
    "genre missing": (card("genres", value=["A"]), "threshold"),
    "learnt movies in a list": (
        card("learnt_movies", value=[1, 2]), "the movies that it has learnt from",
    ),
    "a learnt movie cut off": (
        card("learnt_movies", value="0" * 31), "the movies that it has learnt from",
    ),
    "threshold nan": (card("thresholds", 0, value=float("nan")), "threshold"),
    "threshold inf": (card("thresholds", 0, value=float("inf")), "threshold"),
    "threshold below 0": (card("thresholds", 0, value=-0.1), "threshold"),
    "threshold missing": (card("thresholds", value=[0.5]), "threshold"),
    "threshold method": (card("threshold_fit", "method", value="no"), "threshold method 'no'"),
    "threshold weight": (card("threshold_fit", "micro_weight", value=2), "micro_weight=2"),
    "threshold argument": (card("threshold_fit", "x", value=2), "thresholds were fitted"),
    "threshold list": (card("threshold_fit", value=[]), "thresholds were fitted"),
    "stacking": (card("stacking", value={"genres": [], "offsets": []}), "its stacking can't be"),
    "label sets": (card("label_sets", value={"sets": [[0]]}), "its label sets can't be used"),
    "label sets of other genres": (
        card("label_sets", value={"sets": [[99]], "only": [-1], "unseen": [0.5]}),
        "its label sets can't be used: a set is not of",
    ),
    "thresholds are text": (card("thresholds", value="abcdefgh"), "threshold"),
    "poster size": (poster("size", value=[1, 1]), r"input poster_resnet .*size: \[1, 1\]"),
    "another poster size": (poster("size", value=[48, 48]), r"made for size \[32, 32\]"),
    "poster size is a number": (poster("size", value=32), "size: 32 is no list"),
    "poster size is text": (poster("size", value="32"), "size"),
    "poster pool": (poster("pool", value=34), "pool: 34 is neither 1 nor an even"),
    "poster pool is odd": (poster("pool", value=3), "pool: 3"),
    "poster pool is zero": (poster("pool", value=0), "pool: 0"),
    "poster pool is text": (poster("pool", value="4"), "pool"),
    "poster deviation is zero": (poster("std", value=[0.0, 0.1, 0.1]), "std"),
    "poster mean is missing": (drop(CHECKPOINT_KEY, "inputs", "poster_resnet", "mean"), "mean"),
    "inputs are a list": (card("inputs", value=[]), "inputs is missing or not a mapping"),
    "an input is a mapping": (card("inputs", value={"title_tfidf": {"a": (1, 2)}}), "not a text"),
    "an input is missing": (drop(CHECKPOINT_KEY, "inputs", "poster_resnet"), "its inputs title_tf"),
    "an extra input": (card("inputs", "x", value=INPUT), "its inputs .*, x"),
    "many inputs": (card("inputs", value={f"b{n}": INPUT for n in range(99)}), "more than 64"),
    "inputs in another order": (reverse_inputs, "its inputs poster_resnet, title_tfidf"),
    "a column without a name": (title("column", value=""), "column has no name"),
    "a column with a terminal escape": (title("column", value="\x1b[2J"), "JSON|column"),
    "a number as a column": (title("column", value=7), "column has no name"),
    "an input of another kind": (card("inputs", "poster_resnet", value=INPUT), "takes pixels"),
    "loss argument": (card("loss", "x", value=1), "loss"),
    "loss of other genres": (
        card("loss", value={"name": "bce", "class_weight": "sqrt", "genre_counts": [1], "num_movies": 2}),  # noqa: E501
        "loss",
    ),
    "loss counts are text": (card("loss", "genre_counts", value="ab"), "loss"),
    "activation of another loss": (card("activation", value="softmax"), "activation"),
    "no branch": (
        card("network", value={"num_genres": 8, "branches": {}}),
        "1 to 64 branches",
    ),
    "branch argument": (card("network", "branches", "title_tfidf", "x", value=1), "network"),
    "invalid branch name": (card("network", "branches", "a.b", value={}), "not a valid name"),
    "network argument": (card("network", "x", value=1), "network"),
    "network key": (card("network", 1, value=1), "network"),
    "vocabularies differ": (title("vocabulary_size", value=300), "made for vocabulary_size 256"),
    "idf": (title("idf", 0, value=float("nan")), "input title_tfidf can't"),
    "data": (card("data", "reader", value={}), "data"),
    "deep": (put("loops", value=DEEP), "deeply"),
    "key is a tuple": (put("loops", (1, 2), value=1), "key of type tuple"),
    "number beyond 64 bits": (card("format", value=10**600), "64 bits"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), BAD_VALUES.values(), ids=list(BAD_VALUES))
def test_bad_values_are_refused(
    change: Change, message: str, forge: Callable[[Change], Path]
) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        load_model(forge(change))
    assert "forged.ckpt" in str(caught.value)
    assert len(str(caught.value)) < 2000


BAD_JSON: dict[str, Callable[[str], str]] = {
    "empty": lambda text: "",
    "cut off": lambda text: text[: len(text) // 2],
    "two values": lambda text: text + "0",
    "a list": lambda text: "[]",
    "a number": lambda text: "7",
    "an escape": lambda text: text.replace('"terms": ["', '"terms": ["\\u001b'),
    "a surrogate by escape": lambda text: text.replace('"terms": ["', '"terms": ["\\ud800'),
    "a line break": lambda text: text.replace('"terms": ["', '"terms": ["\n'),
    "not a number": lambda text: re.sub(r'"idf": \[[^,]*', '"idf": [NaN', text),
    "a long number": lambda text: text.replace('"years": [', f'"years": [{"9" * 10**5}, '),
    "deep": lambda text: "[" * 10**6 + "]" * 10**6,
    "many lists": lambda text: "[" + "[]," * 10**7 + "0]",
    "many numbers": lambda text: "[" + "7e1," * 10**7 + "0]",
    "a key of code": lambda text: text.replace('"terms"', '"_target_": "os.system", "terms"'),
}


@pytest.mark.parametrize("change", BAD_JSON.values(), ids=list(BAD_JSON))
def test_bad_json_is_refused_in_little_memory(
    change: Callable[[str], str], trained_ckpt: Path, tmp_path: Path
) -> None:
    checkpoint = torch.load(trained_ckpt, weights_only=True)
    inputs = checkpoint[CHECKPOINT_KEY]["inputs"]
    before = inputs["title_tfidf"]
    inputs["title_tfidf"] = change(before)
    assert inputs["title_tfidf"] != before
    path = tmp_path / "forged.ckpt"
    torch.save(checkpoint, path)
    with little_memory(), pytest.raises(CheckpointError, match="title_tfidf") as caught:
        load_model(path)
    assert "forged.ckpt" in str(caught.value)
    assert len(str(caught.value)) < 2000


# Absurd sizes.


def nested_lists(checkpoint: dict[str, Any]) -> None:
    value: list[Any] = []
    for _ in range(25):
        value = [value] * 10
    checkpoint["loops"] = value


def self_containing_list(checkpoint: dict[str, Any]) -> None:
    value: list[Any] = []
    value.extend([value] * 10)
    checkpoint["loops"] = value


def repeated_string(checkpoint: dict[str, Any]) -> None:
    checkpoint["loops"] = ["x" * 10**6] * 10**4


def wide_vocabulary(hidden: int, size: int) -> Change:
    def change(checkpoint: dict[str, Any]) -> None:
        description = checkpoint[CHECKPOINT_KEY]
        network = description["network"]["branches"]["title_tfidf"]
        network.update(hidden=hidden, vocabulary_size=size)
        description["inputs"]["title_tfidf"]["vocabulary_size"] = size

    return change


def expanded_weight(checkpoint: dict[str, Any]) -> None:
    """A gigabyte of weights, for which the file stores only four bytes."""
    wide_vocabulary(256, 2**20)(checkpoint)
    weight = "network.branches.title_tfidf.embed.weight"
    checkpoint["state_dict"][weight] = torch.zeros(1, 1).expand(2**20, 256)


ABSURD: dict[str, Change] = {
    "hidden": card("network", "branches", "title_tfidf", "hidden", value=10**9),
    "widths": card("network", "branches", "poster_resnet", "widths", value=[10**9, 10**9]),
    "many widths": card("network", "branches", "poster_resnet", "widths", value=[1] * 10**4),
    "largest widths": card(
        "network", "branches", "poster_resnet",
        value={
            "name": "poster_resnet", "size": [32, 32], "widths": [4096] * 16, "blocks": [64] * 16,
        },
    ),
    "poster size": poster("size", value=[10**9, 10**9]),
    "genres": card("network", "num_genres", value=10**7),
    "vocabulary": wide_vocabulary(8, 10**9),
    "largest vocabulary": wide_vocabulary(8192, 2**20),
    "allowed size, no weights": wide_vocabulary(256, 2**20),
    "allowed size, expanded weights": expanded_weight,
    "n-grams": title("ngram_range", value=[1, 10**9]),
    "nested lists": nested_lists,
    "a list that contains itself": self_containing_list,
    "one string repeated": repeated_string,
}  # fmt: skip


@pytest.mark.parametrize("change", ABSURD.values(), ids=list(ABSURD))
def test_absurd_sizes_are_refused_in_little_memory(
    change: Change, forge: Callable[[Change], Path]
) -> None:
    path = forge(change)
    with little_memory(), pytest.raises(CheckpointError, match=r"forged\.ckpt"):
        load_model(path)


@pytest.mark.parametrize("record", [4, 4000], ids=["too small a record", "too large a record"])
def test_a_record_of_another_size_than_its_tensor_is_refused(
    record: int, trained_ckpt: Path, tmp_path: Path
) -> None:
    def change(name: str, data: bytes) -> bytes:
        return bytes(record) if name.endswith("data/0") else data

    path = copy_zip(trained_ckpt, tmp_path / "records.ckpt", change)
    with pytest.raises(CheckpointError, match=r"claims .* numbers, and its record has"):
        load_model(path)


def test_a_tensor_larger_than_its_record_is_refused(tmp_path: Path) -> None:
    # Four numbers are stored, but the pickle has a tensor of (100,): torch would allocate the rest.
    path = tmp_path / "tensor.ckpt"
    torch.save({"x": torch.zeros(4)}, path)
    with zipfile.ZipFile(path) as archive:
        data = archive.read("tensor/data.pkl")
    assert data.count(b"K\x04\x85") == 1
    with_pickle(path, tmp_path / "longer.ckpt", data.replace(b"K\x04\x85", b"K\x64\x85"))
    with pytest.raises(CheckpointError, match="claims more numbers than it stores"):
        load_model(tmp_path / "longer.ckpt")


def test_attributes_that_hide_methods_are_refused(tmp_path: Path, trained_ckpt: Path) -> None:
    checkpoint = torch.load(trained_ckpt, weights_only=True)
    checkpoint["state_dict"].startswith = "not a method"
    path = tmp_path / "attributes.ckpt"
    torch.save(checkpoint, path)
    with pytest.raises(CheckpointError, match="attributes"):
        load_model(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressed_archives_are_refused(method: int, trained_ckpt: Path, tmp_path: Path) -> None:
    path = copy_zip(
        trained_ckpt, tmp_path / "bomb.ckpt", lambda _, data: data + bytes(10**5), method
    )
    with little_memory(), pytest.raises(CheckpointError, match="compressed"):
        load_model(path)


# Damaged files and files of other kinds.


def test_truncated_files_are_refused(trained_ckpt: Path, tmp_path: Path) -> None:
    data = trained_ckpt.read_bytes()
    path = tmp_path / "truncated.ckpt"
    for size in [0, 1, 4, 100, len(data) // 3, len(data) // 2, *range(len(data) - 120, len(data))]:
        path.write_bytes(data[:size])
        with pytest.raises(CheckpointError, match=r"truncated\.ckpt"):
            load_model(path)


@pytest.mark.parametrize(
    "content", [b"", b"hello\n", b"PK\3\4" + bytes(200), bytes(10**5)], ids=lambda c: repr(c[:8])
)
def test_other_files_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "other.ckpt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"other\.ckpt: not a checkpoint"):
        load_model(path)


@pytest.mark.parametrize("name", ["", "missing.ckpt", "\0", "x" * 5000, "fifo"])
def test_a_path_that_is_not_a_file_is_refused(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    reasons = "there is no such file|can't be read: File name too long|it is a folder; name .*"
    with pytest.raises(CheckpointError, match=rf": ({reasons})$"):
        load_model(tmp_path / name)


@pytest.mark.parametrize("kind", ["before", "after", "between", "comment", "twice"])
def test_archives_with_extra_bytes_are_refused(
    kind: str, trained_ckpt: Path, tmp_path: Path
) -> None:
    data, path = trained_ckpt.read_bytes(), tmp_path / "beside.ckpt"
    path.write_bytes(
        {
            "before": b"x" * 100 + data,
            "after": data + b"x" * 100,
            # Readers that count from the end find other content than those from the start.
            "between": data[:-98] + b"x" * 100 + data[-98:],
            "comment": data[:-2] + b"\5\0hello",
            "twice": data + data,
        }[kind]
    )
    with pytest.raises(CheckpointError, match=r"beside\.ckpt"):
        load_model(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ["{}/data.pkl", "{}/DATA.PKL", "other/data.pkl"])
def test_an_archive_with_two_pickles_is_refused(
    name: str, trained_ckpt: Path, tmp_path: Path
) -> None:
    path = tmp_path / "double.ckpt"
    path.write_bytes(trained_ckpt.read_bytes())
    with zipfile.ZipFile(path, "a") as archive:
        folder = archive.namelist()[0].partition("/")[0]
        archive.writestr(name.format(folder), b"x")
    with pytest.raises(CheckpointError, match=r"double\.ckpt"):
        load_model(path)


def test_an_entry_beyond_the_end_of_the_file_is_refused(trained_ckpt: Path, tmp_path: Path) -> None:
    data = bytearray(trained_ckpt.read_bytes())
    with zipfile.ZipFile(trained_ckpt) as archive:
        last = [entry for entry in archive.infolist() if "/data/" in entry.filename][-1]
    data[last.header_offset + 28 : last.header_offset + 30] = b"\xff\xff"  # extra field's size
    path = tmp_path / "beyond.ckpt"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="is not where it should be"):
        load_model(path)


@pytest.mark.slow
def test_flipped_bits_give_a_model_or_an_error(trained_ckpt: Path, tmp_path: Path) -> None:
    data = trained_ckpt.read_bytes()
    with zipfile.ZipFile(trained_ckpt) as archive:
        entry = next(e for e in archive.infolist() if e.filename.endswith("data.pkl"))
        pickled = archive.read(entry)
        directory = archive.start_dir
    rng = np.random.default_rng(0)
    path = tmp_path / "flipped.ckpt"
    loaded = refused = 0
    for trial in range(240):
        if trial % 3 == 0:  # anywhere
            damaged = bytearray(data)
            places = rng.integers(len(data), size=2)
        elif trial % 3 == 1:  # in the archive's directory
            damaged = bytearray(data)
            places = directory + rng.integers(len(data) - directory, size=1)
        else:  # in the pickle, with a matching checksum
            damaged = bytearray(pickled)
            places = rng.integers(len(pickled), size=1)
        for place in places:
            damaged[place] ^= 1 << int(rng.integers(8))
        if trial % 3 == 2:
            with_pickle(trained_ckpt, path, bytes(damaged))
        else:
            path.write_bytes(damaged)
        try:
            with little_memory():
                model = load_model(path)
        except CheckpointError as error:
            assert "flipped.ckpt" in str(error)
            refused += 1
        else:
            assert logits(model).shape == (2, len(model.genres))
            loaded += 1
    assert loaded > 5 and refused > 100


def test_entries_of_another_checkpoint_are_refused(
    trained_ckpt: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(tiny_checkpoint) as archive:
        folder = archive.namelist()[0].partition("/")[0]
        others = {name.removeprefix(folder): archive.read(name) for name in archive.namelist()}
    path = tmp_path / "exchanged.ckpt"
    for part in ("data.pkl", "/data/"):  # the description, then the weights

        def change(name: str, data: bytes, part: str = part) -> bytes:
            name = name[name.index("/") :]
            return others.get(name, data) if part in name else data

        copy_zip(trained_ckpt, path, change)
        with pytest.raises(CheckpointError, match=r"exchanged\.ckpt"):
            load_model(path)


def test_reading_does_not_change_the_file(trained_ckpt: Path) -> None:
    before = trained_ckpt.read_bytes()
    load_model(trained_ckpt)
    assert trained_ckpt.read_bytes() == before
    buffer = io.BytesIO(before)  # torch can read the file without this package
    assert CHECKPOINT_KEY in torch.load(buffer, weights_only=True)
