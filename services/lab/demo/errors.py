"""Errors and signals that end the demo early."""

from services.errors import HeadwaterServiceError


class DemoError(HeadwaterServiceError):
    """The demo cannot continue; the message gives the cause and the log to read."""


class Stopped(BaseException):
    """A signal stopped the demo. Like KeyboardInterrupt it is not a failure, and must not be caught as one.

    Attributes:
        number: the number of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number
