"""Check that all processes of a deployment use one secret, by its fingerprint on the control topic and in manifests."""

from __future__ import annotations

import time

import structlog

from peft_adapters.errors import HeadwaterModelError
from peft_adapters.registry.registry import AdapterRegistry
from services.producers import open_producer
from services.settings import Settings
from streams.control import SECRET, Secret, parse_control, secret_record
from streams.errors import ConsumeError, SecretMismatchError, TopicError
from streams.privacy import Pseudonymiser
from streams.producer import EventProducer
from streams.whole_topic import read_to_end

log = structlog.get_logger(__name__)

CONFIRM_SECONDS = 10.0


def describe_mismatch(fingerprint: str, deployment: str | None, *, source: str) -> str | None:
    """Describe in one sentence that a process has another secret than its deployment; return None if they match.

    Args:
        fingerprint: the fingerprint of this process's secret.
        deployment: the fingerprint that the deployment uses; None if it is not known.
        source: the place where that fingerprint was found.
    """
    if deployment is None or deployment == fingerprint:
        return None
    return (
        f"`privacy.secret` must be the same in all processes of a deployment, {source} has the fingerprint "
        f"{deployment[:8]}, this process {fingerprint[:8]}: it would know shoppers by other pseudonyms; give it the "
        "deployment's secret (HEADWATER_PRIVACY__SECRET, or the file of `privacy.secret_file`), or, to change the "
        "secret for good, see `headwater secret reset --help`"
    )


def published_fingerprint(settings: Settings) -> str | None:
    """Return the fingerprint on the control topic; None if there is none.

    Raises:
        BrokerUnreachableError: no broker answers.
        TopicError: the control topic does not exist.
        ConsumeError: the broker does not return the records.
    """
    fingerprint: str | None = None
    for record in read_to_end(settings.kafka, settings.topics.control):
        if record.key == SECRET.encode():
            command = parse_control(record)
            fingerprint = command.fingerprint if isinstance(command, Secret) else None
    return fingerprint


def manifest_fingerprint(settings: Settings) -> str | None:
    """Return the fingerprint in the newest manifest of the registry; None if there is none or it cannot be read."""
    try:
        registry = AdapterRegistry(settings.scorer.registry_url, api_key=settings.registry.plain_key())
        latest = registry.latest(settings.scenario)
    except (HeadwaterModelError, OSError):
        return None
    return None if latest is None else latest.secret_fingerprint


def require_same_secret(settings: Settings, pseudonymise: Pseudonymiser) -> bool:
    """Check that this process has the deployment's secret; return False if that secret is not known.

    Args:
        settings: the settings of Kafka and of the registry.
        pseudonymise: the pseudonymiser with this process's secret.

    Raises:
        SecretMismatchError: the control topic or the registry's newest manifest has another fingerprint.
    """
    fingerprint, source = published_fingerprint(settings), f"the topic {settings.topics.control}"
    if fingerprint is None:
        fingerprint, source = manifest_fingerprint(settings), f"the newest manifest of {settings.scorer.registry_url}"
    problem = describe_mismatch(pseudonymise.fingerprint(), fingerprint, source=source)
    if problem is not None:
        raise SecretMismatchError(problem)
    return fingerprint is not None


def publish_or_check(settings: Settings, pseudonymise: Pseudonymiser) -> None:
    """Check this process's secret against the control topic, and publish its fingerprint there if there is none.

    Raises:
        SecretMismatchError: the topic has another fingerprint.
        DeliveryError: the broker did not confirm the record.
    """
    fingerprint = pseudonymise.fingerprint()
    try:
        published = published_fingerprint(settings)
    except (TopicError, ConsumeError) as error:  # learning does not wait for the control topic
        log.warning("secret_not_compared", problem=str(error), remedy="headwater topics check; then start again")
        return
    problem = describe_mismatch(fingerprint, published, source=f"the topic {settings.topics.control}")
    if problem is not None:
        raise SecretMismatchError(problem)
    if published is None:
        with EventProducer(settings.kafka) as producer:
            producer.send_raw(settings.topics.control, *secret_record(fingerprint, ts_ms=time.time_ns() // 1_000_000))
            producer.flush(CONFIRM_SECONDS)


def reset(settings: Settings) -> None:
    """Delete the fingerprint from the control topic: the next updater that starts publishes its own."""
    with open_producer(settings) as producer:
        producer.send_raw(settings.topics.control, SECRET.encode(), None)
        producer.flush(CONFIRM_SECONDS)
