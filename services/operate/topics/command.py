"""Creation of a deployment's topics, and checks of their configuration."""

import json
from collections.abc import Iterable, Iterator

from services.producers import BROKER_TIMEOUT_SECONDS
from services.settings import Settings
from streams.connection import wait_for_broker
from streams.topic_check import TopicState, check_topics
from streams.topic_creation import BROKER_DEFAULT, ensure_topics

UNKNOWN = "?"


def create(settings: Settings, *, partitions: int, replication_factor: int | None) -> list[str]:
    """Create the topics that are missing, and return their names. Topics that exist stay as they are.

    Args:
        settings: the settings with brokers and topics.
        partitions: the number of partitions of each new topic.
        replication_factor: the number of replicas of each new topic; None takes the broker's default.

    Raises:
        BrokerUnreachableError: no broker answered within `BROKER_TIMEOUT_SECONDS`.
        TopicError: the broker refuses to create a topic.
    """
    wait_for_broker(settings.kafka, timeout_seconds=BROKER_TIMEOUT_SECONDS)
    return ensure_topics(
        settings.kafka, settings.topics, partitions=partitions, replication_factor=replication_factor or BROKER_DEFAULT
    )


def check(settings: Settings) -> list[TopicState]:
    """Return the state of all topics, with their problems.

    Args:
        settings: the settings with brokers and topics.

    Raises:
        BrokerUnreachableError: no broker answered within `BROKER_TIMEOUT_SECONDS`.
        TopicError: the broker does not describe its topics.
    """
    wait_for_broker(settings.kafka, timeout_seconds=BROKER_TIMEOUT_SECONDS)
    return check_topics(settings.kafka, settings.topics)


def table(states: Iterable[TopicState]) -> Iterator[str]:
    """Yield one line per topic."""
    for state in states:
        yield f"{state.name}\t{_description(state)}\t{'; '.join(state.problems) or 'ok'}"


def as_json(states: Iterable[TopicState]) -> str:
    """Return the topics as one JSON document."""
    return json.dumps(
        [
            {
                "topic": state.name,
                "exists": state.partitions is not None,
                "partitions": state.partitions,
                "replication_factor": state.replication_factor,
                "settings": None if state.settings is None else dict(state.settings),
                "problems": list(state.problems),
            }
            for state in states
        ],
        indent=2,
    )


def _description(state: TopicState) -> str:
    if state.partitions is None:
        return "missing"
    policy = UNKNOWN if state.settings is None else state.settings.get("cleanup.policy", UNKNOWN)
    return f"partitions {state.partitions}, replication {state.replication_factor}, cleanup.policy {policy}"
