"""Quoting of commands to be pasted into a shell, and of paths in arguments for Hydra."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from genre_lightning.runs.settings import changes_no_result, is_path

#: Characters that are special to a shell even in double quotes.
NOT_IN_DOUBLE_QUOTES = re.compile(r'["$`\\!]')


def shell_command(*words: str | Path) -> str:
    """A command, or a single path, to paste into a shell, with words quoted where necessary.

    Args:
        words: the command and its arguments, such as ``"genre-predict", checkpoint``. Use
            :func:`format_override` for a Hydra override.
    """
    return " ".join(_quoted(str(word)) for word in words)


def relative_to_cwd(path: Path) -> Path:
    """A path for display: relative if it is below the current folder."""
    cwd = Path.cwd()
    return path.relative_to(cwd) if path.is_relative_to(cwd) and path != cwd else path


def _quoted(word: str) -> str:
    # Shorter than shlex's result for a word that is already quoted for Hydra.
    if "'" in word and not NOT_IN_DOUBLE_QUOTES.search(word):
        return f'"{word}"'
    return shlex.quote(word)


def format_override(key: str, value: str | Path) -> str:
    """``key=value``, quoted where necessary so that Hydra reads exactly this text."""
    from hydra.core.override_parser.types import Quote, QuotedString  # not needed for shell_command

    text = str(value)
    if "${" not in text and _is_read_unchanged(text):
        return f"{key}={text}"
    # OmegaConf would resolve ${} as an interpolation, even in quotes.
    literal = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
    return f"{key}={QuotedString(literal, Quote.single).with_quotes()}"


def quote_paths(arguments: Sequence[str]) -> list[str]:
    """Add the quotes that paths in Hydra arguments need.

    "=", "," and blanks have other meanings in Hydra's grammar. A path's value is quoted if it
    exists, if Hydra can't parse it, or if Hydra would read it as a sweep over a setting that can't
    be swept. Everything else is unchanged, including quotes, interpolations and sweeps.
    """
    return [_quote_path(argument) for argument in arguments]


def _quote_path(argument: str) -> str:
    from hydra.core.override_parser.types import Sweep
    from hydra.errors import HydraException

    key, _, value = argument.partition("=")
    name = key.lstrip("+")
    if not value or not is_path(name):
        return argument
    if os.path.lexists(os.path.expanduser(value)):
        return format_override(key, value)
    try:
        is_sweep = isinstance(_read_value(value), Sweep)
    except HydraException:
        return format_override(key, value)
    return format_override(key, value) if is_sweep and changes_no_result(name) else argument


def _is_read_unchanged(text: str) -> bool:
    from hydra.errors import HydraException

    try:
        return bool(_read_value(text) == text)
    except HydraException:
        return False


def _read_value(text: str) -> Any:
    """Parse a value as Hydra does.

    Raises:
        HydraException: the value can't be parsed.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create().parse_override(f"key={text}").value()
