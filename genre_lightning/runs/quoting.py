"""Commands as text: what is printed can be pasted, and paths are taken as they are pasted."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from genre_lightning.runs.settings import changes_no_result, is_path

#: Characters that mean something to a shell within double quotes too.
NOT_IN_DOUBLE_QUOTES = re.compile(r'["$`\\!]')


def shell_command(*words: str | Path) -> str:
    """A command, or a single path, to paste into a shell: each word is quoted where it has to be.

    Args:
        words: the command and its arguments: ``"genre-predict", checkpoint``. An override of Hydra
            is made by :func:`override` before.
    """
    return " ".join(_quoted(str(word)) for word in words)


def below_here(path: Path) -> Path:
    """A path as one reads it: relative where it is below the current folder."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) and path != here else path


def _quoted(word: str) -> str:
    # Shorter than what shlex makes of a word that is quoted for Hydra already.
    if "'" in word and not NOT_IN_DOUBLE_QUOTES.search(word):
        return f'"{word}"'
    return shlex.quote(word)


def override(key: str, value: str | Path) -> str:
    """``key=value`` that Hydra reads as this very text: quoted where it has to be."""
    from hydra.core.override_parser.types import Quote, QuotedString  # not for a shell's sake

    text = str(value)
    if "${" not in text and _is_read_as_it_is(text):
        return f"{key}={text}"
    # OmegaConf would look for another setting within ${}, in quotes as well.
    literal = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
    return f"{key}={QuotedString(literal, Quote.single).with_quotes()}"


def with_paths_quoted(arguments: Sequence[str]) -> list[str]:
    """Arguments of a command of Hydra whose paths may lack Hydra's quotes: they are put around.

    "=", "," and blanks mean something else in Hydra's grammar. The value of a setting that is a
    path is quoted where it names what is there, and where Hydra can't read it, or would read a
    sweep that can't be. All else stays as it is, quotes, interpolations and sweeps included.
    """
    return [_with_path_quoted(argument) for argument in arguments]


def _with_path_quoted(argument: str) -> str:
    from hydra.core.override_parser.types import Sweep
    from hydra.errors import HydraException

    key, _, value = argument.partition("=")
    name = key.lstrip("+")
    if not value or not is_path(name):
        return argument
    if os.path.lexists(os.path.expanduser(value)):
        return override(key, value)
    try:
        is_sweep = isinstance(_read_value(value), Sweep)
    except HydraException:
        return override(key, value)
    return override(key, value) if is_sweep and changes_no_result(name) else argument


def _is_read_as_it_is(text: str) -> bool:
    from hydra.errors import HydraException

    try:
        return bool(_read_value(text) == text)
    except HydraException:
        return False


def _read_value(text: str) -> Any:
    """What Hydra makes of a value.

    Raises:
        HydraException: it can't be read.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create().parse_override(f"key={text}").value()
