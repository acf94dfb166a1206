"""The code blocks of a page, and why a block is not run.

A comment right before a block, which the rendered page does not show, says why the block is not
run. It can also exclude only some of the lines, counted from 1::

    <!-- not run: needs Slurm -->
    <!-- not run, lines 2-3: download weights -->
"""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

FENCE = re.compile(
    r"^(?:(?P<comment> *<!-- not run.*?-->)\n)?"
    r"(?P<indent> *)```(?P<language>\w*)\n(?P<body>.*?)^(?P=indent)```$",
    re.DOTALL | re.MULTILINE,
)
REASON = re.compile(r"<!-- not run(?:, lines? (\d+)(?:-(\d+))?)?: (.+?) -->", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        line: line number of the opening fence, from 1.
        language: the word after the opening fence.
        text: the whole block.
        runnable: the lines that are run; "" if there are none.
        reason: why the other lines are not run; "" if all lines are.
    """

    line: int
    language: str
    text: str
    runnable: str
    reason: str


def blocks(page: Path) -> list[Block]:
    """Every fenced block of a page, in order.

    Raises:
        ValueError: a comment is malformed, names missing lines, or does not precede a block.
    """
    text = page.read_text("utf-8")
    found = []
    for match in FENCE.finditer(text):
        body = textwrap.dedent(match["body"])
        line = text.count("\n", 0, match.start("indent")) + 1
        if match["comment"] is None:
            found.append(Block(line, match["language"], body, body, ""))
            continue
        reason = REASON.fullmatch(match["comment"].strip())
        if reason is None:
            raise ValueError(f"{page.name}:{line}: {match['comment'].strip()}")
        lines = body.splitlines(keepends=True)
        first = int(reason[1] or 1)
        last = int(reason[2] or reason[1] or len(lines))
        if not 1 <= first <= last <= len(lines):
            raise ValueError(f"{page.name}:{line}: there are no lines {first}-{last}")
        rest = "".join([*lines[: first - 1], *lines[last:]])
        found.append(Block(line, match["language"], body, rest, reason[3]))
    if text.count("<!-- not run") != sum(bool(block.reason) for block in found):
        raise ValueError(f"{page.name}: a comment `not run` that no block follows")
    return found
