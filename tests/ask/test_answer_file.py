"""answers.jsonl: complete lines that are found again after any crash."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from genre_lightning.ask.answer_file import AnswerFile, Record
from genre_lightning.errors import UserError


def answer(key: str, **more: object) -> Record:
    fields = {"id": key.upper(), "key": key, "scores": {"Drama": 0.25}, "why": "é \u2028 \n"}
    return Record(**{**fields, **more})  # type: ignore[arg-type]


def test_what_is_added_is_found_by_the_next(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    records = [answer("a", poster="f", image="d"), answer("b", prompt_tokens=3, seconds=1.5)]
    with AnswerFile(path) as answer_file:
        assert not path.exists() and answer_file.find("a") is None
        answer_file.add(records[:1])
        answer_file.add(records[1:])
        assert answer_file.find("a") == records[0] and answer_file.is_own("b")
    again = AnswerFile(path)
    assert [again.find(key) for key in "ab"] == records and again.images == {"f": "d"}
    assert path.read_text("utf-8").count("\n") == 2
    assert json.loads(path.read_text("utf-8").splitlines()[1])["prompt_tokens"] == 3


def test_a_failure_is_written_and_never_found(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with AnswerFile(path) as answer_file:
        answer_file.add([answer("a", scores=None, failed="cut off")])
        assert "a" not in answer_file and "a" not in AnswerFile(path)
        assert json.loads(path.read_text())["failed"] == "cut off"
        answer_file.add([answer("a")])
        assert "a" in AnswerFile(path)


def test_it_is_on_the_disk_before_add_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "answers.jsonl"
    synced: list[int] = []
    fsync = os.fsync

    def count(file: int) -> None:
        fsync(file)
        synced.append(path.read_text().count("\n"))

    monkeypatch.setattr(os, "fsync", count)
    with AnswerFile(path) as answer_file:
        for key in "abc":
            answer_file.add([answer(key)])
    assert synced == [1, 2, 3]


@pytest.mark.parametrize("cut", [1, 20, -1])
def test_half_a_line_is_passed_over_and_ended(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with AnswerFile(path) as answer_file:
        answer_file.add([answer("a")])
        answer_file.add([answer("b")])
    whole = path.read_bytes()
    start = whole.index(b"\n") + 1
    path.write_bytes(whole[: start + cut] if cut > 0 else whole[:cut])
    with AnswerFile(path) as answer_file:
        # Only its line break is missing from the last one: it is whole.
        assert answer_file.find("a") == answer("a") and ("b" in answer_file) is (cut < 0)
        answer_file.add([answer("c")])
    again = AnswerFile(path)
    assert again.find("a") == answer("a") and again.find("c") == answer("c")


def test_lines_that_are_none_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    good = json.dumps(vars(answer("a")))
    bad = ["", "null", "[1]", '{"id": 3}', good.replace("0.25", "2"), good.replace('"A"', "7"), "é"]
    bad.append(good.replace("}}", '}, "more": 1}').replace('{"Drama": 0.25}', "[1]"))
    path.write_text("\n".join([*bad, good, ""]), "utf-8")
    answer_file = AnswerFile(path)
    assert len(answer_file) == 1 and answer_file.find("a") == answer("a")


def test_answers_of_other_runs_are_found_and_told_apart(tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    with AnswerFile(other) as answer_file:
        answer_file.add([answer("a"), answer("b")])
    with AnswerFile(tmp_path / "own.jsonl", [other, tmp_path / "gone.jsonl"]) as answer_file:
        assert answer_file.find("a") == answer("a") and not answer_file.is_own("a")
        answer_file.add([answer("a", why="mine")])
        assert answer_file.is_own("a") and answer_file.find("a") == answer("a", why="mine")
    assert other.read_text().count("\n") == 2
    with AnswerFile(tmp_path / "third.jsonl", [other]) as answer_file:
        other.write_text(other.read_text().replace('"b"', '"c"'))
        assert answer_file.find("b") is None and answer_file.find("a") == answer("a")


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "answers.jsonl"
    write = os.write

    def half(file: int, data: memoryview) -> int:
        if len(data) < 50:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, data[: len(data) // 2])

    with AnswerFile(path) as answer_file:
        answer_file.add([answer("a")])
        before = path.read_bytes()
        monkeypatch.setattr(os, "write", half)
        with pytest.raises(UserError, match=r"answers.jsonl can't be written .No space left"):
            answer_file.add([answer("b")])
    assert path.read_bytes() == before


def test_an_answer_file_that_is_only_read(tmp_path: Path) -> None:
    with AnswerFile(tmp_path / "answers.jsonl", keep=False) as answer_file:
        answer_file.add([answer("a")])
    assert not any(tmp_path.iterdir())
