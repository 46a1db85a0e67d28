"""Errors of the HTTP clients: catch `HeadwaterClientError` for all of them."""

from collections.abc import Mapping, Sequence

from services.errors import HeadwaterServiceError


class HeadwaterClientError(HeadwaterServiceError):
    """Root of the errors that a client raises on purpose."""


class ScorerUnavailableError(HeadwaterClientError):
    """The scorer did not answer before the deadline, or answered that it cannot at present.

    Attributes:
        status: HTTP status of the last answer; None if there was none.
    """

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class RequestRefusedError(HeadwaterClientError):
    """The scorer refused the request; sending it again would not help.

    Attributes:
        status: HTTP status of the answer.
        errors: `pointer` and `detail` of each field that broke a rule; empty if the refusal is not about fields.
    """

    def __init__(self, message: str, *, status: int, errors: Sequence[Mapping[str, str]] = ()) -> None:
        super().__init__(message)
        self.status, self.errors = status, tuple(errors)


class UnexpectedAnswerError(HeadwaterClientError):
    """The answer is not that of a scorer: another service listens at the URL, or the releases do not fit together."""
