"""Which texts a checkpoint can hold among an input's settings, see ``state_to_text``."""

from __future__ import annotations


def is_plain_text(text: str, brackets: bool = False) -> bool:
    """Whether JSON holds a text without anything escaped.

    Args:
        text: of a setting.
        brackets: it may have [], {} as well, which bound how deep untrusted JSON is.
    """
    return text.isprintable() and not set(text) & set('"\\' if brackets else '"\\[]{}')
