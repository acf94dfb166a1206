"""Writing a checkpoint: a disk that fills up at any point, other errors, and signals."""

from __future__ import annotations

import io
import os
import pickle
from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from genre_lightning.checkpoint.archive import ArchiveError, check_archive
from genre_lightning.checkpoint.writing import check_plain, write_checkpoint
from genre_lightning.errors import TrainingError
from genre_lightning.files import FullDiskError
from tests.disks import small_disk

PAGE = os.sysconf("SC_PAGE_SIZE")


def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    # Tensors smaller and larger than a page, and larger than a write buffer.
    content = {
        "state_dict": {
            f"{name}": torch.randn(size, generator=generator)
            for name, size in enumerate((3, 700, 40_000, 9, 25_000, 1))
        },
        "plain": {"genres": ["Action"] * 100},
    }
    whole = tmp_path / "whole.ckpt"
    write_checkpoint(content, whole)
    before = b"the one before"
    pages = -(-whole.stat().st_size // PAGE)
    with small_disk(tmp_path / "disk", PAGE) as disk:
        path = disk.folder / "last.ckpt"
        path.write_bytes(before)
        for size in range(2, pages + 1):
            disk.change(f"size={size * PAGE}")
            with pytest.raises(FullDiskError) as caught:
                write_checkpoint(content, path)
            message = f"{path} could not be written: No space left on device ("
            assert str(caught.value).startswith(message), size
            assert path.read_bytes() == before and os.listdir(disk.folder) == [path.name]
        disk.change(f"size={(pages + 1) * PAGE}")
        write_checkpoint(content, path)
        assert torch.load(path, weights_only=True).keys() == content.keys()
        assert path.stat().st_size == whole.stat().st_size


def test_other_errors_are_raised_unchanged(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "file").touch()
        write_checkpoint({}, tmp_path / "folder")
    # PicklingError from Python 3.12 on.
    with pytest.raises((AttributeError, pickle.PicklingError), match=r"pickle|local object"):
        write_checkpoint({"function": lambda: None}, tmp_path / "file.ckpt")
    assert os.listdir(tmp_path) == ["folder"]


def test_an_exit_while_writing_is_not_reported_as_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = 0
    exit_at: int | None = None

    class ExitingFile(io.FileIO):
        def write(self, data: Any) -> int:
            nonlocal writes
            writes += 1
            if writes == exit_at:
                raise SystemExit(130)  # as a second Ctrl-C does
            return super().write(data)

    @contextmanager
    def open_exiting(path: Path, mode: str) -> Iterator[ExitingFile]:
        with ExitingFile(path, mode) as file:
            yield file

    monkeypatch.setattr("genre_lightning.checkpoint.writing.whole_file", open_exiting)
    content = {"state_dict": {"a": torch.ones(700), "b": torch.ones(40_000)}, "plain": ["Action"]}
    write_checkpoint(content, tmp_path / "whole.ckpt")
    for number in range(1, writes + 1):
        writes, exit_at = 0, number
        with pytest.raises(SystemExit):
            write_checkpoint(content, tmp_path / "file.ckpt")


@pytest.mark.parametrize(
    "value",
    [
        {"a": [1, 2.5, True, None, "x", (1, ())], 3: OrderedDict(b=torch.zeros(2))},
        np.float64(0.5),
        np.arange(3),
        {1, 2},
        Path("x"),
        defaultdict(int, a=1),
        {(1, 2): 3},
        torch.nn.Parameter(torch.zeros(2)),
        pickle.PickleError,
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_may_be_written_is_what_can_be_read(value: Any, tmp_path: Path) -> None:
    path = tmp_path / "file.ckpt"
    torch.save({"callbacks": [value]}, path)
    try:
        check_archive(path)
    except ArchiveError:
        with pytest.raises(TrainingError, match=r"^the checkpoint's callbacks.0 (is of|has a key)"):
            check_plain({"callbacks": [value]})
    else:
        check_plain({"callbacks": [value]})
