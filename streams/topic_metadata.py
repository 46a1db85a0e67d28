"""Topic metadata, asked for in the background: which partitions a topic has, and which log its name stands for."""

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from kafka.errors import KafkaError, UnknownTopicOrPartitionError, for_code
from kafka.protocol.metadata import MetadataRequest

LOOK_SECONDS = 10.0  # between two requests while every topic can be read
PROBLEM_LOOK_SECONDS = 2.0  # likewise while one cannot
SOONEST_SECONDS = 0.5  # between two requests, whatever the reason
ANSWER_SECONDS = 5.0  # a request that takes longer is given up


@dataclass(frozen=True, slots=True)
class TopicMetadata:
    """What the broker says of a topic.

    Attributes:
        identity: `cluster id/topic id`; None if the broker does not tell. A topic that is deleted and created again
            has another one.
        partitions: Its partitions.
        leaderless: Those of them that no broker serves at the moment.
        error: The name of the broker's error; None if there is none.
        exists: Whether the topic exists, or may exist and be hidden from us.
    """

    identity: str | None = None
    partitions: frozenset[int] = frozenset()
    leaderless: frozenset[int] = frozenset()
    error: str | None = None
    exists: bool = True


Metadata = Mapping[str, TopicMetadata]


def is_other_log(known: str | None, found: str | None) -> bool:
    """Return whether two identities name different logs. An unknown identity matches any: then the name counts."""
    return known is not None and found is not None and known != found


class MetadataLookup:
    """Asks for the metadata of some topics every few seconds without blocking its caller.

    Args:
        topics: Their names.
    """

    def __init__(self, topics: Collection[str]) -> None:
        self._topics = list(dict.fromkeys(topics))
        self._pending: Any = None  # kafka.future.Future
        self._asked = self._due = 0.0  # monotonic seconds

    def poll(self, manager: Any, *, urgent: bool, problems: bool) -> Metadata | None:
        """Collect an answer, or ask when it is time to.

        Args:
            manager: The client's connection manager.
            urgent: Whether the client's cached metadata differ from what is read.
            problems: Whether a topic cannot be read.

        Raises:
            KafkaError: The request failed.
        """
        now = time.monotonic()
        if self._pending is None:
            due = min(self._due, self._asked + PROBLEM_LOOK_SECONDS) if problems else self._due
            if now >= (self._asked + SOONEST_SECONDS if urgent else due):
                self._asked, self._due = now, now + LOOK_SECONDS
                self._pending = manager.call_soon(_ask, manager, self._topics)
            return None
        if not self._pending.is_done:
            if now > self._asked + ANSWER_SECONDS:
                self._pending = None
            return None
        answered, self._pending = self._pending, None
        if answered.failed():
            raise answered.exception
        return _parsed(answered.value)

    def look_now(self, manager: Any, timeout_ms: int) -> Metadata:
        """Ask and wait for the answer.

        Raises:
            KafkaError: The request failed, or was not answered in time.
        """
        self._pending = None
        self._asked = time.monotonic()
        self._due = self._asked + LOOK_SECONDS
        return _parsed(manager.run(manager.wait_for, manager.call_soon(_ask, manager, self._topics), timeout_ms))


async def _ask(manager: Any, topics: list[str]) -> Any:
    """Request metadata and hand the answer to the client too: it then knows who leads a new partition."""
    response = await manager.send(
        MetadataRequest(
            topics=[MetadataRequest.MetadataRequestTopic(name=topic) for topic in topics],
            allow_auto_topic_creation=False,
            include_cluster_authorized_operations=False,
            include_topic_authorized_operations=False,
        )
    )
    manager.cluster.update_metadata(response)
    return response


def _parsed(response: Any) -> Metadata:
    return {topic.name: _topic(topic, getattr(response, "cluster_id", None)) for topic in response.topics}


def _topic(topic: Any, cluster_id: str | None) -> TopicMetadata:
    error: type[KafkaError] | None = for_code(topic.error_code) if topic.error_code else None
    topic_id = getattr(topic, "topic_id", None)
    return TopicMetadata(
        identity=f"{cluster_id}/{topic_id}" if topic_id is not None and topic_id.int else None,
        partitions=frozenset(partition.partition_index for partition in topic.partitions),
        leaderless=frozenset(partition.partition_index for partition in topic.partitions if partition.leader_id < 0),
        error=error.__name__ if error is not None else None,
        exists=error is not UnknownTopicOrPartitionError,
    )
