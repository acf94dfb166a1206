"""jobs.jsonl: events of a sweep's jobs, for the other jobs and the terminal."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from genre_lightning.comparison.text import format_value
from genre_lightning.files import AppendedText
from genre_lightning.runs.naming import format_overrides, read_command
from genre_lightning.wording import counted

#: Status of a job with the same values as another job of the command, which trains instead.
SAME_JOB = "same as another job"


class Journal:
    """The events of one command's jobs, a line of JSON each.

    Args:
        sweep: the sweep's folder.
    """

    def __init__(self, sweep: Path) -> None:
        self.path = sweep / "jobs.jsonl"

    def write(self, status: str, **event: Any) -> None:
        """Append an event.

        Raises:
            FullDiskError: the disk is full.
        """
        line = json.dumps({"status": status, **event}) + "\n"
        with AppendedText(self.path) as file:
            file.write("\n" * self._is_torn() + line)

    def _is_torn(self) -> bool:
        """Whether the last line is incomplete, because the disk was full."""
        with self.path.open("rb") as file:
            if not file.seek(0, os.SEEK_END):
                return False
            file.seek(-1, os.SEEK_END)
            return file.read() != b"\n"

    def read(self) -> list[dict[str, Any]]:
        """Return all events, except incomplete lines."""
        text = self.path.read_text("utf-8") if self.path.exists() else ""
        events = []
        for line in text.splitlines(True):
            if line.endswith("}\n"):
                with suppress(json.JSONDecodeError):
                    events.append(json.loads(line))
        return events

    def is_stopped(self, fail_fast: bool) -> bool:
        """Whether no further job may start."""
        reasons = {"stopping", "failed"} if fail_fast else {"stopping"}
        return any(event["status"] in reasons for event in self.read())


def job_label(overrides: Sequence[str], sweep: Path) -> str:
    """Return a job's name in the terminal: its overrides of the swept keys."""
    return format_overrides(overrides, read_command(sweep)["keys"]) or "defaults"


def event_line(event: Mapping[str, Any], number: int, total: int) -> str:
    """Return the terminal's line for a job that has ended."""
    parts = [f"[{number}/{total}] {event['job']}"]
    if event.get("pruned"):
        parts.append("pruned")
    if event["status"] not in ("completed", "failed"):
        parts.append(event["status"])
    if event.get("changed"):
        parts.append(f"with {event['changed']}")
    if event["status"] == "failed":
        parts.append(f"failed: {' '.join(event['error'].split())}")
    if event.get("monitor_value") is not None:
        parts.append(f"{event['monitor']} {format_value(event['monitor_value'])}")
    if "seconds" in event:
        parts.append(f"{event['seconds']:.0f} s")
    if event.get("resumed") is not None:
        parts.append(f"(resumed after {counted(event['resumed'], 'epoch')})")
    return "  ".join(parts)
