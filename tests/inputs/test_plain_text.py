from __future__ import annotations

import json

import pytest

from genre_lightning.inputs.plain_text import is_plain_text


@pytest.mark.parametrize("text", ["", "A movie called ", "naïve ½", "/a/folder.npz", "'"])
def test_plain_text_needs_no_escape_in_json(text: str) -> None:
    assert is_plain_text(text) and is_plain_text(text, brackets=True)
    assert json.dumps(text, ensure_ascii=False) == f'"{text}"'


@pytest.mark.parametrize("text", ['say "no"', "back\\slash", "two\nlines", "\x7f", "\ud800"])
def test_quotes_backslashes_and_unprintable_characters_are_not_plain(text: str) -> None:
    assert not is_plain_text(text) and not is_plain_text(text, brackets=True)


@pytest.mark.parametrize("text", ["[", "]", "{", "}"])
def test_brackets_are_plain_only_if_allowed(text: str) -> None:
    assert not is_plain_text(text) and is_plain_text(text, brackets=True)
