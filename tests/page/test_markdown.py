from __future__ import annotations

import pytest
from markdown_it import MarkdownIt

from genre_lightning.page.markdown import code, escape_markdown, markdown_table

TEXTS = [
    "a_b_c", "*x*", "<b>", "1 & 2", "&amp;", "[a](b)", "`x`", "~~x~~", "a\\b", "a | b",
    "see http://example.org or www.example.org",
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_escaped_text_is_shown_unchanged(text: str):
    parser = MarkdownIt("gfm-like", {"linkify": False}).enable("table")
    (_, inline, _) = parser.parse(escape_markdown(text))
    assert inline.children is not None
    assert {child.type for child in inline.children} <= {"text", "text_special"}
    assert "".join(child.content for child in inline.children) == text
    assert "://" not in escape_markdown(text) and "www." not in escape_markdown(text)


@pytest.mark.parametrize("text", TEXTS)
def test_a_table_keeps_its_cells(text: str):
    lines = list(markdown_table(["name", "n"], [[text, "1"], [code(text), "2"]], ["name"]))
    assert lines[1] == "| --- | ---: |"
    parser = MarkdownIt("commonmark").enable("table")
    cells = [t.children for t in parser.parse("\n".join(lines)) if t.type == "inline"]
    shown = ["".join(child.content for child in cell or ()) for cell in cells]
    assert shown == ["name", "n", text, "1", text.replace("`", "'"), "2"]
