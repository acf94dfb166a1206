"""Instantiation of the classes in a configuration, with errors about the settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from genre_lightning.errors import SettingError, UserError

Part = TypeVar("Part")


@contextmanager
def setting_errors(part: str) -> Iterator[None]:
    """Turn a constructor's errors about its arguments, which are settings, into a user error.

    Args:
        part: section of the configuration, for messages that don't name the setting.

    Raises:
        SettingError: the constructor raised an error.
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


def make_parts(group: str, choices: Mapping[str, Any], base_class: type[Part]) -> list[Part]:
    """Instantiate the callbacks or the loggers in a group of the configuration.

    Args:
        group: the group's name, for messages.
        choices: configuration of each object by name; None for an object that is left out.
        kind: Lightning's base class that each object must have.

    Raises:
        SettingError: a class does not exist, does not take these arguments, or has another base.
    """
    from hydra.utils import instantiate

    parts = []
    for name, choice in choices.items():
        if not choice:
            continue
        with setting_errors(f"{group}.{name}"):
            part = instantiate(choice)
        if not isinstance(part, base_class):
            raise SettingError(
                f"{group}.{name}: {choice['_target_']} makes a {type(part).__name__}, which is not "
                f"a {base_class.__name__} of Lightning"
            )
        parts.append(part)
    return parts
