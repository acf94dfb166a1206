"""Text and tables in Markdown; names are escaped, so that they show as they are."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence

from markupsafe import Markup


def in_markdown(text: str) -> str:
    """The text as Markdown that shows it: no markup, no HTML, no link. Markup stays as it is."""
    if isinstance(text, Markup):
        return text
    text = text.replace("&", "&amp;").replace("<", "&lt;")
    # A bare address would become a link.
    text = text.replace("://", ":&#47;&#47;").replace("www.", "www&#46;")
    return re.sub(r"([\\`*_|\[\]~])", r"\\\1", text)


def code(text: str) -> Markup:
    """The text as code, also in a table: without the backquotes that it may have."""
    return Markup("`{}`".format(text.replace("`", "'").replace("|", "\\|")))


def markdown_table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], left: Collection[str]
) -> Iterator[str]:
    """The lines of a table.

    Args:
        heads: of its columns.
        rows: a cell for each column.
        left: heads of the columns that are not numbers.
    """
    sides = ["---" if head in left else "---:" for head in heads]
    for cells in (map(in_markdown, heads), sides, *(map(in_markdown, row) for row in rows)):
        yield f"| {' | '.join(cells)} |"
