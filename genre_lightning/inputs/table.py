"""The inputs by name.

To add one, write a final class of :class:`genre_lightning.inputs.input.Input` and list it here.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from typing import Any

from genre_lightning.errors import UserError
from genre_lightning.inputs.embedding import EmbeddingInput
from genre_lightning.inputs.input import Input, check_arguments
from genre_lightning.inputs.pixels import PixelsInput
from genre_lightning.inputs.plain_text import is_plain_text
from genre_lightning.inputs.poster_text import PosterTextInput
from genre_lightning.inputs.terms import TermsInput
from genre_lightning.inputs.vectorizer import MAX_VOCABULARY_SIZE
from genre_lightning.inputs.vectors import VectorsInput
from genre_lightning.inputs.year import YearInput

INPUTS: dict[str, type[Input]] = {
    cls.kind: cls
    for cls in (TermsInput, PixelsInput, EmbeddingInput, YearInput, VectorsInput, PosterTextInput)
}

#: Maximum numbers of brackets and commas in the text of a legitimate state.
_MAX_BRACKETS = 32
_MAX_COMMAS = 3 * MAX_VOCABULARY_SIZE


def build_input(branch: str, settings: Mapping[str, Any]) -> Input:
    """Build a branch's input from its configuration.

    Args:
        branch: name of the branch, for messages.
        settings: ``kind``, a key of ``INPUTS``, and the arguments of the input's class.

    Raises:
        UserError: naming the key that is unknown, missing or out of range.
    """
    where = f"model.branches.{branch}.input"
    kind = settings.get("kind")
    if not isinstance(kind, str) or kind not in INPUTS:
        raise UserError(f"{where}.kind={kind!s:.100} is none of {', '.join(INPUTS)}")
    input_class = INPUTS[kind]
    if inspect.isabstract(input_class):
        missing = ", ".join(sorted(input_class.__abstractmethods__))
        raise UserError(f"{where}.kind={kind}: its class {input_class.__name__} lacks {missing}")
    arguments = {name: value for name, value in settings.items() if name != "kind"}
    try:
        check_arguments(input_class, arguments)
        if "column" in arguments and not is_column_name(arguments["column"]):
            raise ValueError(f"column={arguments['column']!r} is not a valid name of a column")
        return input_class(**arguments)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    except TypeError as error:  # the message does not name the argument
        given = ", ".join(f"{name}={value}" for name, value in arguments.items())
        raise UserError(f"{where} has a value of a wrong type ({given}): {error}") from error
    except ValueError as error:
        raise UserError(f"{where}.{error}") from error


def is_column_name(name: Any) -> bool:
    """Whether a value can name a column: printable text without brackets or JSON escapes."""
    return isinstance(name, str) and 0 < len(name) <= 200 and is_plain_text(name)


def state_to_text(branch_input: Input) -> str:
    """Return an input's kind and state as one JSON string.

    A checkpoint reads and writes one string in a tenth of the time that separate items take.

    Raises:
        TypeError: the state is not plain data; the message names the input's class.
    """
    try:
        return json.dumps({"kind": branch_input.kind, **branch_input.state()}, ensure_ascii=False)
    except TypeError as error:
        name = type(branch_input).__name__
        raise TypeError(f"{name}.state must return a dict of plain data: {error}") from error


def input_from_text(text: Any) -> Input:
    """Rebuild an input from the text of :func:`state_to_text`, which can be untrusted.

    Raises:
        ValueError: saying what is wrong with the text.
    """
    if type(text) is not str:
        raise ValueError(f"a {type(text).__name__}, not a text")
    # A legitimate state has no backslashes in its strings: terms are letters, digits, marks and
    # spaces, and column names are checked. So the number of brackets bounds the depth, and the
    # number of commas bounds the number of items.
    if "\\" in text or text.count("[") + text.count("{") > _MAX_BRACKETS:
        raise ValueError("its JSON is not that of an input's state")
    if text.count(",") > _MAX_COMMAS:
        raise ValueError("its JSON has more items than any vocabulary")
    try:
        state = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{error!s:.200}") from None
    if not isinstance(state, dict):
        raise ValueError("its JSON is no mapping")
    kind = state.pop("kind", None)
    if type(kind) is not str or kind not in INPUTS:
        raise ValueError(f"its kind {kind!r:.100} is none of {', '.join(INPUTS)}")
    if not is_column_name(state.get("column")):
        raise ValueError("its column has no name")
    try:
        return INPUTS[kind].from_state(state)
    except TypeError as error:
        raise ValueError(str(error)) from None
