"""One secret for all processes of a deployment: its fingerprint is on the control topic and in every manifest."""

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


def describe_mismatch(own: str, deployment: str | None, *, source: str) -> str | None:
    """Say in one sentence that a process has another secret than its deployment; None if it has the same.

    Args:
        own: Fingerprint of this process's secret.
        deployment: Fingerprint that the deployment uses; None where nothing is known of it.
        source: What says so.
    """
    if deployment is None or deployment == own:
        return None
    return (
        f"`privacy.secret` must be the same in all processes of a deployment, {source} has the fingerprint "
        f"{deployment[:8]}, this process {own[:8]}: it would know shoppers by other pseudonyms; give it the "
        "deployment's secret (HEADWATER_PRIVACY__SECRET, or the file of `privacy.secret_file`), or, to change the "
        "secret for good, see `headwater secret reset --help`"
    )


def published_fingerprint(settings: Settings) -> str | None:
    """Return the fingerprint that the control topic names; None if it names none.

    Raises:
        BrokerUnreachableError: No broker answers.
        TopicError: There is no control topic.
        ConsumeError: The broker does not give what is there.
    """
    found: str | None = None
    for record in read_to_end(settings.kafka, settings.topics.control):
        if record.key == SECRET.encode():
            command = parse_control(record)
            found = command.fingerprint if isinstance(command, Secret) else None
    return found


def manifest_fingerprint(settings: Settings) -> str | None:
    """Return the fingerprint in the newest manifest of the registry; None if there is none or it cannot be read."""
    try:
        registry = AdapterRegistry(settings.scorer.registry_url, api_key=settings.registry.plain_key())
        latest = registry.latest(settings.scenario)
    except (HeadwaterModelError, OSError):
        return None
    return None if latest is None else latest.secret_fingerprint


def require_same_secret(settings: Settings, pseudonymise: Pseudonymiser) -> bool:
    """Check that this process has the deployment's secret; return False if nothing says what that is.

    Args:
        settings: Which Kafka and which registry.
        pseudonymise: Has this process's secret.

    Raises:
        SecretMismatchError: The control topic or the registry's newest manifest names another.
    """
    found, source = published_fingerprint(settings), f"the topic {settings.topics.control}"
    if found is None:
        found, source = manifest_fingerprint(settings), f"the newest manifest of {settings.scorer.registry_url}"
    problem = describe_mismatch(pseudonymise.fingerprint(), found, source=source)
    if problem is not None:
        raise SecretMismatchError(problem)
    return found is not None


def publish_or_check(settings: Settings, pseudonymise: Pseudonymiser) -> None:
    """Check this process's secret against the control topic, and publish it there if it names none.

    Raises:
        SecretMismatchError: The topic names another.
        DeliveryError: The broker did not confirm the record.
    """
    own = pseudonymise.fingerprint()
    try:
        found = published_fingerprint(settings)
    except (TopicError, ConsumeError) as error:  # learning does not wait for the control topic
        log.warning("secret_not_compared", problem=str(error), remedy="headwater topics check; then start again")
        return
    problem = describe_mismatch(own, found, source=f"the topic {settings.topics.control}")
    if problem is not None:
        raise SecretMismatchError(problem)
    if found is None:
        with EventProducer(settings.kafka) as producer:
            producer.send_raw(settings.topics.control, *secret_record(own, ts_ms=time.time_ns() // 1_000_000))
            producer.flush(CONFIRM_SECONDS)


def reset(settings: Settings) -> None:
    """Delete the fingerprint from the control topic: the next updater that starts publishes its own."""
    with open_producer(settings) as producer:
        producer.send_raw(settings.topics.control, SECRET.encode(), None)
        producer.flush(CONFIRM_SECONDS)
