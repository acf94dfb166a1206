"""Text and tables in Markdown; names are escaped, so that they are displayed literally."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence

from markupsafe import Markup


def escape_markdown(text: str) -> str:
    """Escape Markdown, HTML and links in a text; ``Markup`` stays as it is."""
    if isinstance(text, Markup):
        return text
    text = text.replace("&", "&amp;").replace("<", "&lt;")
    # A bare address would become a link.
    text = text.replace("://", ":&#47;&#47;").replace("www.", "www&#46;")
    return re.sub(r"([\\`*_|\[\]~])", r"\\\1", text)


def code(text: str) -> Markup:
    """Format a text as code that works in tables; backquotes in it become apostrophes."""
    return Markup("`{}`".format(text.replace("`", "'").replace("|", "\\|")))


def markdown_table(
    headings: Sequence[str], rows: Sequence[Sequence[str]], left_aligned: Collection[str]
) -> Iterator[str]:
    """Yield the lines of a table.

    Args:
        headings: headings of the columns.
        rows: a cell for each column.
        left_aligned: headings of the left-aligned columns, which are not numbers.
    """
    alignments = ["---" if heading in left_aligned else "---:" for heading in headings]
    for cells in (
        map(escape_markdown, headings),
        alignments,
        *(map(escape_markdown, row) for row in rows),
    ):
        yield f"| {' | '.join(cells)} |"
