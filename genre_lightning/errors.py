"""The base of every error that is the user's to mend."""

from __future__ import annotations


class UserError(Exception):
    """A dataset, a file or an option that can't be used.

    The message names it and says what to do, so commands print it without a traceback.
    """
