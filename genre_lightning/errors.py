"""Errors that the user can fix."""

from __future__ import annotations


class UserError(Exception):
    """A dataset, file or option can't be used.

    The message names it and says what to do, so commands print the message without a traceback.
    """


class SettingError(UserError, ValueError):
    """A setting can't be used; the message names it, its value and what it must be."""


class TrainingError(UserError):
    """A training has started but can't continue; the message says why."""


class InputError(UserError, ValueError):
    """A movie's title, poster or other column can't be read; the message is the reason."""
