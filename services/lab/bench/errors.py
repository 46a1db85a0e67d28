"""Errors of `headwater bench`."""

from services.errors import HeadwaterServiceError


class BenchError(HeadwaterServiceError):
    """Nothing can be measured; the message says why, and what to do."""
