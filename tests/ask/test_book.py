"""answers.jsonl: whole lines, found again, whatever happened to the process."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from genre_lightning.ask.book import AnswerBook, Record
from genre_lightning.errors import UserError


def answer(key: str, **more: object) -> Record:
    fields = {"id": key.upper(), "key": key, "scores": {"Drama": 0.25}, "why": "é \u2028 \n"}
    return Record(**{**fields, **more})  # type: ignore[arg-type]


def test_what_is_added_is_found_by_the_next(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    records = [answer("a", poster="f", image="d"), answer("b", prompt_tokens=3, seconds=1.5)]
    with AnswerBook(path) as book:
        assert not path.exists() and book.find("a") is None
        book.add(records[:1])
        book.add(records[1:])
        assert book.find("a") == records[0] and book.is_own("b")
    again = AnswerBook(path)
    assert [again.find(key) for key in "ab"] == records and again.images == {"f": "d"}
    assert path.read_text("utf-8").count("\n") == 2
    assert json.loads(path.read_text("utf-8").splitlines()[1])["prompt_tokens"] == 3


def test_a_failure_is_written_and_never_found(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with AnswerBook(path) as book:
        book.add([answer("a", scores=None, failed="cut off")])
        assert "a" not in book and "a" not in AnswerBook(path)
        assert json.loads(path.read_text())["failed"] == "cut off"
        book.add([answer("a")])
        assert "a" in AnswerBook(path)


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
    with AnswerBook(path) as book:
        for key in "abc":
            book.add([answer(key)])
    assert synced == [1, 2, 3]


@pytest.mark.parametrize("cut", [1, 20, -1])
def test_half_a_line_is_passed_over_and_ended(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with AnswerBook(path) as book:
        book.add([answer("a")])
        book.add([answer("b")])
    whole = path.read_bytes()
    start = whole.index(b"\n") + 1
    path.write_bytes(whole[: start + cut] if cut > 0 else whole[:cut])
    with AnswerBook(path) as book:
        # Only its line break is missing from the last one: it is whole.
        assert book.find("a") == answer("a") and ("b" in book) is (cut < 0)
        book.add([answer("c")])
    again = AnswerBook(path)
    assert again.find("a") == answer("a") and again.find("c") == answer("c")


def test_lines_that_are_none_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    good = json.dumps(vars(answer("a")))
    bad = ["", "null", "[1]", '{"id": 3}', good.replace("0.25", "2"), good.replace('"A"', "7"), "é"]
    bad.append(good.replace("}}", '}, "more": 1}').replace('{"Drama": 0.25}', "[1]"))
    path.write_text("\n".join([*bad, good, ""]), "utf-8")
    book = AnswerBook(path)
    assert len(book) == 1 and book.find("a") == answer("a")


def test_answers_of_other_runs_are_found_and_told_apart(tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    with AnswerBook(other) as book:
        book.add([answer("a"), answer("b")])
    with AnswerBook(tmp_path / "own.jsonl", [other, tmp_path / "gone.jsonl"]) as book:
        assert book.find("a") == answer("a") and not book.is_own("a")
        book.add([answer("a", why="mine")])
        assert book.is_own("a") and book.find("a") == answer("a", why="mine")
    assert other.read_text().count("\n") == 2
    with AnswerBook(tmp_path / "third.jsonl", [other]) as book:
        other.write_text(other.read_text().replace('"b"', '"c"'))
        assert book.find("b") is None and book.find("a") == answer("a")


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "answers.jsonl"
    write = os.write

    def half(file: int, data: memoryview) -> int:
        if len(data) < 50:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, data[: len(data) // 2])

    with AnswerBook(path) as book:
        book.add([answer("a")])
        before = path.read_bytes()
        monkeypatch.setattr(os, "write", half)
        with pytest.raises(UserError, match=r"answers.jsonl can't be written .No space left"):
            book.add([answer("b")])
    assert path.read_bytes() == before


def test_a_book_that_keeps_nothing(tmp_path: Path) -> None:
    with AnswerBook(tmp_path / "answers.jsonl", keep=False) as book:
        book.add([answer("a")])
    assert not any(tmp_path.iterdir())
