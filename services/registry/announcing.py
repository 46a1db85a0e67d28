"""Telling a rollout on the topic of the adapters, so that workers with Kafka hear of it before they look."""

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
    """Tell it; whether the broker took it. Without Kafka workers hear of it from the registry all the same.

    Args:
        settings: which Kafka, which topics, and whether at all.
        rollout: as it is in the registry.
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
            remedy="workers hear of it from the registry; without Kafka set `registry.announce_rollouts` to false",
        )
        return False
    return True
