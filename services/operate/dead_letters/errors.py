"""The error of the dead-letter commands."""

from services.errors import UsageError


class LetterError(UsageError):
    """A filter, a letter's key or a file of corrected events cannot be used."""
