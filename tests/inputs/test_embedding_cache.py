"""Embeddings are computed once, and a cache folder is complete or absent."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genre_lightning.inputs import embedding_cache
from genre_lightning.inputs.embedding_cache import Embeddings, open_embeddings
from genre_lightning.inputs.input import Store
from genre_lightning.store import CacheError
from tests.inputs.fake_encoder import WIDTH, Counted, plain_loop

KEY = "0123456789abcdef" * 2
#: Items embedded together in these tests.
CHUNK = 4


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding_cache, "DEFAULT_CHUNK_SIZE", CHUNK)


def names(count: int, first: int = 0) -> list[bytes]:
    return [f"item {n}".encode() for n in range(first, first + count)]


def store(folder: Path) -> Store:
    return Store(folder / "cache", workers=1, progress=False)


def opened(items: Counted, folder: Path, key: str = KEY) -> Embeddings:
    return open_embeddings(items.source(), key, (items.views, WIDTH), "embedding", store(folder))


def check(items: Counted, folder: Path, key: str = KEY) -> Embeddings:
    """Open, and compare with the plain loop."""
    embeddings = opened(items, folder, key)
    readable = [content for content in items.contents if content not in items.unreadable]
    assert embeddings.vectors.dtype == np.float16
    np.testing.assert_array_equal(embeddings.vectors, plain_loop(readable, items.views))
    return embeddings


def folders(folder: Path) -> list[Path]:
    """The complete cache folders, checked to have only their empty lock files beside them."""
    paths = sorted((folder / "cache").glob("[!.]*"))
    hidden = {path.name for path in (folder / "cache").glob(".*")}
    assert hidden <= {f".{path.name}.lock" for path in paths}
    assert not any((folder / "cache" / name).stat().st_size for name in hidden)
    return paths


@pytest.mark.parametrize("views", [1, 3])
@pytest.mark.parametrize("count", [0, 1, CHUNK, CHUNK + 1, 3 * CHUNK + 2])
def test_rows_are_those_of_a_plain_loop(count: int, views: int, tmp_path: Path) -> None:
    items = Counted(names(count), views)
    embeddings = check(items, tmp_path)
    assert embeddings.vectors.shape == (count, views, WIDTH) and embeddings.masked == []
    assert items.embedded == items.contents
    again = Counted(names(count), views)
    check(again, tmp_path)
    assert again.embedded == [] and len(folders(tmp_path)) == 1


def test_another_dataset_of_the_same_content_embeds_nothing(tmp_path: Path) -> None:
    check(Counted(names(10)), tmp_path)
    other = Counted([*names(3, 7), *names(4)])
    check(other, tmp_path)
    assert other.embedded == [] and len(folders(tmp_path)) == 2


def test_only_new_items_are_embedded(tmp_path: Path) -> None:
    check(Counted(names(9)), tmp_path)
    more = Counted([*names(2, 20), *names(9), *names(7, 30)])
    check(more, tmp_path)
    assert sorted(more.embedded) == sorted([*names(2, 20), *names(7, 30)])
    folders(tmp_path)


def test_other_encoders_are_kept_apart(tmp_path: Path) -> None:
    check(Counted(names(5)), tmp_path)
    other = Counted(names(5))
    check(other, tmp_path, "f" * 32)
    assert other.embedded == names(5)


def test_same_content_is_embedded_once(tmp_path: Path) -> None:
    # Repetitions within a chunk and across chunks.
    items = Counted([b"a", b"b", b"a", b"a", b"c", b"b", b"a", b"d", b"d", b"a"])
    check(items, tmp_path)
    assert items.embedded == [b"a", b"b", b"c", b"d"]
    folders(tmp_path)


def test_unreadable_items_are_masked_and_named(tmp_path: Path) -> None:
    # Three copies of a broken item among readable ones, and another broken one in a later chunk.
    items = Counted([b"a", b"bad", b"b", b"bad", b"c", b"bad", b"d", b"worse", b"e"])
    items.unreadable = {b"bad": False, b"worse": False}
    embeddings = check(items, tmp_path)
    assert [index for index, _, _ in embeddings.masked] == [1, 3, 5, 7]
    assert {reason for _, reason, _ in embeddings.masked} == {"bad is broken", "worse is broken"}
    again = Counted(items.contents)
    again.unreadable = items.unreadable
    assert check(again, tmp_path).masked == embeddings.masked and again.embedded == []


def test_items_that_become_readable_are_embedded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    items = Counted(names(6))
    items.unreadable = {b"item 2": True}
    assert check(items, tmp_path).masked == [(2, "item 2 is broken", True)]
    items.embedded = []
    assert check(items, tmp_path).masked == [(2, "item 2 is broken", True)]
    assert items.embedded == []
    items.unreadable = {}
    assert check(items, tmp_path).masked == []
    assert items.embedded == [b"item 2"] and "can be read now" in caplog.text
    folders(tmp_path)


def test_unhashed_items_have_their_own_rows(tmp_path: Path) -> None:
    items = Counted(names(11))
    items.unhashed = {b"item 1", b"item 2", b"item 9"}
    check(items, tmp_path)
    # Items without a hash can't be looked up later, and are not confused with each other.
    other = Counted([b"item 3", b"item 2", b"item 1", b"item 9", b"item 0"])
    check(other, tmp_path)
    assert sorted(other.embedded) == [b"item 1", b"item 2", b"item 9"]


@pytest.mark.parametrize("unreadable", ["first", "last"])
def test_an_unhashed_item_beside_an_unreadable_one(unreadable: str, tmp_path: Path) -> None:
    items = Counted(names(4))
    items.unhashed = {b"item 1"}
    items.unreadable = {b"item 0" if unreadable == "first" else b"item 3": True}
    assert len(check(items, tmp_path).masked) == 1


# Killed processes, and concurrent ones.


def _build(folder: Path, count: int, kill_in: int | None, log: Path, wait: float = 0.0) -> None:
    embedding_cache.DEFAULT_CHUNK_SIZE = CHUNK
    items = Counted(names(count))
    calls = 0

    def before() -> None:
        nonlocal calls
        calls += 1
        time.sleep(wait)
        if calls == kill_in:
            os.kill(os.getpid(), signal.SIGKILL)

    items.before = before
    embeddings = opened(items, folder)
    np.testing.assert_array_equal(embeddings.vectors, plain_loop(items.contents))
    log.write_text(str(len(items.embedded)))


def start(*arguments: Any) -> multiprocessing.Process:
    process = multiprocessing.get_context("fork").Process(target=_build, args=arguments)
    process.start()
    return process  # type: ignore[return-value]


@pytest.mark.parametrize("kill_in", [1, 3, 5])
def test_a_killed_build_is_continued(kill_in: int, tmp_path: Path) -> None:
    process = start(tmp_path, 4 * CHUNK + 1, kill_in, tmp_path / "log")
    process.join()
    assert process.exitcode == -signal.SIGKILL
    done = CHUNK * (kill_in - 1)
    items = Counted(names(4 * CHUNK + 1))
    check(items, tmp_path)
    assert items.embedded == names(4 * CHUNK + 1 - done, done)
    (whole,) = folders(tmp_path)
    assert "_part-" not in whole.name


def test_parts_of_another_dataset_stay(tmp_path: Path) -> None:
    process = start(tmp_path, 4 * CHUNK, 4, tmp_path / "log")
    process.join()
    parts = set((tmp_path / "cache").glob("embeddings*_part-*"))
    assert len(parts) == 3
    # A smaller dataset is embedded, then opened from its cache.
    for _ in range(2):
        check(Counted(names(3 * CHUNK, 100)), tmp_path)
        assert set((tmp_path / "cache").glob("embeddings*_part-*")) == parts
    items = Counted(names(4 * CHUNK))
    check(items, tmp_path)
    assert items.embedded == names(CHUNK, 3 * CHUNK)
    assert len(folders(tmp_path)) == 2


def test_a_damaged_part_is_embedded_again(tmp_path: Path) -> None:
    process = start(tmp_path, 3 * CHUNK, 3, tmp_path / "log")
    process.join()
    first, second = sorted((tmp_path / "cache").glob("embeddings*_part-*"))
    flip(first / "vectors.f16")
    (second / "hashes.b16").write_bytes(b"")
    items = Counted(names(3 * CHUNK))
    check(items, tmp_path)
    assert items.embedded == names(3 * CHUNK)
    assert len(folders(tmp_path)) == 1


def test_two_processes_at_once(tmp_path: Path) -> None:
    count = 3 * CHUNK
    logs = [tmp_path / "log 0", tmp_path / "log 1"]
    processes = [start(tmp_path, count, None, log, 0.1) for log in logs]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert sorted(int(log.read_text()) for log in logs) == [0, count]
    assert len(folders(tmp_path)) == 1


def test_two_datasets_of_one_encoder_at_once(tmp_path: Path) -> None:
    # One process ends while the other still works, and removes only its own parts.
    logs = [tmp_path / "log 0", tmp_path / "log 1"]
    long = start(tmp_path, 6 * CHUNK, None, logs[0], 0.1)
    short = start(tmp_path, 2 * CHUNK, None, logs[1], 0.05)
    for process in (long, short):
        process.join()
        assert process.exitcode == 0
    assert len(folders(tmp_path)) == 2


def test_an_error_while_embedding_leaves_no_cache(tmp_path: Path) -> None:
    items = Counted(names(3 * CHUNK))
    calls = iter([None, None, ValueError("no number")])

    def before() -> None:
        if (error := next(calls)) is not None:
            raise error

    items.before = before
    with pytest.raises(ValueError, match="no number"):
        opened(items, tmp_path)
    assert all("_part-" in path.name for path in (tmp_path / "cache").glob("[!.]*"))
    again = Counted(items.contents)
    check(again, tmp_path)
    assert again.embedded == names(CHUNK, 2 * CHUNK)
    assert len(folders(tmp_path)) == 1


# Damage.


def flip(path: Path, offset: int = 3) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


def write_meta(**changes: Any) -> Any:
    def change(folder: Path) -> None:
        meta = json.loads((folder / "meta.json").read_text())
        (folder / "meta.json").write_text(json.dumps({**meta, **changes}))

    return change


DAMAGE = {
    "flipped byte": lambda folder: flip(folder / "vectors.f16"),
    "truncated": lambda folder: shorten(folder / "vectors.f16"),
    "longer": lambda folder: (folder / "vectors.f16").open("ab").write(b"\0\0"),
    "no vectors": lambda folder: (folder / "vectors.f16").unlink(),
    "no meta": lambda folder: (folder / "meta.json").unlink(),
    "empty meta": lambda folder: (folder / "meta.json").write_bytes(b""),
    "binary meta": lambda folder: (folder / "meta.json").write_bytes(b"\xff\x00"),
    "a list for meta": lambda folder: (folder / "meta.json").write_text("[]"),
    "fewer": write_meta(count=5),
    "other shape": write_meta(shape=[WIDTH, 1]),
    "masked that there is not": write_meta(count=5, masked=[[99, "x", True]]),
    "masked that are none": write_meta(masked=[7]),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_detected_and_repaired(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    items = Counted(names(6))
    opened(items, tmp_path)
    (folder,) = folders(tmp_path)
    DAMAGE[damage](folder)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        check(items, tmp_path)
    assert "rebuilding" in caplog.text
    assert folders(tmp_path) == [folder]
    caplog.clear()
    check(items, tmp_path)
    assert caplog.text == ""


@pytest.mark.parametrize("content", [None, b"", b"x" * 95], ids=["gone", "empty", "too short"])
def test_a_cache_without_hashes_serves_only_its_own_dataset(
    content: bytes | None, tmp_path: Path
) -> None:
    items = Counted(names(6))
    opened(items, tmp_path)
    (folder,) = folders(tmp_path)
    (folder / "hashes.b16").unlink()
    if content is not None:
        (folder / "hashes.b16").write_bytes(content)
    other = Counted(names(7))
    check(other, tmp_path)
    assert other.embedded == names(7)
    items.embedded = []
    check(items, tmp_path)
    assert items.embedded == []


# A disk that can't be written.


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no disk of our own: mounting is not allowed here")
    yield disk
    # Memory-mapped arrays keep the disk busy until they are deleted.
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_full_disk_is_reported_and_leaves_no_partial_cache(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding_cache, "DEFAULT_CHUNK_SIZE", 1024)
    with pytest.raises(CacheError, match="No space left"):
        opened(Counted(names(20_000)), small_disk)
    whole = [path for path in (small_disk / "cache").glob("[!.]*") if "_part-" not in path.name]
    assert whole == [] and not list((small_disk / "cache").glob("*.tmp-*"))


def test_a_cache_on_a_disk_that_is_read_only(small_disk: Path) -> None:
    items = Counted(names(9))
    opened(items, small_disk)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    items.embedded = []
    check(items, small_disk)
    assert items.embedded == []
    with pytest.raises(CacheError, match="cannot write"):
        opened(Counted(names(10)), small_disk)


def test_files_of_a_cache_are_not_written_to(tmp_path: Path) -> None:
    items = Counted(names(9))
    opened(items, tmp_path)
    (folder,) = folders(tmp_path)
    for path in folder.iterdir():
        path.chmod(stat.S_IREAD)
    embeddings = check(items, tmp_path)
    assert not embeddings.vectors.flags.writeable
