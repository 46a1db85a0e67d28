"""Creation of the topics that are missing."""

import structlog
from kafka import KafkaAdminClient
from kafka.errors import KafkaError, TopicAlreadyExistsError, for_code

from streams.connection import KafkaConnection, open_client
from streams.errors import TopicError
from streams.topics import CREATE_REMEDY, EVENT_MAX_BYTES, TopicNeeds, Topics

log = structlog.get_logger(__name__)

# The smallest value that Apache Kafka accepts; the embedded broker rewrites all its data about once a second.
BOUNDED_BYTES = "1048576"
BROKER_DEFAULT = -1  # the broker's `default.replication.factor`


def ensure_topics(
    connection: KafkaConnection,
    topics: Topics,
    *,
    partitions: int = 4,
    replication_factor: int = BROKER_DEFAULT,
    bounded: bool = False,
) -> list[str]:
    """Create the topics that are missing. Existing topics keep their settings.

    Args:
        connection: the brokers to create the topics on.
        topics: the names of the topics.
        partitions: partitions of each new topic; they limit how many updater ranks can share the reading.
        replication_factor: replicas of each new topic; by default the broker's own setting.
        bounded: whether to keep about 1 MiB per partition, as the embedded broker requires.

    Returns:
        The names of the topics that were created.

    Raises:
        BrokerUnreachableError: if no broker answers.
        TopicError: if the broker refuses to create one.
    """
    admin = open_client(KafkaAdminClient, connection)
    try:
        existing = set(admin.list_topics())
        missing = {
            name: {
                "num_partitions": partitions,
                "replication_factor": replication_factor,
                "configs": _settings(needs, bounded=bounded),
            }
            for name, needs in topics.needs().items()
            if name not in existing
        }
        if missing:
            _create(admin, missing)
        return list(missing)
    except KafkaError as error:
        raise TopicError(f"topics {topics.names()} could not be listed or created: {error}") from error
    finally:
        admin.close()


def _settings(needs: TopicNeeds, *, bounded: bool) -> dict[str, str]:
    settings = {"cleanup.policy": needs.cleanup_policy, "max.message.bytes": str(needs.max_message_bytes)}
    if bounded:
        settings |= {"segment.bytes": BOUNDED_BYTES, "retention.bytes": BOUNDED_BYTES}
    if bounded and needs.max_message_bytes > EVENT_MAX_BYTES:
        settings["segment.bytes"] = str(needs.max_message_bytes)  # a segment must hold at least one record
    return settings


def _create(admin: KafkaAdminClient, missing: dict[str, dict[str, object]]) -> None:
    answer = admin.create_topics(missing, raise_errors=False)
    for topic in answer["topics"]:
        error = for_code(topic["error_code"])
        if topic["error_code"] and error is not TopicAlreadyExistsError:  # another process was faster
            reason = topic.get("error_message") or error.__name__
            raise TopicError(f"topic {topic['name']!r} could not be created: {reason}; {CREATE_REMEDY}")
    admin.wait_for_topics(list(missing))
    log.info("topics_created", topics=list(missing))
