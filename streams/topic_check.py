"""Check of the topics of a deployment against the configuration that they need."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import KafkaError, for_code

from streams.connection import KafkaConnection, open_client
from streams.errors import TopicError
from streams.topics import CREATE_COMMAND, TopicNeeds, Topics

UNKNOWN_TOPIC = 3  # Kafka's error code UNKNOWN_TOPIC_OR_PARTITION
SETTINGS = ("cleanup.policy", "max.message.bytes", "retention.ms", "retention.bytes")
UNLIMITED = "-1"
DAY_MS = 86_400_000

Settings = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class TopicState:
    """A topic as the broker describes it.

    Attributes:
        name: the name of the topic.
        partitions: the number of partitions; None if the topic does not exist.
        replication_factor: the replicas of the partition with the fewest; None if the topic does not exist.
        settings: the part of its configuration that Headwater depends on; None if it may not be described.
        problems: one sentence for each difference from the needed configuration.
    """

    name: str
    partitions: int | None
    replication_factor: int | None
    settings: Settings | None
    problems: tuple[str, ...]


def check_topics(connection: KafkaConnection, topics: Topics) -> list[TopicState]:
    """Describe every topic that is read or written, with its problems.

    Topics in other dialects must exist. Topics with a catalogue must not lose their items.

    Args:
        connection: the brokers to ask.
        topics: the names of the topics.

    Raises:
        BrokerUnreachableError: if no broker answers.
        TopicError: if the broker does not describe its topics.
    """
    needs: dict[str, TopicNeeds | None] = {**topics.needs(), **dict.fromkeys(topics.dialects)}
    with_items = set(topics.catalogues())
    described, settings = _describe(connection, list(needs))
    return [_state(name, described[name], settings[name], need, name in with_items) for name, need in needs.items()]


def catalogue_problems(connection: KafkaConnection, topics: Topics) -> list[str]:
    """Return the problems of topics that lose items of the catalogue; topics that may not be described are skipped.

    Raises:
        BrokerUnreachableError: if no broker answers.
        TopicError: if the broker does not describe its topics.
    """
    names = topics.catalogues()
    _, settings = _describe(connection, names)
    problems = [_loses_items(name, settings[name], topics.needs().get(name)) for name in names]
    return [problem for problem in problems if problem is not None]


def _describe(
    connection: KafkaConnection, names: Sequence[str]
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, str] | None]]:
    """Return the description and the configuration of each topic."""
    resources = [ConfigResource(ConfigResourceType.TOPIC, name, list(SETTINGS)) for name in names]
    admin = open_client(KafkaAdminClient, connection)
    try:
        described = {topic["name"]: topic for topic in admin.describe_topics(list(names))}
        configs = admin.describe_configs(resources, config_filter="all")["topic"]
    except KafkaError as error:
        raise TopicError(f"topics {list(names)} could not be described: {error}; check the rights on them") from error
    finally:
        admin.close()
    # Without the right to describe a topic, the client returns no settings instead of an error.
    settings = {name: {key: entry["value"] for key, entry in configs.get(name, {}).items()} or None for name in names}
    return described, settings


def _state(
    name: str, described: Mapping[str, Any], settings: Settings | None, needs: TopicNeeds | None, has_items: bool
) -> TopicState:
    if described["error_code"]:
        return TopicState(name, None, None, None, (_absence(described["error_code"], ours=needs is not None),))
    partitions = described["partitions"]
    problems = [
        f"partition {partition['partition_index']} has no leader; start the brokers that hold it"
        for partition in partitions
        if partition["leader_id"] < 0
    ]
    wrong = _loses_items(name, settings, needs) if has_items else _wrong_policy(name, settings, needs)
    problems += [problem for problem in (wrong, _too_small(name, settings, needs)) if problem is not None]
    replicas = min((len(partition["replica_nodes"]) for partition in partitions), default=0)
    return TopicState(name, len(partitions), replicas, settings, tuple(problems))


def _absence(error_code: int, *, ours: bool) -> str:
    if error_code != UNKNOWN_TOPIC:
        return f"cannot be described: {for_code(error_code).__name__}; ask for the right to describe it"
    return f"does not exist; run `{CREATE_COMMAND}`" if ours else "does not exist; its producer has to create it"


def _wrong_policy(name: str, settings: Settings | None, needs: TopicNeeds | None) -> str | None:
    policy = (settings or {}).get("cleanup.policy")
    if needs is None or policy is None or _policies(policy) == _policies(needs.cleanup_policy):
        return None
    remedy = _alter(name, f"cleanup.policy=[{needs.cleanup_policy}]")
    return f"`cleanup.policy` must be {needs.cleanup_policy}, got {policy}; {remedy}"


def _too_small(name: str, settings: Settings | None, needs: TopicNeeds | None) -> str | None:
    most = (settings or {}).get("max.message.bytes")
    if needs is None or most is None or int(most) >= needs.max_message_bytes:
        return None
    remedy = _alter(name, f"max.message.bytes={needs.max_message_bytes}")
    return f"`max.message.bytes` must be at least {needs.max_message_bytes}, got {most}; {remedy}"


def _loses_items(name: str, settings: Settings | None, needs: TopicNeeds | None) -> str | None:
    """Return the problem of a topic that loses items. Our own must be compacted; others may keep all records."""
    if settings is None or "cleanup.policy" not in settings:
        return None
    policies = _policies(settings["cleanup.policy"])
    if policies == {"compact"}:
        return None
    if needs is None and settings.get("retention.ms") == settings.get("retention.bytes") == UNLIMITED:
        return None
    kept = settings.get("retention.ms", "")
    after = f" after {int(kept) / DAY_MS:g} days" if kept.isdecimal() else ""
    remedy = _alter(name, "cleanup.policy=compact" if needs is not None else "retention.ms=-1,retention.bytes=-1")
    return (
        f"topic {name!r} holds items, so its `cleanup.policy` must be compact, got {settings['cleanup.policy']}: "
        f"items are deleted{after}; {remedy}"
    )


def _policies(text: str) -> set[str]:
    return {policy.strip() for policy in text.split(",")}


def _alter(name: str, setting: str) -> str:
    return f"run kafka-configs.sh --alter --entity-type topics --entity-name {name} --add-config {setting}"
