"""Dead letters: what does not decode, with its original bytes and the reason, on a topic of its own."""

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

# Room that headers of a record batch take beside the value, with some to spare.
_OVERHEAD_BYTES = 4096
_CHUNK_BYTES = 8 * 1024 * 1024  # sent, then confirmed: less than a producer holds before it makes its caller wait
_MAX_WAITING_BYTES = 64 * 1024 * 1024
_ROOM_TIMEOUT_SECONDS = 10.0
_REST_BYTES = 512  # what a letter takes beside key, payload and error, about
_METADATA_TIMEOUT_SECONDS = 5.0


class Reason(StrEnum):
    """Why a record was refused."""

    MALFORMED_JSON = "malformed_json"
    INVALID_SCHEMA = "invalid_schema"
    UNKNOWN_VERSION = "unknown_version"
    OVERSIZED = "oversized"
    WRONG_KEY = "wrong_key"
    UNKNOWN_TOPIC = "unknown_topic"
    WRONG_VECTOR = "wrong_vector"
    FROM_THE_FUTURE = "from_the_future"


class DeadLetter(BaseModel):
    """A refused record: where it was, what it was, and why it was refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reason: Reason
    error: str
    topic: str
    partition: int
    offset: int
    key: str | None  # base64
    payload: str | None  # base64; None where `payload_bytes` is not 0: too large for its topic, or not kept by policy
    payload_bytes: int
    first_seen_ts: int  # epoch ms
    payload_policy: PayloadPolicy = "keep"
    replayed_ts: int | None = None  # epoch ms; when it was last put back
    line: str | None = None  # path to the refused line; the rest of its record was taken, `payload` is the line

    def record_key(self) -> str:
        """Its key on Kafka: the same record, or line of it, refused again takes the place of its first letter."""
        record = f"{partition_name(self.topic, self.partition)}/{self.offset}"
        return record if self.line is None else f"{record}/{self.line}"

    def original(self) -> bytes | None:
        """The bytes of the refused record's value."""
        return None if self.payload is None else b64decode(self.payload)

    def original_key(self) -> bytes | None:
        """The bytes of the refused record's key."""
        return None if self.key is None else b64decode(self.key)

    def is_complete(self) -> bool:
        """Whether it holds the refused record as it was."""
        return self.payload_policy == "keep" and (self.payload is not None or self.payload_bytes == 0)

    def with_record(self, key: bytes | None, payload: bytes | None) -> Self:
        """The letter with other key and payload."""
        return self.model_copy(update={"key": _base64(key), "payload": _base64(payload)})

    def without_payload(self) -> Self:
        """The letter alone; the bytes are still at topic, partition and offset for as long as these are kept."""
        return self.model_copy(update={"payload": None})


class DeadLetterWriter:
    """Writes dead letters. Nothing counts as written before `flush` has returned; until then every letter waits here.

    Args:
        connection: Where.
        topics: Which topic is for dead letters.
        policy: What a letter keeps of its record: `keep` all of it; `redact` puts pseudonyms in place of the ids in key
            and payload, and keeps no payload that is not JSON; `drop` keeps neither key nor payload.
        pseudonymise: Hides an id; needed to redact.

    Raises:
        BrokerUnreachableError: If no broker answers.
        ValueError: If there is no way to redact.
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
        """How many letters wait for the broker's confirmation."""
        return len(self._waiting)

    def write(self, letter: DeadLetter) -> None:
        """Takes a letter, to be sent by the next `flush`, or now if too many wait.

        With the broker away those that wait give up their payloads first: these are still in the log.

        Raises:
            DeliveryError: If too many wait even so. The letter is among them.
        """
        kept = self._policy.applied(letter)
        if _size_bytes(kept) >= DEAD_LETTER_MAX_BYTES - _OVERHEAD_BYTES:
            kept = _shortened(kept, "it is too large")
        self._waiting.append(kept)
        self._waiting_bytes += _size_bytes(kept)
        if self._waiting_bytes > _MAX_WAITING_BYTES:
            self._make_room()

    def flush(self, timeout_seconds: float | None = 30.0) -> None:
        """Sends the letters that wait, in order, and waits until the broker has confirmed each.

        What was not confirmed goes on waiting: the next flush sends it again, over a new connection.

        Args:
            timeout_seconds: How long to wait for confirmations. To find that no broker answers, or that the topic is
                not there, may take some seconds more.

        Raises:
            DeliveryError: If a letter was not confirmed.
        """
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while self._waiting:
            self._deliver(self._chunk(), deadline)

    def close(self, timeout_seconds: float | None = 30.0) -> None:
        """Flushes and lets go of the connection.

        Args:
            timeout_seconds: As with `flush`.

        Raises:
            DeliveryError: If a letter was not confirmed.
        """
        try:
            self.flush(timeout_seconds)
        finally:
            self._let_go()

    def _make_room(self) -> None:
        try:
            self.flush(_ROOM_TIMEOUT_SECONDS)
        except DeliveryError:
            log.warning("dead_letters_without_payload", count=self.pending, why="too many letters wait for the broker")
            self._waiting = [letter.without_payload() for letter in self._waiting]
            self._waiting_bytes = sum(map(_size_bytes, self._waiting))
            if self._waiting_bytes > _MAX_WAITING_BYTES:
                raise

    def _chunk(self) -> list[DeadLetter]:
        """The first that wait, at least one."""
        size_bytes = 0
        for count, letter in enumerate(self._waiting):
            size_bytes += _size_bytes(letter)
            if count and size_bytes > _CHUNK_BYTES:
                return self._waiting[:count]
        return list(self._waiting)

    def _deliver(self, letters: Sequence[DeadLetter], deadline: float | None) -> None:
        """Has the broker confirm letters, which are the first that wait: 1. sent, 2. confirmed, 3. no longer waiting.

        A client to which one record was refused gives up all the others too: then each goes on its own.
        """
        try:
            self._send(letters)
            self._confirm(deadline)
        except (DeliveryError, BrokerUnreachableError) as error:
            self._let_go()
            if not _too_large(error) or (len(letters) == 1 and letters[0].payload is None):
                raise _as_delivery_error(error, self.pending) from error
            self._deliver_singly(letters, deadline)
        else:
            self._waiting_bytes -= sum(map(_size_bytes, self._waiting[: len(letters)]))
            del self._waiting[: len(letters)]

    def _deliver_singly(self, letters: Sequence[DeadLetter], deadline: float | None) -> None:
        if len(letters) == 1:
            letters = [_shortened(letters[0], "the topic takes no record of its size; raise its `max.message.bytes`")]
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

    def _let_go(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            with contextlib.suppress(DeliveryError):  # already reported; the letters still wait
                producer.close(0)

    def _open(self) -> EventProducer:
        return EventProducer(
            self._connection,
            max_record_bytes=DEAD_LETTER_MAX_BYTES,
            metadata_timeout_seconds=_METADATA_TIMEOUT_SECONDS,
        )


def redact_letter(letter: DeadLetter, topics: Topics, pseudonymise: Pseudonymise) -> DeadLetter:
    """A whole letter without the ids of people; the key of an item is nobody's, and stays.

    Args:
        letter: As it was refused.
        topics: Which topic is the items'.
        pseudonymise: Hides an id.
    """
    key, payload = letter.original_key(), letter.original()
    user = None if topics.kind_of(letter.topic) == Item.KIND else key
    redacted_payload = None if payload is None else redact_json(payload, pseudonymise, key=user)
    if user is not None:
        key = redact_key(user, pseudonymise)
    error = redact_error(letter.error, key=letter.original_key(), payload=payload)
    return letter.with_record(key, redacted_payload).model_copy(update={"error": error, "payload_policy": "redact"})


class _Policy:
    """What a letter keeps of its record."""

    def __init__(self, policy: PayloadPolicy, topics: Topics, pseudonymise: Pseudonymise | None) -> None:
        if policy == "redact" and pseudonymise is None:
            raise ValueError("`pseudonymise` must be given with the policy redact, got None")
        self._policy, self._topics, self._pseudonymise = policy, topics, pseudonymise

    def applied(self, letter: DeadLetter) -> DeadLetter:
        """The letter as it may be kept; one that was under a policy already stays as it is."""
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
    """Whether the size of a record is why it failed; the others then fail with it, some for reasons of their own."""
    causes = [failure.error for failure in error.failures] if isinstance(error, DeliveryError) else []
    return isinstance(error, EventTooLargeError) or any(
        isinstance(cause, MessageSizeTooLargeError | RecordListTooLargeError) for cause in causes
    )


def _as_delivery_error(error: DeliveryError | BrokerUnreachableError, pending: int) -> DeliveryError:
    failures = error.failures if isinstance(error, DeliveryError) else ()
    return DeliveryError(f"{pending} dead letters not confirmed, they wait to be sent again: {error}", failures)


def _shortened(letter: DeadLetter, why: str) -> DeadLetter:
    log.warning("dead_letter_without_payload", letter=letter.record_key(), payload_bytes=letter.payload_bytes, why=why)
    return letter.without_payload()
