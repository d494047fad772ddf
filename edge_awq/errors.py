"""The one error type that a user may meet: what is wrong, and what to do about it."""

from __future__ import annotations


class EdgeAwqError(Exception):
    """A failure that the user can act on.

    The message names the thing and its value; ``hint`` names the remedy. The command line prints
    both and exits with 1; nothing else in the package prints or exits.
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
