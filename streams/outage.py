"""Reports a lost broker once, its return once, and the pauses between attempts."""

import threading
import time
from collections import defaultdict

import structlog

from streams.connection import (
    FIRST_BACKOFF_SECONDS,
    KafkaConnection,
    backoff_seconds,
    bootstrap_problem,
    unreachable_reason,
)
from streams.errors import BrokerUnreachableError

log = structlog.get_logger(__name__)


_lock = threading.Lock()
_ongoing: dict[str, set["Outage"]] = defaultdict(set)  # by bootstrap servers
_answered: dict[str, float] = {}  # when any reader last had an answer, monotonic seconds, by bootstrap servers


class Outage:
    """One line when the broker is lost, one when it is back, and the pauses between.

    Readers of one process that lose the same brokers write these lines once between them.

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
        """Whether the brokers are known to be away: this reader has no answers, and no other one had any since."""
        began = self._began
        return began is not None and _answered.get(self._connection.bootstrap_servers, 0.0) <= began

    @property
    def is_unanswered(self) -> bool:
        """Whether this reader has no answers, though others may have."""
        return self._began is not None

    def noticed(self, reason: str) -> float:
        """Count a failed request, and log the outage once it is certain.

        Returns:
            Seconds to wait before the next attempt.
        """
        self._misses += 1
        if self._began is None:
            refused = bootstrap_problem(self._connection)
            if refused is None and self._misses == 1:  # a single slow answer
                return FIRST_BACKOFF_SECONDS
            self._began = time.monotonic()
            self._pauses = backoff_seconds()
            reason = refused or unreachable_reason(self._connection) or reason  # names an advertised listener
            error = BrokerUnreachableError(self._connection.bootstrap_servers, reason)
            with _lock:
                is_first = not _ongoing[self._connection.bootstrap_servers]
                _ongoing[self._connection.bootstrap_servers].add(self)
            if is_first:
                log.warning("kafka_lost", problem=str(error), retry="until it answers")
        return next(self._pauses)

    def over(self) -> None:
        """Log the end of the outage, if there was one."""
        self._misses = 0
        _answered[self._connection.bootstrap_servers] = time.monotonic()
        if self._began is not None:
            away_seconds = round(time.monotonic() - self._began, 1)
            if self._ended():
                log.info("kafka_back", bootstrap_servers=self._connection.bootstrap_servers, away_seconds=away_seconds)

    def close(self) -> None:
        """Forget the outage of a reader that ends."""
        self._ended()

    def _ended(self) -> bool:
        """Take this reader out of the outage; return whether it was the last one in it."""
        self._began = None
        with _lock:
            ongoing = _ongoing[self._connection.bootstrap_servers]
            ongoing.discard(self)
            return not ongoing
