"""Detection and logging of broker outages, with pauses between the attempts to reconnect."""

import threading
import time
from collections import defaultdict
from collections.abc import Sequence

import structlog
from kafka.errors import InvalidMetadataError, KafkaError

from streams.connection import (
    FIRST_BACKOFF_SECONDS,
    KafkaConnection,
    backoff_seconds,
    bootstrap_problem,
    unreachable_reason,
)
from streams.errors import BrokerUnreachableError, HeadwaterStreamError, TopicError, error_text

log = structlog.get_logger(__name__)


_lock = threading.Lock()
_ongoing: dict[str, set["Outage"]] = defaultdict(set)  # by bootstrap servers
_answered: dict[str, float] = {}  # by bootstrap servers: time of the last answer to any reader, monotonic seconds


class Outage:
    """The outages of one reader: one log line when the broker is lost, and one when it is back.

    Readers of one process that lose the same brokers share these lines.

    Args:
        connection: the brokers that are read from.
    """

    def __init__(self, connection: KafkaConnection) -> None:
        self._connection = connection
        self._began: float | None = None
        self._failures = 0
        self._pauses = backoff_seconds()

    @property
    def is_confirmed(self) -> bool:
        """True while the brokers answer neither this reader nor, since its first failure, any other one."""
        began = self._began
        return began is not None and _answered.get(self._connection.bootstrap_servers, 0.0) <= began

    @property
    def is_unanswered(self) -> bool:
        """True while the brokers do not answer this reader, though they may answer others."""
        return self._began is not None

    def record_failure(self, reason: str) -> float:
        """Count a failed request, and log the outage once it is certain.

        Args:
            reason: the error of the request.

        Returns:
            The seconds to wait before the next attempt.
        """
        self._failures += 1
        if self._began is None:
            problem = bootstrap_problem(self._connection)
            if problem is None and self._failures == 1:  # a single slow answer
                return FIRST_BACKOFF_SECONDS
            self._began = time.monotonic()
            self._pauses = backoff_seconds()
            reason = problem or unreachable_reason(self._connection) or reason  # names an advertised listener
            error = BrokerUnreachableError(self._connection.bootstrap_servers, reason)
            with _lock:
                is_first = not _ongoing[self._connection.bootstrap_servers]
                _ongoing[self._connection.bootstrap_servers].add(self)
            if is_first:
                log.warning("kafka_lost", problem=str(error), retry="until it answers")
        return next(self._pauses)

    def record_success(self) -> None:
        """Note an answer, and log the end of the outage if there was one."""
        self._failures = 0
        _answered[self._connection.bootstrap_servers] = time.monotonic()
        if self._began is not None:
            away_seconds = round(time.monotonic() - self._began, 1)
            if self._leave():
                log.info("kafka_back", bootstrap_servers=self._connection.bootstrap_servers, away_seconds=away_seconds)

    def close(self) -> None:
        """Leave the outage; the reader ends."""
        self._leave()

    def _leave(self) -> bool:
        """Take this reader out of the outage. Returns True if it was the last one in it."""
        self._began = None
        with _lock:
            ongoing = _ongoing[self._connection.bootstrap_servers]
            ongoing.discard(self)
            return not ongoing


def unanswered_error(error: KafkaError, connection: KafkaConnection, topics: Sequence[str]) -> HeadwaterStreamError:
    """Return the error to raise for a request about topics that failed.

    Args:
        error: the error of the Kafka client.
        connection: the brokers that received the request.
        topics: the topics that the request was about.
    """
    if isinstance(error, InvalidMetadataError):
        return TopicError(
            f"topics {list(topics)} cannot be read to their end: {error_text(error)}; check that they exist, and "
            "that the brokers that hold them run"
        )
    return BrokerUnreachableError(connection.bootstrap_servers, error_text(error))
