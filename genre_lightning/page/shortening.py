"""Text that has to fit into a place."""

from __future__ import annotations


def shortened(text: str, most: int) -> str:
    """Text of at most so many characters: the last one is "…" where there was more."""
    return text if len(text) <= most else f"{text[: most - 1]}…"
