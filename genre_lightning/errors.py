"""The errors that are the user's to fix."""

from __future__ import annotations


class UserError(Exception):
    """A dataset, a file or an option that can't be used.

    The message names it and says what to do, so commands print it without a traceback.
    """


class SettingError(UserError, ValueError):
    """A setting that can't be used; the message names it, its value and what it has to be."""


class TrainingError(UserError):
    """A training that had begun and can't go on; the message says why."""


class InputError(UserError, ValueError):
    """A movie's title, poster or other column that can't be read; the message is the reason."""
