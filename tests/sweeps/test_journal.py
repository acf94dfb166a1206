"""The journal of a sweep's jobs, and its lines in the terminal."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from genre_lightning.files import FullDiskError
from genre_lightning.sweeps.journal import Journal, event_line
from tests.disks import small_disk


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (
            {"status": "completed", "monitor": "val/map_macro", "monitor_value": 0.2761,
             "seconds": 63.7, "resumed": None},
            "[3/9] seed=1  val/map_macro 0.2761  64 s",
        ),
        (
            {"status": "completed", "monitor": "m", "monitor_value": 1, "seconds": 1, "resumed": 3},
            "[3/9] seed=1  m 1.0000  1 s  (resumed after 3 epochs)",
        ),
        (
            {"status": "already finished", "monitor": "m", "monitor_value": 0.5},
            "[3/9] seed=1  already finished  m 0.5000",
        ),
        (
            {"status": "already finished", "changed": "trainer.max_epochs=7", "monitor": "m",
             "monitor_value": 0.5},
            "[3/9] seed=1  already finished  with trainer.max_epochs=7  m 0.5000",
        ),
        ({"status": "failed", "error": "E: a\n b"}, "[3/9] seed=1  failed: E: a b"),
        ({"status": "interrupted"}, "[3/9] seed=1  interrupted"),
    ],
    ids=lambda value: value["status"] if isinstance(value, dict) else "",
)  # fmt: skip
def test_the_line_of_a_job(event: dict[str, Any], text: str) -> None:
    assert event_line({"job": "seed=1", **event}, 3, 9) == text


def test_an_incomplete_line_is_not_read(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    assert journal.read() == []
    journal.write("failed", job="a")
    with journal.path.open("a") as file:
        file.write('{"status": "comp')
    assert [event["status"] for event in journal.read()] == ["failed"]
    assert journal.is_stopped(fail_fast=True) and not journal.is_stopped(fail_fast=False)


def test_a_line_cut_by_a_full_disk_affects_no_other(tmp_path: Path) -> None:
    page = os.sysconf("SC_PAGE_SIZE")
    with small_disk(tmp_path / "disk", page) as disk:
        journal = Journal(disk.folder)
        with pytest.raises(FullDiskError, match=r"jobs\.jsonl could not be written"):
            for number in range(page):
                journal.write("completed", job=number)
        content = journal.path.read_bytes()
        assert len(content) == page and not content.endswith(b"\n")
        events = journal.read()
        assert [event["job"] for event in events] == list(range(len(events))) and len(events) > 50
        disk.change(f"size={2 * page}")
        journal.write("failed", job="after")
        assert [event["job"] for event in journal.read()] == [*range(len(events)), "after"]
