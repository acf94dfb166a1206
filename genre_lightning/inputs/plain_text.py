"""The check of texts in an input's settings that checkpoints store, see ``state_to_text``."""

from __future__ import annotations


def is_plain_text(text: str, brackets: bool = False) -> bool:
    """Whether a text can be stored in JSON without escapes.

    Args:
        text: the value of a setting.
        brackets: allow [] and {} too, which are otherwise refused: their number bounds the depth of
            untrusted JSON.
    """
    return text.isprintable() and not set(text) & set('"\\' if brackets else '"\\[]{}')
