"""Reports a lost broker once, its return once, and the pauses between attempts."""

import time

import structlog

from streams.connection import FIRST_BACKOFF_SECONDS, KafkaConnection, backoff_seconds, refusal
from streams.errors import BrokerUnreachableError

log = structlog.get_logger(__name__)


class Outage:
    """One line when the broker is lost, one when it is back, and the pauses between.

    Args:
        connection: The brokers that are read from.
    """

    def __init__(self, connection: KafkaConnection) -> None:
        self._connection = connection
        self._began: float | None = None
        self._misses = 0
        self._pauses = backoff_seconds()

    @property
    def is_on(self) -> bool:
        """Whether the broker is known to be away."""
        return self._began is not None

    def noticed(self, reason: str) -> float:
        """Count a failed request, and log the outage once it is certain.

        Returns:
            Seconds to wait before the next attempt.
        """
        self._misses += 1
        if self._began is None:
            refused = refusal(self._connection)
            if refused is None and self._misses == 1:  # a single slow answer
                return FIRST_BACKOFF_SECONDS
            self._began = time.monotonic()
            self._pauses = backoff_seconds()
            error = BrokerUnreachableError(self._connection.bootstrap_servers, refused or reason)
            log.warning("kafka_lost", problem=str(error), retry="until it answers")
        return next(self._pauses)

    def over(self) -> None:
        """Log the end of the outage, if there was one."""
        self._misses = 0
        if self._began is not None:
            away_seconds = round(time.monotonic() - self._began, 1)
            log.info("kafka_back", bootstrap_servers=self._connection.bootstrap_servers, away_seconds=away_seconds)
            self._began = None
