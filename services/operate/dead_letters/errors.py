"""What may be wrong with what an operator asks of the dead letters."""


class LetterError(ValueError):
    """A filter, a key or a file of mended events cannot be used."""
