"""Objects of the classes that a configuration names; a slip in it is told as one of a setting."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from genre_lightning.errors import SettingError, UserError

Made = TypeVar("Made")


@contextmanager
def refused_settings(part: str) -> Iterator[None]:
    """Let what a constructor says about its arguments, which are settings, be the user's to fix.

    Args:
        part: of the configuration, where the message does not name the setting.

    Raises:
        SettingError: for what it raised.
    """
    from hydra.errors import InstantiationException

    try:
        yield
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        reason = " ".join(str(error.__cause__ or error).split())
        raise SettingError(f"{part}: {reason}") from error
    except (TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise SettingError(str(error) if "." in str(error) else f"{part}: {error}") from error


def make_parts(group: str, choices: Mapping[str, Any], kind: type[Made]) -> list[Made]:
    """The callbacks, or the loggers, that a group of the configuration names.

    Args:
        group: its name, for messages.
        choices: by name, what each is made from; None for one that is left out.
        kind: of Lightning, that each has to be.

    Raises:
        SettingError: a class is not there, does not take these arguments, or is of another kind.
    """
    from hydra.utils import instantiate

    made = []
    for name, choice in choices.items():
        if not choice:
            continue
        with refused_settings(f"{group}.{name}"):
            part = instantiate(choice)
        if not isinstance(part, kind):
            raise SettingError(
                f"{group}.{name}: {choice['_target_']} makes a {type(part).__name__}, which is no "
                f"{kind.__name__} of Lightning"
            )
        made.append(part)
    return made
