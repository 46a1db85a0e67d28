"""Topics and partitions that cannot be read, as sentences; each problem is logged when it begins and ends."""

import math
import time
from dataclasses import dataclass

import structlog

from streams.errors import UndecodableBatchError
from streams.offsets import partition_name
from streams.topic_metadata import TopicMetadata
from streams.topics import MISSING_REMEDY

log = structlog.get_logger(__name__)

RETRY_SECONDS = 10.0  # until a partition that could not be read is tried again
TRIAL_SECONDS = 5.0  # a partition that is tried again and does not fail in this time can be read


@dataclass(slots=True)
class _Problem:
    sentence: str
    retry_at: float  # monotonic seconds; infinity for a problem that metadata show to have ended


class ReadProblems:
    """The topics and partitions that cannot be read at the moment.

    A problem is identified by the name of its topic (`shop.clicks`) or partition (`shop.clicks/3`).
    """

    def __init__(self) -> None:
        self._problems: dict[str, _Problem] = {}

    @property
    def any(self) -> bool:
        """True while there is a problem."""
        return bool(self._problems)

    def sentences(self) -> dict[str, str]:
        """Return the problems by name. Safe to call from another thread."""
        return {name: problem.sentence for name, problem in dict(self._problems).items()}

    def note(self, name: str, sentence: str, *, retry: bool = False) -> None:
        """Add a problem, and log it unless it is known.

        Args:
            name: the topic or partition that cannot be read.
            sentence: the reason and the remedy.
            retry: whether only another attempt can show that the problem has ended.
        """
        known = self._problems.get(name)
        self._problems[name] = _Problem(sentence, time.monotonic() + RETRY_SECONDS if retry else math.inf)
        if known is None or known.sentence != sentence:
            log.warning("topic_unreadable", topic=name, problem=sentence, retry="until it can be read")

    def clear(self, name: str) -> None:
        """Remove a problem that has ended."""
        if self._problems.pop(name, None) is not None:
            log.info("topic_readable", topic=name)

    def clear_seen(self, name: str) -> None:
        """Remove a problem that metadata show to have ended; one that needs another attempt stays."""
        known = self._problems.get(name)
        if known is not None and known.retry_at == math.inf:
            self.clear(name)

    def clear_tried(self) -> None:
        """Remove the problems of partitions that were tried again and have not failed since."""
        now = time.monotonic()
        for name, problem in list(self._problems.items()):
            if now >= problem.retry_at + TRIAL_SECONDS:
                self.clear(name)

    def is_suspended(self, topic: str, partition: int) -> bool:
        """Return whether a partition must not be read yet."""
        now = time.monotonic()
        return any(
            problem is not None and now < problem.retry_at
            for problem in (self._problems.get(topic), self._problems.get(partition_name(topic, partition)))
        )


def absent(topic: str, described: TopicMetadata, *, was_read: bool) -> str:
    """Return the sentence for a topic without usable metadata."""
    if described.exists:
        return (
            f"topic {topic!r} may not be read, or not now ({described.error}); give this process the rights to "
            "describe and read it; reading resumes where it stopped"
        )
    if was_read:
        return f"topic {topic!r} was deleted; {MISSING_REMEDY}; the new one is read from its first record"
    return f"topic {topic!r} does not exist; {MISSING_REMEDY}; reading begins at its first record once it is there"


def leaderless(topic: str, partition: int) -> str:
    """Return the sentence for a partition that no broker serves."""
    return (
        f"partition {partition} of topic {topic!r} has no leader; start the brokers that hold it; reading resumes "
        "where it stopped"
    )


def cut_off(topic: str, partition: int) -> str:
    """Return the sentence for a partition whose leader accepts no connection at its advertised address."""
    return (
        f"partition {partition} of topic {topic!r} cannot be read, since its leader takes no connection; start that "
        "broker, or correct its `advertised.listeners`: the log of this process names the address"
    )


def unauthorized(topic: str) -> str:
    """Return the sentence for a topic that this process may not read."""
    return f"topic {topic!r} may not be read; give this process the right to read it; reading resumes where it stopped"


def unreadable(topic: str, partition: int, offset: int, error: Exception) -> str:
    """Return the sentence for a partition whose records the client could not parse.

    Args:
        topic: the name of the topic.
        partition: the number of the partition.
        offset: the offset from which it could not be read.
        error: the error that the client raised.
    """
    if isinstance(error, UndecodableBatchError):
        return (
            f"partition {partition} of topic {topic!r} cannot be read at offset {offset} (codec {error.codec}): "
            f"{error.reason}; {error.remedy}"
        )
    return (
        f"partition {partition} of topic {topic!r} cannot be read at offset {offset}: {str(error) or repr(error)}; "
        "check the rights and the disks of the brokers"
    )
