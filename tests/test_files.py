"""Files are complete or absent, even on a full disk or after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from genre_lightning.files import (
    AppendedText,
    FullDiskError,
    is_alive,
    remove_unfinished,
    whole_file,
)
from tests.disks import small_disk

PAGE = os.sysconf("SC_PAGE_SIZE")


def test_full_disk_keeps_the_previous_file(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 3 * PAGE) as disk:
        path = disk.folder / "file.csv"
        path.write_text("before")
        with pytest.raises(FullDiskError) as caught, whole_file(path) as file:
            file.write("x" * 4 * PAGE)
        message = str(caught.value)
        assert message.startswith(f"{path} could not be written: No space left on device (0 MiB")
        assert path.read_text() == "before" and os.listdir(disk.folder) == ["file.csv"]


def test_appended_text_continues_once_there_is_room(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", PAGE) as disk:
        path = disk.folder / "train.log"
        with pytest.raises(FullDiskError, match=f"{path} could not"), AppendedText(path) as file:
            for _ in range(PAGE):
                file.write("a line of what is printed\n")
        assert path.stat().st_size == PAGE
        disk.change(f"size={2 * PAGE}")
        with AppendedText(path) as file:
            print("there is room again: é \ud800", file=file)
        assert path.read_text("utf-8").endswith("there is room again: é \\ud800\n")


def test_unfinished_files_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    program = f"""
import sys, time
from pathlib import Path
from genre_lightning.files import whole_file

with whole_file(Path({str(tmp_path)!r}) / "result.json") as file:
    file.write("half")
    print("begun", flush=True)
    time.sleep(600)
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    kept = {".lock", ".hydra", ".env.local", f".result.json.{os.getpid()}", "result.json.1"}
    for name in kept:
        (tmp_path / name).touch()
    unfinished = f".result.json.{process.pid}"
    remove_unfinished(tmp_path)
    assert set(os.listdir(tmp_path)) == {*kept, unfinished}  # the process is still running
    process.send_signal(signal.SIGKILL)
    # The process has ended, but it is a zombie until this process reads its exit status.
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert is_alive(os.getpid())
    if sys.platform == "linux":
        assert not is_alive(process.pid)
    process.communicate()
    assert not is_alive(process.pid)
    remove_unfinished(tmp_path)
    assert set(os.listdir(tmp_path)) == kept


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="makes a link and a pipe")
def test_links_pipes_and_devices_are_written_through(tmp_path: Path) -> None:
    target, link, pipe = (tmp_path / name for name in ("target", "link", "pipe"))
    target.write_text("old")
    link.symlink_to("target")
    with whole_file(link) as file:
        file.write("new")
        assert target.read_text() == "old"
    assert link.is_symlink() and target.read_text() == "new"
    os.mkfifo(pipe)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    with whole_file(pipe, "wb") as file:
        file.write(b"through")
    reader.join(30)
    assert read == [b"through"] and pipe.is_fifo()
    with whole_file(Path(os.devnull)) as file:
        file.write("away")
    assert Path(os.devnull).is_char_device()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "pipe", "target"]
