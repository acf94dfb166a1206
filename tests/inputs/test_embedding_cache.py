"""The embedding cache: each content is embedded once, and a cache is complete or absent."""

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
from tests.inputs.fake_encoder import WIDTH, FakeItems, expected_vectors

KEY = "0123456789abcdef" * 2
#: Items embedded together in these tests.
CHUNK = 4


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding_cache, "DEFAULT_CHUNK_SIZE", CHUNK)


def contents(count: int, first: int = 0) -> list[bytes]:
    return [f"item {n}".encode() for n in range(first, first + count)]


def store(folder: Path) -> Store:
    return Store(folder / "cache", workers=1, progress=False)


def open_cache(items: FakeItems, folder: Path, key: str = KEY) -> Embeddings:
    return open_embeddings(items.source(), key, (items.views, WIDTH), "embedding", store(folder))


def open_and_check(items: FakeItems, folder: Path, key: str = KEY) -> Embeddings:
    """Open the cache, and compare its vectors with the expected ones."""
    embeddings = open_cache(items, folder, key)
    readable = [content for content in items.contents if content not in items.unreadable]
    assert embeddings.vectors.dtype == np.float16
    np.testing.assert_array_equal(embeddings.vectors, expected_vectors(readable, items.views))
    return embeddings


def cache_folders(folder: Path) -> list[Path]:
    """The cache folders, after a check that beside them are only their empty lock files."""
    paths = sorted((folder / "cache").glob("[!.]*"))
    hidden = {path.name for path in (folder / "cache").glob(".*")}
    assert hidden <= {f".{path.name}.lock" for path in paths}
    assert not any((folder / "cache" / name).stat().st_size for name in hidden)
    return paths


@pytest.mark.parametrize("views", [1, 3])
@pytest.mark.parametrize("count", [0, 1, CHUNK, CHUNK + 1, 3 * CHUNK + 2])
def test_vectors_are_the_encoders_and_embedded_once(count: int, views: int, tmp_path: Path) -> None:
    items = FakeItems(contents(count), views)
    embeddings = open_and_check(items, tmp_path)
    assert embeddings.vectors.shape == (count, views, WIDTH) and embeddings.masked == []
    assert items.embedded == items.contents
    again = FakeItems(contents(count), views)
    open_and_check(again, tmp_path)
    assert again.embedded == [] and len(cache_folders(tmp_path)) == 1


def test_another_dataset_of_the_same_content_embeds_nothing(tmp_path: Path) -> None:
    open_and_check(FakeItems(contents(10)), tmp_path)
    other = FakeItems([*contents(3, 7), *contents(4)])
    open_and_check(other, tmp_path)
    assert other.embedded == [] and len(cache_folders(tmp_path)) == 2


def test_only_new_items_are_embedded(tmp_path: Path) -> None:
    open_and_check(FakeItems(contents(9)), tmp_path)
    more = FakeItems([*contents(2, 20), *contents(9), *contents(7, 30)])
    open_and_check(more, tmp_path)
    assert sorted(more.embedded) == sorted([*contents(2, 20), *contents(7, 30)])
    cache_folders(tmp_path)


def test_encoders_do_not_share_a_cache(tmp_path: Path) -> None:
    open_and_check(FakeItems(contents(5)), tmp_path)
    other = FakeItems(contents(5))
    open_and_check(other, tmp_path, "f" * 32)
    assert other.embedded == contents(5)


def test_same_content_is_embedded_once(tmp_path: Path) -> None:
    # Repetitions within a chunk and across chunks.
    items = FakeItems([b"a", b"b", b"a", b"a", b"c", b"b", b"a", b"d", b"d", b"a"])
    open_and_check(items, tmp_path)
    assert items.embedded == [b"a", b"b", b"c", b"d"]
    cache_folders(tmp_path)


def test_unreadable_items_are_masked_and_named(tmp_path: Path) -> None:
    # Three copies of a broken item among readable items, and another broken item in a later chunk.
    items = FakeItems([b"a", b"bad", b"b", b"bad", b"c", b"bad", b"d", b"worse", b"e"])
    items.unreadable = {b"bad": False, b"worse": False}
    embeddings = open_and_check(items, tmp_path)
    assert [index for index, _, _ in embeddings.masked] == [1, 3, 5, 7]
    assert {reason for _, reason, _ in embeddings.masked} == {"bad is broken", "worse is broken"}
    again = FakeItems(items.contents)
    again.unreadable = items.unreadable
    assert open_and_check(again, tmp_path).masked == embeddings.masked and again.embedded == []


def test_items_that_become_readable_are_embedded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    items = FakeItems(contents(6))
    items.unreadable = {b"item 2": True}
    assert open_and_check(items, tmp_path).masked == [(2, "item 2 is broken", True)]
    items.embedded = []
    assert open_and_check(items, tmp_path).masked == [(2, "item 2 is broken", True)]
    assert items.embedded == []
    items.unreadable = {}
    assert open_and_check(items, tmp_path).masked == []
    assert items.embedded == [b"item 2"] and "can be read now" in caplog.text
    cache_folders(tmp_path)


def test_unhashed_items_have_their_own_rows(tmp_path: Path) -> None:
    items = FakeItems(contents(11))
    items.unhashed = {b"item 1", b"item 2", b"item 9"}
    open_and_check(items, tmp_path)
    # Items without a hash can't be found in a cache, and are not confused with each other.
    other = FakeItems([b"item 3", b"item 2", b"item 1", b"item 9", b"item 0"])
    open_and_check(other, tmp_path)
    assert sorted(other.embedded) == [b"item 1", b"item 2", b"item 9"]


@pytest.mark.parametrize("unreadable", ["first", "last"])
def test_an_unhashed_item_beside_an_unreadable_one(unreadable: str, tmp_path: Path) -> None:
    items = FakeItems(contents(4))
    items.unhashed = {b"item 1"}
    items.unreadable = {b"item 0" if unreadable == "first" else b"item 3": True}
    assert len(open_and_check(items, tmp_path).masked) == 1


# Killed processes, and concurrent ones.


def _build(folder: Path, count: int, kill_at: int | None, log: Path, wait: float = 0.0) -> None:
    embedding_cache.DEFAULT_CHUNK_SIZE = CHUNK
    items = FakeItems(contents(count))
    calls = 0

    def before_embed() -> None:
        nonlocal calls
        calls += 1
        time.sleep(wait)
        if calls == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    items.before_embed = before_embed
    embeddings = open_cache(items, folder)
    np.testing.assert_array_equal(embeddings.vectors, expected_vectors(items.contents))
    log.write_text(str(len(items.embedded)))


def start_build(*arguments: Any) -> multiprocessing.Process:
    process = multiprocessing.get_context("fork").Process(target=_build, args=arguments)
    process.start()
    return process  # type: ignore[return-value]


@pytest.mark.parametrize("kill_at", [1, 3, 5])
def test_a_killed_build_is_continued(kill_at: int, tmp_path: Path) -> None:
    process = start_build(tmp_path, 4 * CHUNK + 1, kill_at, tmp_path / "log")
    process.join()
    assert process.exitcode == -signal.SIGKILL
    done = CHUNK * (kill_at - 1)
    items = FakeItems(contents(4 * CHUNK + 1))
    open_and_check(items, tmp_path)
    assert items.embedded == contents(4 * CHUNK + 1 - done, done)
    (whole,) = cache_folders(tmp_path)
    assert "_part-" not in whole.name


def test_parts_of_another_dataset_are_kept(tmp_path: Path) -> None:
    process = start_build(tmp_path, 4 * CHUNK, 4, tmp_path / "log")
    process.join()
    parts = set((tmp_path / "cache").glob("embeddings*_part-*"))
    assert len(parts) == 3
    # A smaller dataset is embedded, then opened from its cache.
    for _ in range(2):
        open_and_check(FakeItems(contents(3 * CHUNK, 100)), tmp_path)
        assert set((tmp_path / "cache").glob("embeddings*_part-*")) == parts
    items = FakeItems(contents(4 * CHUNK))
    open_and_check(items, tmp_path)
    assert items.embedded == contents(CHUNK, 3 * CHUNK)
    assert len(cache_folders(tmp_path)) == 2


def test_a_damaged_part_is_embedded_again(tmp_path: Path) -> None:
    process = start_build(tmp_path, 3 * CHUNK, 3, tmp_path / "log")
    process.join()
    first, second = sorted((tmp_path / "cache").glob("embeddings*_part-*"))
    flip_bit(first / "vectors.f16")
    (second / "hashes.b16").write_bytes(b"")
    items = FakeItems(contents(3 * CHUNK))
    open_and_check(items, tmp_path)
    assert items.embedded == contents(3 * CHUNK)
    assert len(cache_folders(tmp_path)) == 1


def test_two_processes_embed_a_dataset_once(tmp_path: Path) -> None:
    count = 3 * CHUNK
    logs = [tmp_path / "log 0", tmp_path / "log 1"]
    processes = [start_build(tmp_path, count, None, log, 0.1) for log in logs]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert sorted(int(log.read_text()) for log in logs) == [0, count]
    assert len(cache_folders(tmp_path)) == 1


def test_two_datasets_embedded_at_once_keep_their_own_parts(tmp_path: Path) -> None:
    # The short process ends while the long one still works, and removes only its own parts.
    logs = [tmp_path / "log 0", tmp_path / "log 1"]
    long = start_build(tmp_path, 6 * CHUNK, None, logs[0], 0.1)
    short = start_build(tmp_path, 2 * CHUNK, None, logs[1], 0.05)
    for process in (long, short):
        process.join()
        assert process.exitcode == 0
    assert len(cache_folders(tmp_path)) == 2


def test_an_error_while_embedding_leaves_no_cache(tmp_path: Path) -> None:
    items = FakeItems(contents(3 * CHUNK))
    calls = iter([None, None, ValueError("no number")])

    def before_embed() -> None:
        if (error := next(calls)) is not None:
            raise error

    items.before_embed = before_embed
    with pytest.raises(ValueError, match="no number"):
        open_cache(items, tmp_path)
    assert all("_part-" in path.name for path in (tmp_path / "cache").glob("[!.]*"))
    again = FakeItems(items.contents)
    open_and_check(again, tmp_path)
    assert again.embedded == contents(CHUNK, 2 * CHUNK)
    assert len(cache_folders(tmp_path)) == 1


# Damage.


def flip_bit(path: Path, offset: int = 3) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


def write_meta(**changes: Any) -> Any:
    def change(folder: Path) -> None:
        meta = json.loads((folder / "meta.json").read_text())
        (folder / "meta.json").write_text(json.dumps({**meta, **changes}))

    return change


DAMAGE = {
    "flipped byte": lambda folder: flip_bit(folder / "vectors.f16"),
    "truncated": lambda folder: truncate(folder / "vectors.f16"),
    "longer": lambda folder: (folder / "vectors.f16").open("ab").write(b"\0\0"),
    "no vectors": lambda folder: (folder / "vectors.f16").unlink(),
    "no meta": lambda folder: (folder / "meta.json").unlink(),
    "empty meta": lambda folder: (folder / "meta.json").write_bytes(b""),
    "binary meta": lambda folder: (folder / "meta.json").write_bytes(b"\xff\x00"),
    "a list for meta": lambda folder: (folder / "meta.json").write_text("[]"),
    "fewer rows": write_meta(count=5),
    "other shape": write_meta(shape=[WIDTH, 1]),
    "masked item out of range": write_meta(count=5, masked=[[99, "x", True]]),
    "invalid masked items": write_meta(masked=[7]),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_detected_and_repaired(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    items = FakeItems(contents(6))
    open_cache(items, tmp_path)
    (folder,) = cache_folders(tmp_path)
    DAMAGE[damage](folder)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        open_and_check(items, tmp_path)
    assert "rebuilding" in caplog.text
    assert cache_folders(tmp_path) == [folder]
    caplog.clear()
    open_and_check(items, tmp_path)
    assert caplog.text == ""


@pytest.mark.parametrize("content", [None, b"", b"x" * 95], ids=["gone", "empty", "too short"])
def test_a_cache_without_hashes_serves_only_its_own_dataset(
    content: bytes | None, tmp_path: Path
) -> None:
    items = FakeItems(contents(6))
    open_cache(items, tmp_path)
    (folder,) = cache_folders(tmp_path)
    (folder / "hashes.b16").unlink()
    if content is not None:
        (folder / "hashes.b16").write_bytes(content)
    other = FakeItems(contents(7))
    open_and_check(other, tmp_path)
    assert other.embedded == contents(7)
    items.embedded = []
    open_and_check(items, tmp_path)
    assert items.embedded == []


# A disk that can't be written.


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small disk is not allowed here")
    yield disk
    # Memory-mapped arrays keep the disk busy until they are deleted.
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_full_disk_is_reported_and_leaves_no_partial_cache(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding_cache, "DEFAULT_CHUNK_SIZE", 1024)
    with pytest.raises(CacheError, match="No space left"):
        open_cache(FakeItems(contents(20_000)), small_disk)
    whole = [path for path in (small_disk / "cache").glob("[!.]*") if "_part-" not in path.name]
    assert whole == [] and not list((small_disk / "cache").glob("*.tmp-*"))


def test_cache_on_a_read_only_disk_can_be_read(small_disk: Path) -> None:
    items = FakeItems(contents(9))
    open_cache(items, small_disk)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    items.embedded = []
    open_and_check(items, small_disk)
    assert items.embedded == []
    with pytest.raises(CacheError, match="cannot write"):
        open_cache(FakeItems(contents(10)), small_disk)


def test_files_of_a_cache_are_opened_read_only(tmp_path: Path) -> None:
    items = FakeItems(contents(9))
    open_cache(items, tmp_path)
    (folder,) = cache_folders(tmp_path)
    for path in folder.iterdir():
        path.chmod(stat.S_IREAD)
    embeddings = open_and_check(items, tmp_path)
    assert not embeddings.vectors.flags.writeable
