"""What may be wrong with what an operator asks of the dead letters."""

from services.errors import UsageError


class LetterError(UsageError):
    """A filter, a key or a file of mended events cannot be used."""
