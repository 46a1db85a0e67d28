"""What can end the demo early."""

from services.errors import HeadwaterServiceError


class DemoError(HeadwaterServiceError):
    """The demo cannot go on; the message says why and where to look."""


class Stopped(BaseException):
    """A signal asked for the end; like KeyboardInterrupt no failure, and not to be caught as one.

    Attributes:
        number: Which signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number
