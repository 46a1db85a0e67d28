"""Topic metadata, requested in the background: the partitions of each topic and the identity of its log."""

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from kafka.errors import KafkaError, UnknownTopicOrPartitionError, for_code
from kafka.protocol.metadata import MetadataRequest

REFRESH_SECONDS = 10.0  # between two requests while every topic can be read
PROBLEM_REFRESH_SECONDS = 2.0  # between two requests while a topic cannot be read
MIN_REFRESH_SECONDS = 0.5  # between two requests, whatever the reason
ANSWER_SECONDS = 5.0  # a request that takes longer is abandoned


@dataclass(frozen=True, slots=True)
class TopicMetadata:
    """A topic as the broker describes it.

    Attributes:
        identity: `cluster id/topic id`; None if the broker does not report it. A topic that is deleted and created
            again has another identity.
        partitions: the numbers of its partitions.
        leaderless: the partitions that no broker serves at the moment.
        error: the name of the broker's error; None if there is none.
        exists: whether the topic exists, or may exist without this process being allowed to see it.
    """

    identity: str | None = None
    partitions: frozenset[int] = frozenset()
    leaderless: frozenset[int] = frozenset()
    error: str | None = None
    exists: bool = True


Metadata = Mapping[str, TopicMetadata]


def is_other_log(known: str | None, current: str | None) -> bool:
    """Return whether two identities name different logs; an unknown identity matches any."""
    return known is not None and current is not None and known != current


class MetadataLookup:
    """Periodic requests for the metadata of some topics that do not block the caller.

    Args:
        topics: the names of the topics.
    """

    def __init__(self, topics: Collection[str]) -> None:
        self._topics = list(dict.fromkeys(topics))
        self._pending: Any = None  # kafka.future.Future
        self._requested = self._due = 0.0  # monotonic seconds

    def poll(self, manager: Any, *, urgent: bool, problems: bool) -> Metadata | None:
        """Return the answer to a pending request, if it has come; send a request when one is due.

        Args:
            manager: the client's connection manager.
            urgent: whether the client's cached metadata differ from what is being read.
            problems: whether a topic cannot be read.

        Raises:
            KafkaError: if the request failed.
        """
        now = time.monotonic()
        if self._pending is None:
            due = min(self._due, self._requested + PROBLEM_REFRESH_SECONDS) if problems else self._due
            if now >= (self._requested + MIN_REFRESH_SECONDS if urgent else due):
                self._requested, self._due = now, now + REFRESH_SECONDS
                self._pending = manager.call_soon(_request, manager, self._topics)
            return None
        if not self._pending.is_done:
            if now > self._requested + ANSWER_SECONDS:
                self._pending = None
            return None
        answer, self._pending = self._pending, None
        if answer.failed():
            raise answer.exception
        return _parse(answer.value)

    def fetch(self, manager: Any, timeout_ms: int) -> Metadata:
        """Request the metadata and wait for the answer.

        Args:
            manager: the client's connection manager.
            timeout_ms: the longest time to wait.

        Raises:
            KafkaError: if the request failed, or was not answered in time.
        """
        self._pending = None
        self._requested = time.monotonic()
        self._due = self._requested + REFRESH_SECONDS
        return _parse(manager.run(manager.wait_for, manager.call_soon(_request, manager, self._topics), timeout_ms))


async def _request(manager: Any, topics: list[str]) -> Any:
    """Request metadata and update the client with the answer, so that it knows the leaders of new partitions."""
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


def _parse(response: Any) -> Metadata:
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
