"""Reads the dead letters: the newest of each key, up to the end of their topic."""

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass

import structlog
from pydantic import ValidationError

from services.operate.dead_letters.errors import LetterError
from services.producers import BROKER_TIMEOUT_SECONDS
from services.settings import Settings
from streams.connection import wait_for_broker
from streams.dead_letters import DeadLetter, Reason
from streams.record import Record
from streams.whole_topic import read_to_end

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which letters.

    Attributes:
        reason: Only those refused for it.
        topic: Only those refused on it.
        since_ms: Only those first seen then or later.
        until_ms: Only those first seen before.
        limit: So many at most, the oldest first.
    """

    reason: Reason | None = None
    topic: str | None = None
    since_ms: int | None = None
    until_ms: int | None = None
    limit: int | None = None

    def takes(self, letter: DeadLetter) -> bool:
        """Whether a letter is one of them, their number aside."""
        return (
            self.reason in (None, letter.reason)
            and self.topic in (None, letter.topic)
            and (self.since_ms is None or letter.first_seen_ts >= self.since_ms)
            and (self.until_ms is None or letter.first_seen_ts < self.until_ms)
        )


@dataclass(frozen=True, slots=True)
class Found:
    """The letters on the topic that are of a selection.

    Attributes:
        letters: In the order in which they were first seen, as many as the selection allows.
        by_reason: How many there are of each reason, those beyond the limit too.
        unreadable: Records on the topic that are no letters.
    """

    letters: list[DeadLetter]
    by_reason: Counter[str]
    unreadable: int


def reason_named(text: str) -> Reason:
    """The reason of a name.

    Raises:
        LetterError: There is none of it.
    """
    try:
        return Reason(text)
    except ValueError:
        raise LetterError(f"a reason must be one of {', '.join(Reason)}, got {text!r}") from None


def read(settings: Settings, selection: Selection) -> Found:
    """Reads the letters of a selection, without their payloads, which would fill the memory.

    Args:
        settings: Which Kafka, which topics.
        selection: Which letters.

    Raises:
        BrokerUnreachableError: No broker answers.
        TopicError: The topic does not exist.
        ConsumeError: The broker does not give what is there.
    """
    newest = _newest(settings, selection.takes, payloads=False)
    letters = _oldest_first(newest)
    by_reason = Counter(str(letter.reason) for letter in letters)
    unreadable = sum(letter is None for letter in newest.values())
    return Found(letters=letters[: selection.limit], by_reason=by_reason, unreadable=unreadable)


def read_whole(settings: Settings, keys: Collection[str]) -> list[DeadLetter]:
    """Reads letters by key, with their payloads; those that are gone are left out.

    Args:
        settings: Which Kafka, which topics.
        keys: Their keys: topic/partition/offset.

    Raises:
        BrokerUnreachableError: No broker answers.
        TopicError: The topic does not exist.
        ConsumeError: The broker does not give what is there.
    """
    return _oldest_first(_newest(settings, lambda letter: letter.record_key() in keys, payloads=True))


def read_one(settings: Settings, key: str) -> DeadLetter:
    """Reads one letter, with its payload.

    Args:
        settings: Which Kafka, which topics.
        key: Its key: topic/partition/offset.

    Raises:
        LetterError: There is no such letter.
        BrokerUnreachableError: No broker answers.
        TopicError: The topic does not exist.
        ConsumeError: The broker does not give what is there.
    """
    for letter in read_whole(settings, {key}):
        return letter
    raise LetterError(f"there is no dead letter {key!r}; `headwater dead-letters list` shows those that there are")


def _oldest_first(newest: dict[bytes | None, DeadLetter | None]) -> list[DeadLetter]:
    letters = [letter for letter in newest.values() if letter is not None]
    return sorted(letters, key=lambda letter: (letter.first_seen_ts, letter.topic, letter.partition, letter.offset))


def _newest(
    settings: Settings, takes: Callable[[DeadLetter], bool], *, payloads: bool
) -> dict[bytes | None, DeadLetter | None]:
    """The newest letter of each key, None where it is not readable; a record without value deletes."""
    wait_for_broker(settings.kafka, timeout_seconds=BROKER_TIMEOUT_SECONDS)
    newest: dict[bytes | None, DeadLetter | None] = {}
    for record in read_to_end(settings.kafka, settings.topics.dead_letters):
        newest.pop(record.key, None)
        if record.value is None:
            continue
        letter = _parsed(record)
        if letter is None:
            newest[record.key] = None
        elif takes(letter):
            newest[record.key] = letter if payloads else letter.without_payload()
    return newest


def _parsed(record: Record) -> DeadLetter | None:
    """The letter of a record; what stands under another key than its own is none, since no mark would reach it."""
    try:
        letter = DeadLetter.model_validate_json(record.value or b"")
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]["msg"]
    else:
        if letter.record_key().encode() == record.key:
            return letter
        problem = "its key is another"
    log.warning("no_dead_letter", partition=record.partition, offset=record.offset, problem=problem)
    return None
