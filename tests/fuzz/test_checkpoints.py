"""Damaged checkpoints give the saved weights, or are refused with the name of the file."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import pytest
import torch

from genre_lightning.checkpoint import archive as archive_module
from genre_lightning.checkpoint.archive import MAX_STEPS
from genre_lightning.checkpoint.card import CHECKPOINT_KEY, CheckpointError, read_checkpoint
from genre_lightning.inputs.input import Input
from genre_lightning.inputs.table import input_from_text
from tests.fuzz.hostile import PICKLES, zip_of
from tests.fuzz.mutations import mutated, seeds
from tests.memory import little_memory


def entries(checkpoint: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(checkpoint) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def refusal(path: Path, mmap: bool = True) -> str | None:
    """The message with which a file is refused, or None."""
    try:
        with little_memory():
            read_checkpoint(path, mmap=mmap)
    except CheckpointError as error:
        assert str(path) in str(error) and "\n" not in str(error) and len(str(error)) < 1000
        return str(error)
    return None


def test_damaged_weights_are_never_loaded(tiny_checkpoint: Path, tmp_path: Path) -> None:
    data = tiny_checkpoint.read_bytes()
    original = read_checkpoint(tiny_checkpoint)["state_dict"]
    path = tmp_path / "damaged.ckpt"
    refused = 0
    for seed in seeds(120):
        path.write_bytes(mutated(data, seed))
        if refusal(path) is not None:
            refused += 1
            continue
        actual = read_checkpoint(path)["state_dict"]
        assert actual.keys() == original.keys(), f"seed {seed}"
        assert all(torch.equal(actual[name], original[name]) for name in original), f"seed {seed}"
    assert refused > 100


def test_damaged_pickle_with_a_valid_checksum(tiny_checkpoint: Path, tmp_path: Path) -> None:
    files = entries(tiny_checkpoint)
    name = next(name for name in files if name.endswith("data.pkl"))
    path = tmp_path / "forged.ckpt"
    for seed in seeds(120):
        path.write_bytes(zip_of({**files, name: mutated(files[name], seed)}, zipfile.ZIP_STORED))
        refusal(path)


@pytest.mark.parametrize("name", PICKLES)
def test_huge_pickle_is_refused_after_a_limited_number_of_steps(
    name: str, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = entries(tiny_checkpoint)
    pickled = next(name for name in files if name.endswith("data.pkl"))
    path = tmp_path / "deep.ckpt"
    path.write_bytes(zip_of({**files, pickled: PICKLES[name](1_000_000)}, zipfile.ZIP_STORED))
    steps = checks = 0
    genops, check = archive_module.pickletools.genops, archive_module._PlainCheck.check

    def counted_genops(data):
        nonlocal steps
        for step in genops(data):
            steps += 1
            yield step

    def counted_check(*arguments):
        nonlocal checks
        checks += 1
        return check(*arguments)

    monkeypatch.setattr(archive_module.pickletools, "genops", counted_genops)
    monkeypatch.setattr(archive_module._PlainCheck, "check", counted_check)
    assert refusal(path) is not None
    assert steps <= MAX_STEPS + 2 and checks <= MAX_STEPS + 2


def test_damaged_input_state_is_refused_or_gives_an_input(tiny_checkpoint: Path) -> None:
    card = read_checkpoint(tiny_checkpoint)[CHECKPOINT_KEY]
    texts = list(card["inputs"].values())
    texts.append(json.dumps({"kind": "year", "column": "title", "center": 1990.0, "scale": 10.0}))
    texts.append(
        json.dumps({"kind": "vectors", "column": "id", "path": "/v.npz", "log_odds": True})
    )
    for text in texts:
        for seed in seeds(60):
            damaged = mutated(text.encode(), seed).decode("utf-8", "replace")
            try:
                branch_input = input_from_text(damaged)
            except ValueError as error:
                assert len(str(error)) < 1000, f"seed {seed}"
            else:
                assert isinstance(branch_input, Input), f"seed {seed}"


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.ckpt"
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(3)}, buffer)
    for data in (
        b"",
        b"PK",
        b"\x80\x02.",
        zip_of({"a/b": b""}, zipfile.ZIP_STORED),
        buffer.getvalue(),
    ):
        path.write_bytes(data)
        assert refusal(path) is not None
