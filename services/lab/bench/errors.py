"""What can end a measurement early."""

from services.errors import HeadwaterServiceError


class BenchError(HeadwaterServiceError):
    """Nothing can be measured; the message says why, and what to do."""
