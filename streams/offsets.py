"""Offsets by topic and partition, and their text form in journals, checkpoints, manifests and Redis."""

from collections.abc import Mapping

TopicPartition = tuple[str, int]
Offsets = dict[TopicPartition, int]  # the next offset to read


def partition_name(topic: str, partition: int) -> str:
    """Return the text form of a partition.

    >>> partition_name("shop.clicks", 3)
    'shop.clicks/3'
    """
    return f"{topic}/{partition}"


def parse_partition_name(name: str) -> TopicPartition:
    """Return the topic and partition that `partition_name` encoded.

    Raises:
        ValueError: if the text is not the name of a partition.

    >>> parse_partition_name("shop.clicks/3")
    ('shop.clicks', 3)
    """
    topic, slash, partition = name.rpartition("/")
    if not slash:
        raise ValueError(f"a partition must be given as topic/partition, got {name!r}")
    return topic, int(partition)


def is_partition_name(name: str) -> bool:
    """Return whether a text names a partition.

    >>> is_partition_name("shop.clicks/3"), is_partition_name("shop.clicks"), is_partition_name("shop.clicks/x")
    (True, False, False)
    """
    _, slash, partition = name.rpartition("/")
    return bool(slash) and partition.isdigit()


def topic_of(name: str) -> str:
    """Return the topic of a name that is either a topic or a partition; topics contain no slash.

    >>> topic_of("shop.clicks"), topic_of("shop.clicks/3")
    ('shop.clicks', 'shop.clicks')
    """
    return name.partition("/")[0]


def encode_offsets(offsets: Mapping[TopicPartition, int]) -> dict[str, int]:
    """Return offsets keyed by `topic/partition`, sorted by topic and partition.

    >>> encode_offsets({("shop.clicks", 10): 7, ("shop.clicks", 2): 5})
    {'shop.clicks/2': 5, 'shop.clicks/10': 7}
    """
    return {partition_name(*at): offset for at, offset in sorted(offsets.items())}


def decode_offsets(encoded: Mapping[str, int]) -> Offsets:
    """Return the offsets that `encode_offsets` encoded.

    >>> decode_offsets({"shop.clicks/2": 5})
    {('shop.clicks', 2): 5}
    """
    return {parse_partition_name(name): offset for name, offset in encoded.items()}
