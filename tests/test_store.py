from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from genre_lightning.errors import UserError
from genre_lightning.store import (
    CacheError,
    content_key,
    find_changed_file,
    save_array,
    stored_folder,
)

KEY = "0123456789abcdef"


def write(text):
    def build(folder: Path) -> None:
        (folder / "file").write_text(text)

    return build


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.endswith(".lock")}


def test_builds_once_and_then_reuses(tmp_path):
    first = stored_folder(tmp_path / "new" / "cache", "thing", KEY, write("one"))
    second = stored_folder(tmp_path / "new" / "cache", "thing", KEY, write("two"))
    assert first == second == tmp_path / "new" / "cache" / f"thing-{KEY}"
    assert (second / "file").read_text() == "one"
    assert names(first.parent) == {first.name}


def test_each_name_and_key_has_its_own_folder(tmp_path):
    folders = {
        stored_folder(tmp_path, name, key, write(name + key))
        for name in ("a", "b")
        for key in (KEY, KEY[::-1])
    }
    assert len(folders) == 4


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), FileNotFoundError("x")])
def test_failed_build_leaves_nothing_and_raises_its_own_error(tmp_path, error):
    def build(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise error

    with pytest.raises(type(error)) as caught:
        stored_folder(tmp_path, "thing", KEY, build)
    assert caught.value is error
    assert names(tmp_path) == set()
    assert (stored_folder(tmp_path, "thing", KEY, write("whole")) / "file").exists()


def test_full_disk_is_a_clear_error(tmp_path):
    def build(folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(CacheError, match=r"No space left") as caught:
        stored_folder(tmp_path, "thing", KEY, build)
    assert str(tmp_path) in str(caught.value) and isinstance(caught.value, UserError)
    assert names(tmp_path) == set()


def test_unwritable_cache_folder_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match=r"cannot write the cache folder .*file") as caught:
        stored_folder(tmp_path / "file" / "cache", "thing", KEY, write("one"))
    assert "cache_dir" in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write")
def test_read_only_cache_is_read_but_not_written(tmp_path):
    stored_folder(tmp_path, "thing", KEY, write("one"))
    tmp_path.chmod(0o555)
    try:
        assert (stored_folder(tmp_path, "thing", KEY, write("two")) / "file").read_text() == "one"
        with pytest.raises(CacheError, match=r"[Pp]ermission"):
            stored_folder(tmp_path, "thing", KEY[::-1], write("two"))
    finally:
        tmp_path.chmod(0o755)


def test_damaged_folder_is_rebuilt_with_a_warning(tmp_path, caplog):
    def check(folder: Path) -> str | None:
        return None if (folder / "file").read_text() == "good" else "the file is bad"

    stored_folder(tmp_path, "thing", KEY, write("bad"))
    with caplog.at_level(logging.WARNING):
        folder = stored_folder(tmp_path, "thing", KEY, write("good"), check)
    assert (folder / "file").read_text() == "good"
    assert "the file is bad" in caplog.text and str(folder) in caplog.text
    assert names(tmp_path) == {folder.name}


@pytest.mark.parametrize("damage", ["flipped", "shorter", "gone", "sums"])
def test_changed_file_causes_a_rebuild(tmp_path, caplog, damage):
    folder = stored_folder(tmp_path, "thing", KEY, write("good"))
    file = folder / "file"
    if damage == "flipped":
        file.write_text("gooe")
    elif damage == "shorter":
        file.write_text("goo")
    elif damage == "gone":
        file.unlink()
    else:
        (folder / "checksums.json").write_text("[]")
    assert find_changed_file(folder)
    with caplog.at_level(logging.WARNING):
        again = stored_folder(tmp_path, "thing", KEY, write("good"))
    assert again == folder and file.read_text() == "good" and find_changed_file(folder) is None
    named = "checksums.json" if damage == "sums" else "file"
    assert f"rebuilding {folder}: {named} " in caplog.text


def test_folder_of_an_earlier_version_gets_its_checksums(tmp_path):
    folder = stored_folder(tmp_path, "thing", KEY, write("good"))
    (folder / "checksums.json").unlink()
    assert stored_folder(tmp_path, "thing", KEY, write("other")) == folder
    (folder / "file").write_text("gooe")
    assert find_changed_file(folder) == "file has changed since it was written"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_saving_an_array_to_a_full_disk_raises_oserror(tmp_path):
    array = np.arange(100_000)
    save_array(tmp_path / "a.npy", array)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), array)
    (tmp_path / "full.npy").symlink_to("/dev/full")
    with pytest.raises(OSError) as caught:
        save_array(tmp_path / "full.npy", array)
    assert caught.value.errno == errno.ENOSPC

    def build(folder: Path) -> None:
        (folder / "full.npy").symlink_to("/dev/full")
        save_array(folder / "full.npy", array)

    with pytest.raises(CacheError, match="No space left"):
        stored_folder(tmp_path, "thing", KEY, build)


@pytest.mark.parametrize(("name", "key"), [("a/b", KEY), ("", KEY), ("a", "../x"), ("a", "")])
def test_a_name_cannot_leave_the_folder(tmp_path, name, key):
    with pytest.raises(ValueError, match="hex digits"):
        stored_folder(tmp_path, name, key, write("one"))


def test_threads_build_once(tmp_path):
    builds = []

    def build(folder: Path) -> None:
        builds.append(1)
        time.sleep(0.05)
        (folder / "file").write_text("one")

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: stored_folder(tmp_path, "t", KEY, build), range(4)))
    assert len(builds) == 1 and len(set(results)) == 1


def start_builder(cache: Path, key: str, ready: Path, seconds: float) -> subprocess.Popen[bytes]:
    """Starts a process that touches ``ready`` halfway through its build, and sleeps."""
    program = f"""
import time
from pathlib import Path
from genre_lightning.store import stored_folder

def build(folder):
    (folder / "first").write_text("first")
    Path({str(ready)!r}).touch()
    time.sleep({seconds})
    (folder / "second").write_text("second")

stored_folder({str(cache)!r}, "thing", {key!r}, build)
"""
    process = subprocess.Popen([sys.executable, "-c", program])
    deadline = time.monotonic() + 60
    while not ready.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    return process


@pytest.mark.parametrize("same_key", [True, False], ids=["same key", "another key"])
def test_leftovers_of_a_killed_builder_are_removed(tmp_path, same_key):
    process = start_builder(tmp_path / "cache", KEY, tmp_path / "ready", 600)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert [name for name in names(tmp_path / "cache") if ".tmp-" in name]
    assert not (tmp_path / "cache" / f"thing-{KEY}").exists()
    key = KEY if same_key else KEY[::-1]
    folder = stored_folder(tmp_path / "cache", "thing", key, write("one"))
    assert names(tmp_path / "cache") == {folder.name}
    assert names(folder) == {"checksums.json", "file"}


def test_a_second_process_waits_for_the_first_and_reuses(tmp_path, caplog):
    process = start_builder(tmp_path / "cache", KEY, tmp_path / "ready", 0.5)

    def build(folder: Path) -> None:
        raise AssertionError("built twice")

    with caplog.at_level(logging.INFO):
        folder = stored_folder(tmp_path / "cache", "thing", KEY, build)
    assert process.wait() == 0
    assert names(folder) == {"checksums.json", "first", "second"}
    assert "waiting" in caplog.text


def test_running_builder_keeps_its_temporary_folder(tmp_path):
    process = start_builder(tmp_path / "cache", KEY, tmp_path / "ready", 0.5)
    stored_folder(tmp_path / "cache", "thing", KEY[::-1], write("one"))
    assert process.wait() == 0
    assert names(tmp_path / "cache" / f"thing-{KEY}") == {"checksums.json", "first", "second"}


PARTS = {
    "nothing": (),
    "None": (None,),
    "int": (1,),
    "float": (1.0,),
    "bool": (True,),
    "str": ("1",),
    "bytes": (b"1",),
    "path": (Path("1"),),
    "two": (1, 1),
    "nested": ([1, 1],),
    "nested apart": ([1], [1]),
    "joined": ("ab", "c"),
    "joined elsewhere": ("a", "bc"),
    "dict": ({"a": 1},),
    "dict of another": ({"b": 1},),
    "int array": (np.array([1, 2]),),
    "float array": (np.array([1.0, 2.0]),),
    "reshaped array": (np.array([[1, 2]]),),
    "list as that array": ([1, 2],),
    "broken file name": ("\udcff",),
    "-0.0": (-0.0,),
    "0.0": (0.0,),
}


def test_different_content_has_different_keys():
    keys = {content_key(*parts) for parts in PARTS.values()}
    assert len(keys) == len(PARTS)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ((1, 2), [1, 2]),
        (np.float32(0.5), 0.5),
        (np.arange(6).reshape(2, 3).T, np.ascontiguousarray(np.arange(6).reshape(2, 3).T)),
    ],
    ids=["order of a dict", "tuple and list", "numpy number", "strides"],
)
def test_equal_content_has_equal_keys(left, right):
    assert content_key(left) == content_key(right)


def test_a_key_is_the_same_in_another_process():
    value = ("x", 1, 2.5, {"b": [None, True], "a": b"\0"})
    program = f"from genre_lightning.store import content_key; print(content_key(*{value!r}))"
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    output = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert output.stdout.strip() == content_key(*value)


@pytest.mark.parametrize(
    "part", [object(), {1, 2}, np.array([object()])], ids=["object", "set", "array of objects"]
)
def test_object_without_stable_content_is_refused(part):
    with pytest.raises(TypeError, match="plain data"):
        content_key(part)
