"""Errors of `streams`; catch `HeadwaterStreamError` for all of them.

HeadwaterStreamError
├── BrokerUnreachableError   no broker answered in the time allowed
├── TopicError               a topic is missing, could not be created, or cannot be read now
│   └── MissingTopicError    it does not exist
├── ConsumeError             the broker answers but does not return the records
│   └── UndecodableBatchError  a batch of records cannot be decompressed or is corrupt
├── DeliveryError            records were not confirmed by the broker
│   └── EventTooLargeError   one event is larger than a broker accepts
├── EmbeddedBrokerError      the embedded broker did not start, or its directory is taken
├── JoinStoreError           the file of waiting events is damaged
├── StateVersionError        kept state was written by another release
└── SecretError              the secret of the pseudonyms cannot be read or created
    └── SecretMismatchError  it differs from the deployment's
"""

import sqlite3
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streams.delivery import Delivery


def error_text(error: Exception) -> str:
    """Return the text of an error of the Kafka client; only its class if it has no message.

    >>> from kafka.errors import KafkaTimeoutError
    >>> error_text(KafkaTimeoutError(None)), error_text(KafkaTimeoutError("Request timed out"))
    ('KafkaTimeoutError', 'KafkaTimeoutError: Request timed out')
    """
    has_message = any(part not in (None, "") for part in error.args)
    return str(error) if has_message else type(error).__name__


class HeadwaterStreamError(Exception):
    """Base of all errors of `streams`."""


class BrokerUnreachableError(HeadwaterStreamError):
    """No broker of the connection answered in the time allowed.

    Attributes:
        reason: the error of the last attempt.
    """

    def __init__(self, bootstrap_servers: str, reason: str) -> None:
        super().__init__(
            f"no Kafka broker answers at {bootstrap_servers}: {reason}; "
            "check `bootstrap_servers`, the security settings, the broker's `advertised.listeners`, and that it runs"
        )
        self.reason = reason


class TopicError(HeadwaterStreamError):
    """A topic is missing, could not be created, or cannot be read now."""


class MissingTopicError(TopicError):
    """A topic does not exist."""


class ConsumeError(HeadwaterStreamError):
    """The broker answers but refuses the records, or they are corrupt; waiting does not help."""


class UndecodableBatchError(ConsumeError):
    """A batch of records cannot be decompressed, or is corrupt. Only its partition is affected.

    Attributes:
        topic: the name of the topic.
        partition: the number of the partition.
        offset: the next offset to read, which is in the batch.
        end: the first offset after the batch.
        codec: the name of the compression codec.
        reason: the error of the client or of the decompression library.
        remedy: the action that resolves it.
    """

    def __init__(
        self, topic: str, partition: int, offset: int, *, end: int, codec: str, reason: str, remedy: str
    ) -> None:
        super().__init__(
            f"the batch at {topic}/{partition}/{offset} (codec {codec}) cannot be decoded: {reason}; {remedy}"
        )
        self.topic, self.partition, self.offset, self.end = topic, partition, offset, end
        self.codec, self.reason, self.remedy = codec, reason, remedy


class DeliveryError(HeadwaterStreamError):
    """One or more records were not confirmed by the broker.

    Attributes:
        failures: the failed deliveries that the broker answered.
    """

    def __init__(self, problem: str, failures: "Sequence[Delivery]" = ()) -> None:
        super().__init__(problem)
        self.failures = failures


class EventTooLargeError(DeliveryError):
    """An event is larger than a broker accepts."""


class EmbeddedBrokerError(HeadwaterStreamError):
    """The embedded broker did not start, or its data directory is in use."""


class JoinStoreError(HeadwaterStreamError, sqlite3.DatabaseError):
    """The file of a join store is damaged."""


class StateVersionError(HeadwaterStreamError, ValueError):
    """Kept state was written by another release and cannot be loaded."""


class SecretError(HeadwaterStreamError):
    """The secret of the pseudonyms cannot be read or created."""


class SecretMismatchError(SecretError):
    """`privacy.secret` of this process differs from the deployment's."""
