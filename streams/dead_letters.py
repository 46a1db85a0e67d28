"""Dead letters: records that cannot be decoded, with their original bytes and the reason, on a topic of their own."""

import contextlib
import time
from base64 import b64decode, b64encode
from collections.abc import Sequence
from enum import StrEnum
from typing import Self

import structlog
from kafka.errors import MessageSizeTooLargeError, RecordListTooLargeError
from pydantic import BaseModel, ConfigDict

from streams.connection import KafkaConnection
from streams.errors import BrokerUnreachableError, DeliveryError, EventTooLargeError
from streams.events import Item
from streams.offsets import partition_name
from streams.privacy import PayloadPolicy
from streams.producer import EventProducer
from streams.redaction import Pseudonymise, redact_error, redact_json, redact_key
from streams.topics import DEAD_LETTER_MAX_BYTES, Topics

log = structlog.get_logger(__name__)

# Upper bound of the headers of a record batch.
_OVERHEAD_BYTES = 4096
_CHUNK_BYTES = 8 * 1024 * 1024  # sent, then confirmed; less than the bytes at which a producer blocks its caller
_MAX_WAITING_BYTES = 64 * 1024 * 1024
_REDUCE_TIMEOUT_SECONDS = 10.0
_REST_BYTES = 512  # approximate size of a letter without key, payload and error
_METADATA_TIMEOUT_SECONDS = 5.0


class Reason(StrEnum):
    """The reason why a record was rejected."""

    MALFORMED_JSON = "malformed_json"
    INVALID_SCHEMA = "invalid_schema"
    UNKNOWN_VERSION = "unknown_version"
    OVERSIZED = "oversized"
    WRONG_KEY = "wrong_key"
    UNKNOWN_TOPIC = "unknown_topic"
    WRONG_VECTOR = "wrong_vector"
    FROM_THE_FUTURE = "from_the_future"


class DeadLetter(BaseModel):
    """A rejected record: its place in the log, its content, and the reason."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reason: Reason
    error: str
    topic: str
    partition: int
    offset: int
    key: str | None  # base64
    payload: str | None  # base64; None with `payload_bytes` above 0: too large, or dropped by policy
    payload_bytes: int
    first_seen_ts: int  # epoch ms
    payload_policy: PayloadPolicy = "keep"
    replayed_ts: int | None = None  # epoch ms, when it was last replayed
    line: str | None = None  # path to the rejected line, which is `payload`; the rest of its record was accepted

    def record_key(self) -> str:
        """Return the key on Kafka: a record or line that is rejected again replaces its first letter."""
        record = f"{partition_name(self.topic, self.partition)}/{self.offset}"
        return record if self.line is None else f"{record}/{self.line}"

    def original(self) -> bytes | None:
        """Return the value of the rejected record."""
        return None if self.payload is None else b64decode(self.payload)

    def original_key(self) -> bytes | None:
        """Return the key of the rejected record."""
        return None if self.key is None else b64decode(self.key)

    def is_complete(self) -> bool:
        """Return whether the letter contains the rejected record unchanged."""
        return self.payload_policy == "keep" and (self.payload is not None or self.payload_bytes == 0)

    def with_record(self, key: bytes | None, payload: bytes | None) -> Self:
        """Return the letter with another key and payload."""
        return self.model_copy(update={"key": _base64(key), "payload": _base64(payload)})

    def without_payload(self) -> Self:
        """Return the letter without payload; the record stays in the log until retention deletes it."""
        return self.model_copy(update={"payload": None})


class DeadLetterWriter:
    """A writer of dead letters. A letter is written once `flush` has returned; until then it waits in memory.

    Args:
        connection: the brokers to write to.
        topics: the names of the topics.
        policy: the part of a record that its letter contains: `keep` all of it; `redact` the record with pseudonyms
            in place of ids in key and payload, without a payload that is not JSON; `drop` neither key nor payload.
        pseudonymise: replaces an id by its pseudonym; required for `redact`.

    Raises:
        BrokerUnreachableError: if no broker answers.
        ValueError: if the policy is `redact` and `pseudonymise` is missing.
    """

    def __init__(
        self,
        connection: KafkaConnection,
        topics: Topics,
        *,
        policy: PayloadPolicy = "keep",
        pseudonymise: Pseudonymise | None = None,
    ) -> None:
        self._connection, self._topics = connection, topics
        self._policy = _Policy(policy, topics, pseudonymise)
        self._waiting: list[DeadLetter] = []
        self._waiting_bytes = 0
        self._producer: EventProducer | None = self._open()

    @property
    def pending(self) -> int:
        """The number of letters that the broker has not confirmed."""
        return len(self._waiting)

    def write(self, letter: DeadLetter) -> None:
        """Queue a letter for the next `flush`; flush now if too many wait.

        If the broker is unreachable, the waiting letters drop their payloads first: these are still in the log.

        Raises:
            DeliveryError: if too many letters wait even so. The letter is among them.
        """
        letter = self._policy.apply(letter)
        if _size_bytes(letter) >= DEAD_LETTER_MAX_BYTES - _OVERHEAD_BYTES:
            letter = _shorten(letter, "it is too large")
        self._waiting.append(letter)
        self._waiting_bytes += _size_bytes(letter)
        if self._waiting_bytes > _MAX_WAITING_BYTES:
            self._reduce_waiting()

    def flush(self, timeout_seconds: float | None = 30.0) -> None:
        """Send the waiting letters, in order, and wait until the broker has confirmed each.

        Letters that were not confirmed keep waiting: the next flush sends them again over a new connection.

        Args:
            timeout_seconds: the longest time to wait for confirmations. The detection of an unreachable broker or a
                missing topic may take some seconds more.

        Raises:
            DeliveryError: if a letter was not confirmed.
        """
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while self._waiting:
            self._deliver(self._chunk(), deadline)

    def close(self, timeout_seconds: float | None = 30.0) -> None:
        """Flush and close the connection.

        Args:
            timeout_seconds: the longest time to wait, as for `flush`.

        Raises:
            DeliveryError: if a letter was not confirmed.
        """
        try:
            self.flush(timeout_seconds)
        finally:
            self._close_producer()

    def _reduce_waiting(self) -> None:
        try:
            self.flush(_REDUCE_TIMEOUT_SECONDS)
        except DeliveryError:
            log.warning("dead_letters_without_payload", count=self.pending, why="too many letters wait for the broker")
            self._waiting = [letter.without_payload() for letter in self._waiting]
            self._waiting_bytes = sum(map(_size_bytes, self._waiting))
            if self._waiting_bytes > _MAX_WAITING_BYTES:
                raise

    def _chunk(self) -> list[DeadLetter]:
        """Return the first waiting letters, at least one."""
        size_bytes = 0
        for count, letter in enumerate(self._waiting):
            size_bytes += _size_bytes(letter)
            if count and size_bytes > _CHUNK_BYTES:
                return self._waiting[:count]
        return list(self._waiting)

    def _deliver(self, letters: Sequence[DeadLetter], deadline: float | None) -> None:
        """Deliver the first waiting letters: 1. send, 2. wait for confirmation, 3. remove from the queue.

        If one record is rejected, the client fails all others too: then each letter is sent on its own.
        """
        try:
            self._send(letters)
            self._confirm(deadline)
        except (DeliveryError, BrokerUnreachableError) as error:
            self._close_producer()
            if not _too_large(error) or (len(letters) == 1 and letters[0].payload is None):
                raise _as_delivery_error(error, self.pending) from error
            self._deliver_singly(letters, deadline)
        else:
            self._waiting_bytes -= sum(map(_size_bytes, self._waiting[: len(letters)]))
            del self._waiting[: len(letters)]

    def _deliver_singly(self, letters: Sequence[DeadLetter], deadline: float | None) -> None:
        if len(letters) == 1:
            letters = [_shorten(letters[0], "the topic takes no record of its size; raise its `max.message.bytes`")]
        for letter in letters:
            self._deliver([letter], deadline)

    def _send(self, letters: Sequence[DeadLetter]) -> None:
        self._producer = self._producer or self._open()
        for letter in letters:
            key, value = letter.record_key().encode(), letter.model_dump_json().encode()
            self._producer.send_raw(self._topics.dead_letters, key, value)

    def _confirm(self, deadline: float | None) -> None:
        if self._producer is not None:
            self._producer.flush(None if deadline is None else max(0.0, deadline - time.monotonic()))

    def _close_producer(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            with contextlib.suppress(DeliveryError):  # already reported; the letters keep waiting
                producer.close(0)

    def _open(self) -> EventProducer:
        return EventProducer(
            self._connection,
            max_record_bytes=DEAD_LETTER_MAX_BYTES,
            metadata_timeout_seconds=_METADATA_TIMEOUT_SECONDS,
        )


def redact_letter(letter: DeadLetter, topics: Topics, pseudonymise: Pseudonymise) -> DeadLetter:
    """Return a complete letter with pseudonyms in place of personal ids; the key of an item stays.

    Args:
        letter: the letter of the rejected record.
        topics: the names of the topics.
        pseudonymise: replaces an id by its pseudonym.
    """
    key, payload = letter.original_key(), letter.original()
    user = None if topics.kind_of(letter.topic) == Item.KIND else key
    redacted_payload = None if payload is None else redact_json(payload, pseudonymise, key=user)
    if user is not None:
        key = redact_key(user, pseudonymise)
    error = redact_error(letter.error, key=letter.original_key(), payload=payload)
    return letter.with_record(key, redacted_payload).model_copy(update={"error": error, "payload_policy": "redact"})


class _Policy:
    """The policy for the content of letters."""

    def __init__(self, policy: PayloadPolicy, topics: Topics, pseudonymise: Pseudonymise | None) -> None:
        if policy == "redact" and pseudonymise is None:
            raise ValueError("`pseudonymise` must be given with the policy redact, got None")
        self._policy, self._topics, self._pseudonymise = policy, topics, pseudonymise

    def apply(self, letter: DeadLetter) -> DeadLetter:
        """Return the letter under the policy; a letter that was under a policy already stays unchanged."""
        if self._policy == "keep" or letter.payload_policy != "keep":
            return letter
        if self._policy == "redact" and self._pseudonymise is not None:
            return redact_letter(letter, self._topics, self._pseudonymise)
        error = redact_error(letter.error, key=letter.original_key(), payload=letter.original())
        return letter.model_copy(update={"key": None, "payload": None, "error": error, "payload_policy": "drop"})


def _base64(value: bytes | None) -> str | None:
    return None if value is None else b64encode(value).decode()


def _size_bytes(letter: DeadLetter) -> int:
    return len(letter.payload or "") + len(letter.key or "") + len(letter.error) + _REST_BYTES


def _too_large(error: Exception) -> bool:
    """Return whether the size of a record caused the failure; the others fail with it, some with other errors."""
    causes = [failure.error for failure in error.failures] if isinstance(error, DeliveryError) else []
    return isinstance(error, EventTooLargeError) or any(
        isinstance(cause, MessageSizeTooLargeError | RecordListTooLargeError) for cause in causes
    )


def _as_delivery_error(error: DeliveryError | BrokerUnreachableError, pending: int) -> DeliveryError:
    failures = error.failures if isinstance(error, DeliveryError) else ()
    return DeliveryError(f"{pending} dead letters not confirmed; they are kept and sent again: {error}", failures)


def _shorten(letter: DeadLetter, why: str) -> DeadLetter:
    log.warning("dead_letter_without_payload", letter=letter.record_key(), payload_bytes=letter.payload_bytes, why=why)
    return letter.without_payload()
