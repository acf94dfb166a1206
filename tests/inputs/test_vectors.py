"""The input `vectors`: vectors from a user's file."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import logit

from genre_lightning.errors import InputError, UserError
from genre_lightning.inputs.input import Store
from genre_lightning.inputs.table import build_input, input_from_text, state_to_text
from genre_lightning.inputs.vectors import VectorsInput, read_vectors

X = np.array([[0.25, 1.0, -2.0], [3.0, 0.5, 4.0], [5.0, -0.125, 6.0]])
CSV = "id,a,b,c\n7,0.25,1,-2\nx,3,.5,4\n\n30, 5 ,-1.25e-1,6\n"


def save(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def write_file(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


IDS: dict[str, Any] = {
    "strings": np.array(["7", "x", "30"]),
    "bytes": np.array([b"7", b"x", b"30"]),
}


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize("id_type", IDS)
def test_npz(id_type: str, dtype: Any, tmp_path: Path) -> None:
    path = save(tmp_path / "v.npz", ids=IDS[id_type], x=X.astype(dtype))
    ids, x = read_vectors(path)
    assert ids == ["7", "x", "30"] and x.dtype == np.float32
    np.testing.assert_array_equal(x, X)


def test_npz_of_integers(tmp_path: Path) -> None:
    path = save(tmp_path / "v.npz", ids=np.array([7, 30]), x=np.array([[1, 2], [3, 4]], np.uint8))
    ids, x = read_vectors(path)
    assert ids == ["7", "30"]
    np.testing.assert_array_equal(x, [[1, 2], [3, 4]])


@pytest.mark.parametrize(
    "text",
    [CSV, "﻿" + CSV, CSV.replace("\n", "\r\n"), 'a,"ID",b,c\n.25,7,1,-2\n3,x,.5,4\n5,30,-.125,6'],
    ids=["plain", "byte order mark", "CRLF", "id in the second column"],
)
def test_csv(text: str, tmp_path: Path) -> None:
    ids, x = read_vectors(write_file(tmp_path / "v.csv", text))
    assert ids == ["7", "x", "30"] and x.dtype == np.float32
    np.testing.assert_array_equal(x, X)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", ":1: one column id"),
        ("id\n1\n", ":1: one column id"),
        ("id,id,a\n", ":1: one column id"),
        ("a,b\n1,2\n", ":1: one column id"),
        ("id,a\n1,2\n2,x\n", ":3: could not convert string to float: 'x'"),
        ("id,a\n1,2\n\n2,\n", ":4: could not"),
        ("id,a\n1,2\n2,3,4\n", ":3: 3 cells, but the header has 2"),
        ("id,a\n1,2\n1,3\n", "the id '1' comes more than once"),
        ("id,a\n1,nan\n", "the vector of id '1'"),
        ("id,a\n1,1\n2,1e300\n", "the vector of id '2' .* too large for float32"),
        ('id,a\n"1,2\n', "v.csv:2: "),
        (b"id,a\n\xff,1\n", "not UTF-8"),
    ],
    ids=repr,
)
def test_invalid_csv_is_named_with_its_line(
    content: str | bytes, message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_vectors(write_file(tmp_path / "v.csv", content))
    assert str(tmp_path / "v.csv") in str(caught.value)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no ids": ({"x": X}, "no 'ids'"),
    "no x": ({"ids": IDS["strings"]}, "no 'x'"),
    "other names": ({"y": X}, "no 'ids'"),
    "one dimension": ({"ids": IDS["strings"], "x": X[0]}, r"x is \(3,\) for 3 ids"),
    "other length": ({"ids": IDS["strings"][:2], "x": X}, r"x is \(3, 3\) for 2 ids"),
    "no width": ({"ids": IDS["strings"], "x": X[:, :0]}, r"\(3, 0\)"),
    "strings for x": ({"ids": IDS["strings"], "x": X.astype(str)}, "x numbers"),
    "objects for x": ({"ids": IDS["strings"], "x": X.astype(object)}, "plain arrays"),
    "objects for ids": ({"ids": IDS["strings"].astype(object), "x": X}, "plain arrays"),
    "floats for ids": ({"ids": X[:, 0], "x": X}, "ids must be"),
    "two-dimensional ids": ({"ids": IDS["strings"][:, None], "x": X}, "ids must be"),
    "ids that are not UTF-8": ({"ids": np.array([b"\xff", b"a", b"b"]), "x": X}, "plain arrays"),
    "repeated id": ({"ids": np.array(["a", "b", "a"]), "x": X}, "'a' comes more than once"),
    "infinite": ({"ids": IDS["strings"], "x": X * [[1], [1], [np.inf]]}, "of id '30'"),
    "too large": ({"ids": IDS["strings"], "x": X * [[1], [1e300], [1]]}, "of id 'x'"),
}


@pytest.mark.parametrize("case", BAD)
def test_invalid_npz_is_named(case: str, tmp_path: Path) -> None:
    arrays, message = BAD[case]
    path = save(tmp_path / "v.npz", **arrays)
    with pytest.raises(InputError, match=message) as caught:
        read_vectors(path)
    assert str(path) in str(caught.value) and len(str(caught.value)) < 600


def damage(content: bytes) -> bytes:
    return content[:200] + bytes(byte ^ 255 for byte in content[200:260]) + content[260:]


def test_files_that_are_not_npz_are_refused(tmp_path: Path) -> None:
    plain, compressed, array, other = (io.BytesIO() for _ in range(4))
    big = np.random.default_rng(0).normal(size=(3, 50))
    np.savez(plain, ids=IDS["strings"], x=big)
    np.savez_compressed(compressed, ids=IDS["strings"], x=big)
    np.save(array, X)
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("ids.npy", b"no array")
        archive.writestr("x.npy", b"")
    for number, content in enumerate(
        [
            b"", b"no array", array.getvalue(), plain.getvalue()[:-200], damage(plain.getvalue()),
            damage(compressed.getvalue()), other.getvalue(), b"PK\x03\x04",
        ]
    ):  # fmt: skip
        path = write_file(tmp_path / f"{number}.npz", content)
        with pytest.raises(InputError, match=str(path)):
            read_vectors(path)


def test_missing_and_special_files_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    for path in (tmp_path / "pipe.csv", tmp_path / "none.npz", tmp_path, Path("/dev/zero")):
        with pytest.raises(InputError, match="no such file"):
            read_vectors(path)


# VectorsInput.


def open_ids(
    branch_input: VectorsInput, ids: list[Any], folder: Path
) -> tuple[np.ndarray, np.ndarray]:
    features = branch_input.open(ids, np.arange(1), Store(folder))
    assert features.dense is not None
    return features.dense, features.row_index


def test_vectors_are_found_by_id(tmp_path: Path) -> None:
    path = write_file(tmp_path / "v.csv", CSV)
    branch_input = VectorsInput(str(path))
    dense, row_index = open_ids(branch_input, ["30", "unknown", "7", "7"], tmp_path)
    np.testing.assert_array_equal(dense[row_index[[0, 2, 3]]], X[[2, 0, 0]])
    assert row_index[1] == -1 and branch_input.network_arguments() == {"width": 3}
    assert branch_input.column == "id"


def test_file_without_any_id_of_the_dataset_is_refused(tmp_path: Path) -> None:
    path = write_file(tmp_path / "v.csv", CSV)
    with pytest.raises(InputError, match=r"none of its 3 ids .* such as 'tt1'"):
        open_ids(VectorsInput(str(path)), ["tt1", "tt2"], tmp_path)


def test_log_odds(tmp_path: Path) -> None:
    p = np.array([[0.0, 1.0, 0.5], [0.25, 0.9, 0.005], [1e-9, 0.75, 0.1]])
    path = save(tmp_path / "v.npz", ids=IDS["strings"], x=p)
    dense, row_index = open_ids(VectorsInput(str(path), log_odds=True), ["7", "x", "30"], tmp_path)
    assert dense.dtype == np.float32
    np.testing.assert_allclose(dense[row_index], logit(p.clip(0.005, 0.995)), rtol=1e-5, atol=1e-6)
    for bad in (p - 0.5, p + 0.5):
        save(path, ids=IDS["strings"], x=bad)
        with pytest.raises(InputError, match=r"probabilities in 0\.\.1"):
            open_ids(VectorsInput(str(path), log_odds=True), ["7"], tmp_path)


def test_a_file_of_another_width_is_refused(tmp_path: Path) -> None:
    path = write_file(tmp_path / "v.csv", CSV)
    branch_input = VectorsInput(str(path))
    open_ids(branch_input, ["7"], tmp_path)
    rebuilt = input_from_text(state_to_text(branch_input))
    assert isinstance(rebuilt, VectorsInput) and rebuilt.state() == branch_input.state()
    open_ids(rebuilt, ["7"], tmp_path)
    write_file(path, "id,a\n7,1\n")
    with pytest.raises(InputError, match="1 numbers per movie, but the model was trained on 3"):
        open_ids(rebuilt, ["7"], tmp_path)


def test_relative_path_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_file(tmp_path / "v.csv", CSV)
    monkeypatch.chdir(tmp_path)
    branch_input = VectorsInput("v.csv")
    monkeypatch.chdir("/")
    open_ids(branch_input, ["7"], tmp_path)
    assert branch_input.state()["path"] == str(tmp_path / "v.csv")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "path"),
        ({"path": ""}, "path"),
        ({"path": 7}, "path"),
        ({"path": 'a"b.csv'}, "path"),
        ({"path": "a\\b.csv"}, "path"),
        ({"path": "a\nb.csv"}, "path"),
        ({"path": "~no_such_user/v.csv"}, "path"),
        ({"path": "x" * 10**5}, "path"),
        ({"path": "v.csv", "log_odds": "yes"}, "log_odds"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_invalid_arguments_are_refused_by_key(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=rf"model\.branches\.b\.input.*{message}") as caught:
        build_input("b", {"kind": "vectors", **settings})
    assert len(str(caught.value)) < 500


def test_path_that_a_checkpoint_can_not_hold_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / 'a "b"'
    folder.mkdir()
    monkeypatch.chdir(folder)
    with pytest.raises(ValueError, match="path"):
        VectorsInput("v.csv")


def test_log_odds_of_a_new_movie_equal_those_of_the_file(tmp_path: Path) -> None:
    p = np.array([[0.25, 1.0, 0.5], [0.0, 0.1, 0.9]])
    path = save(tmp_path / "v.npz", ids=IDS["strings"][:2], x=p)
    branch_input = VectorsInput(str(path), log_odds=True)
    dense, _ = open_ids(branch_input, ["7", "x"], tmp_path)
    np.testing.assert_array_equal(branch_input.read(p[0]), dense[0])
    with pytest.raises(InputError, match=r"probabilities in 0\.\.1"):
        branch_input.read([0.5, 1.5, 0.1])


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ([0.5], TypeError),
        ([[0.5, 0.5]], TypeError),
        ([0.5, [0.5, 0.5]], TypeError),
        ("ab", TypeError),
        (None, TypeError),
        ([0.5, float("nan")], InputError),
        ([0.5, 1e300], InputError),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("error")
def test_values_that_are_not_vectors_are_refused(value: Any, error: type[Exception]) -> None:
    branch_input = VectorsInput("/vectors.npz")
    branch_input.width = 2
    with pytest.raises(error, match=r"not a vector of 2 numbers|not finite"):
        branch_input.read(value)


def test_brackets_in_a_path_are_limited(tmp_path: Path) -> None:
    folder = tmp_path / "show=[title,poster]"
    folder.mkdir()
    branch_input = VectorsInput(str(save(folder / "v.npz", ids=IDS["strings"], x=X)))
    open_ids(branch_input, ["7"], tmp_path)
    assert state_to_text(input_from_text(state_to_text(branch_input))) == state_to_text(
        branch_input
    )
    with pytest.raises(ValueError, match="brackets"):
        VectorsInput(str(tmp_path / ("[" * 9)))
