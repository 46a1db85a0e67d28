"""Announcement of rollouts on the adapters topic, so that workers with Kafka learn of them before their next poll."""

import structlog

from peft_adapters.registry.rollout import Rollout, rollout_bytes, rollout_key
from services.settings import Settings
from streams.connection import wait_for_broker
from streams.errors import HeadwaterStreamError
from streams.producer import EventProducer
from streams.topic_creation import ensure_topics

TIMEOUT_SECONDS = 5.0

log = structlog.get_logger(__name__)


def announce(settings: Settings, rollout: Rollout) -> bool:
    """Publish a rollout on the adapters topic; return whether the broker confirmed it.

    Without Kafka, workers still learn of the rollout by polling the registry.

    Args:
        settings: the settings with brokers, topics and `registry.announce_rollouts`.
        rollout: the rollout in the registry.
    """
    if not settings.registry.announce_rollouts:
        return False
    try:
        wait_for_broker(settings.kafka, timeout_seconds=TIMEOUT_SECONDS)
        ensure_topics(settings.kafka, settings.topics)
        with EventProducer(settings.kafka, settings.topics) as producer:
            producer.send_raw(settings.topics.adapters, rollout_key(rollout.scenario), rollout_bytes(rollout))
            producer.flush(TIMEOUT_SECONDS)
    except HeadwaterStreamError as error:
        log.warning(
            "rollout_not_announced",
            scenario=rollout.scenario,
            revision=rollout.revision,
            problem=str(error),
            remedy="workers learn of it from the registry; without Kafka set `registry.announce_rollouts` to false",
        )
        return False
    return True
