"""Dead letters: what does not decode, with its original bytes and the reason, on a topic of its own."""

import contextlib
from base64 import b64decode
from enum import StrEnum
from typing import Self

import structlog
from kafka.errors import MessageSizeTooLargeError, RecordListTooLargeError
from pydantic import BaseModel, ConfigDict

from streams.connection import KafkaConnection
from streams.errors import DeliveryError
from streams.producer import EventProducer
from streams.topics import DEAD_LETTER_MAX_BYTES, Topics

log = structlog.get_logger(__name__)

# Room that headers of a record batch take beside the value, with some to spare.
_OVERHEAD_BYTES = 4096


class Reason(StrEnum):
    """Why a record was refused."""

    MALFORMED_JSON = "malformed_json"
    INVALID_SCHEMA = "invalid_schema"
    UNKNOWN_VERSION = "unknown_version"
    OVERSIZED = "oversized"
    WRONG_KEY = "wrong_key"
    UNKNOWN_TOPIC = "unknown_topic"


class DeadLetter(BaseModel):
    """A refused record: where it was, what it was, and why it was refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reason: Reason
    error: str
    topic: str
    partition: int
    offset: int
    key: str | None  # base64
    payload: str | None  # base64; shorter than `payload_bytes` says where the dead-letter topic could not take it whole
    payload_bytes: int
    first_seen_ts: int  # epoch ms

    def record_key(self) -> str:
        """Its key on Kafka: the same record refused again takes the place of its first letter."""
        return f"{self.topic}/{self.partition}/{self.offset}"

    def original(self) -> bytes | None:
        """The bytes of the refused record's value."""
        return None if self.payload is None else b64decode(self.payload)

    def without_payload(self) -> Self:
        """The letter alone; the bytes are still at topic, partition and offset for as long as these are kept."""
        return self.model_copy(update={"payload": None})


class DeadLetterWriter:
    """Writes dead letters; nothing counts as written before `flush` has returned.

    Args:
        connection: Where.
        topics: Which topic is for dead letters.

    Raises:
        BrokerUnreachableError: If no broker answers.
    """

    def __init__(self, connection: KafkaConnection, topics: Topics) -> None:
        self._topic = topics.dead_letters
        self._connection = connection
        self._producer = self._open()
        self._unconfirmed: list[DeadLetter] = []

    def write(self, letter: DeadLetter) -> None:
        """Hands a letter to the producer, which retries until the broker has it."""
        whole = len(letter.payload or "") + len(letter.key or "") < DEAD_LETTER_MAX_BYTES - _OVERHEAD_BYTES
        self._unconfirmed.append(letter)
        self._send(letter if whole else _shortened(letter, "it is too large"))

    def flush(self, timeout_seconds: float | None = 30.0) -> None:
        """Waits until the broker has confirmed every letter.

        Raises:
            DeliveryError: If it did not.
        """
        try:
            self._producer.flush(timeout_seconds)
        except DeliveryError as error:
            if not _too_large(error):
                raise
            self._write_singly(timeout_seconds)
        self._unconfirmed.clear()

    def close(self) -> None:
        """Flushes and lets go of the connection.

        Raises:
            DeliveryError: If a letter was not confirmed.
        """
        try:
            self.flush()
        finally:
            self._producer.close()

    def _write_singly(self, timeout_seconds: float | None) -> None:
        """Each letter over a new connection: a client to which one record was refused gives up all the others too."""
        for letter in self._unconfirmed:
            try:
                self._renew()
                self._send(letter)
                self._producer.flush(timeout_seconds)
            except DeliveryError as error:
                if not _too_large(error):
                    raise
                self._renew()
                self._send(_shortened(letter, "the topic takes no record of its size; raise its `max.message.bytes`"))
                self._producer.flush(timeout_seconds)

    def _renew(self) -> None:
        with contextlib.suppress(DeliveryError):  # already reported
            self._producer.close()
        self._producer = self._open()

    def _open(self) -> EventProducer:
        return EventProducer(self._connection, max_record_bytes=DEAD_LETTER_MAX_BYTES)

    def _send(self, letter: DeadLetter) -> None:
        self._producer.send_raw(self._topic, letter.record_key().encode(), letter.model_dump_json().encode())


def _too_large(error: DeliveryError) -> bool:
    """Whether it failed for nothing but the size of records."""
    causes = [failure.error for failure in error.failures]
    return bool(causes) and all(isinstance(c, MessageSizeTooLargeError | RecordListTooLargeError) for c in causes)


def _shortened(letter: DeadLetter, why: str) -> DeadLetter:
    log.warning("dead_letter_without_payload", letter=letter.record_key(), payload_bytes=letter.payload_bytes, why=why)
    return letter.without_payload()
