"""answers.jsonl: complete lines, which survive any crash."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from genre_lightning.ask.answer_file import AnswerFile, Record
from genre_lightning.errors import UserError


def record(key: str, **more: object) -> Record:
    fields = {"id": key.upper(), "key": key, "scores": {"Drama": 0.25}, "why": "é \u2028 \n"}
    return Record(**{**fields, **more})  # type: ignore[arg-type]


def test_added_records_are_found_after_reopening(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    records = [record("a", poster="f", image="d"), record("b", prompt_tokens=3, seconds=1.5)]
    with AnswerFile(path) as answer_file:
        assert not path.exists() and answer_file.find("a") is None
        answer_file.add(records[:1])
        answer_file.add(records[1:])
        assert answer_file.find("a") == records[0] and answer_file.is_own("b")
    reopened = AnswerFile(path)
    assert [reopened.find(key) for key in "ab"] == records and reopened.images == {"f": "d"}
    assert path.read_text("utf-8").count("\n") == 2
    assert json.loads(path.read_text("utf-8").splitlines()[1])["prompt_tokens"] == 3


def test_failed_record_is_written_but_not_found(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with AnswerFile(path) as answer_file:
        answer_file.add([record("a", scores=None, failed="cut off")])
        assert "a" not in answer_file and "a" not in AnswerFile(path)
        assert json.loads(path.read_text())["failed"] == "cut off"
        answer_file.add([record("a")])
        assert "a" in AnswerFile(path)


def test_record_is_on_disk_before_add_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "answers.jsonl"
    synced: list[int] = []
    fsync = os.fsync

    def count_lines(file: int) -> None:
        fsync(file)
        synced.append(path.read_text().count("\n"))

    monkeypatch.setattr(os, "fsync", count_lines)
    with AnswerFile(path) as answer_file:
        for key in "abc":
            answer_file.add([record(key)])
    assert synced == [1, 2, 3]


@pytest.mark.parametrize("cut", [1, 20, -1])
def test_incomplete_last_line_is_skipped_and_terminated(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with AnswerFile(path) as answer_file:
        answer_file.add([record("a")])
        answer_file.add([record("b")])
    whole = path.read_bytes()
    start = whole.index(b"\n") + 1
    path.write_bytes(whole[: start + cut] if cut > 0 else whole[:cut])
    with AnswerFile(path) as answer_file:
        # With cut == -1 only the line break is missing, so record b is complete.
        assert answer_file.find("a") == record("a") and ("b" in answer_file) is (cut < 0)
        answer_file.add([record("c")])
    reopened = AnswerFile(path)
    assert reopened.find("a") == record("a") and reopened.find("c") == record("c")


def test_invalid_lines_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    good = json.dumps(vars(record("a")))
    bad = ["", "null", "[1]", '{"id": 3}', good.replace("0.25", "2"), good.replace('"A"', "7"), "é"]
    bad.append(good.replace("}}", '}, "more": 1}').replace('{"Drama": 0.25}', "[1]"))
    path.write_text("\n".join([*bad, good, ""]), "utf-8")
    answer_file = AnswerFile(path)
    assert len(answer_file) == 1 and answer_file.find("a") == record("a")


def test_answers_of_other_runs_are_found_but_not_own(tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    with AnswerFile(other) as answer_file:
        answer_file.add([record("a"), record("b")])
    with AnswerFile(tmp_path / "own.jsonl", [other, tmp_path / "gone.jsonl"]) as answer_file:
        assert answer_file.find("a") == record("a") and not answer_file.is_own("a")
        answer_file.add([record("a", why="mine")])
        assert answer_file.is_own("a") and answer_file.find("a") == record("a", why="mine")
    assert other.read_text().count("\n") == 2
    with AnswerFile(tmp_path / "third.jsonl", [other]) as answer_file:
        other.write_text(other.read_text().replace('"b"', '"c"'))
        assert answer_file.find("b") is None and answer_file.find("a") == record("a")


def test_full_disk_keeps_earlier_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "answers.jsonl"
    write = os.write

    def write_half(file: int, data: memoryview) -> int:
        if len(data) < 50:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, data[: len(data) // 2])

    with AnswerFile(path) as answer_file:
        answer_file.add([record("a")])
        before = path.read_bytes()
        monkeypatch.setattr(os, "write", write_half)
        with pytest.raises(UserError, match=r"answers.jsonl can't be written .No space left"):
            answer_file.add([record("b")])
    assert path.read_bytes() == before


def test_answer_file_with_keep_false_writes_nothing(tmp_path: Path) -> None:
    with AnswerFile(tmp_path / "answers.jsonl", keep=False) as answer_file:
        answer_file.add([record("a")])
    assert not any(tmp_path.iterdir())
