"""Producers for processes and commands: wait for the broker, create missing topics, connect."""

import structlog

from services.settings import Settings
from streams.connection import wait_for_broker
from streams.errors import TopicError
from streams.producer import EventProducer
from streams.topic_creation import ensure_topics

BROKER_TIMEOUT_SECONDS = 30.0

log = structlog.get_logger(__name__)


def open_producer(settings: Settings) -> EventProducer:
    """Wait for the broker, create missing topics, and open a producer.

    If topics cannot be created, the producer waits for each topic that it needs, and fails if it does not appear.

    Args:
        settings: the settings of Kafka and the topics.

    Raises:
        BrokerUnreachableError: no broker answered within `BROKER_TIMEOUT_SECONDS`.
    """
    wait_for_broker(settings.kafka, timeout_seconds=BROKER_TIMEOUT_SECONDS)
    try:
        ensure_topics(settings.kafka, settings.topics)
    except TopicError as error:
        log.warning("topics_not_created", problem=str(error), goes_on="with the topics that exist")
    return EventProducer(settings.kafka, settings.topics)
