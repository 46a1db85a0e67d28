"""Reading of dead letters: the newest of each key, up to the end of their topic."""

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
    """Filters of dead letters.

    Attributes:
        reason: the reason of the letters; None selects all reasons.
        topic: the topic of the refused records; None selects all topics.
        since_ms: the earliest first-seen time, epoch milliseconds.
        until_ms: the first-seen time before which letters are selected, epoch milliseconds.
        limit: the most letters, oldest first; None sets no limit.
    """

    reason: Reason | None = None
    topic: str | None = None
    since_ms: int | None = None
    until_ms: int | None = None
    limit: int | None = None

    def matches(self, letter: DeadLetter) -> bool:
        """Return whether a letter passes the filters, apart from the limit."""
        return (
            self.reason in (None, letter.reason)
            and self.topic in (None, letter.topic)
            and (self.since_ms is None or letter.first_seen_ts >= self.since_ms)
            and (self.until_ms is None or letter.first_seen_ts < self.until_ms)
        )


@dataclass(frozen=True, slots=True)
class DeadLetterListing:
    """The letters on the topic that match a selection.

    Attributes:
        letters: the letters in first-seen order, up to the limit of the selection.
        by_reason: the number of letters by reason, including those beyond the limit.
        unreadable: the number of records on the topic that are not letters.
    """

    letters: list[DeadLetter]
    by_reason: Counter[str]
    unreadable: int


def reason_named(text: str) -> Reason:
    """Return the reason with this name.

    Raises:
        LetterError: there is no such reason.
    """
    try:
        return Reason(text)
    except ValueError:
        raise LetterError(f"a reason must be one of {', '.join(Reason)}, got {text!r}") from None


def read(settings: Settings, selection: Selection) -> DeadLetterListing:
    """Read the letters of a selection, without their payloads, which would fill the memory.

    Args:
        settings: the settings with brokers and topics.
        selection: the filters of the letters.

    Raises:
        BrokerUnreachableError: no broker answers.
        TopicError: the topic does not exist.
        ConsumeError: the broker refuses the records.
    """
    newest = _newest(settings, selection.matches, payloads=False)
    letters = _oldest_first(newest)
    by_reason = Counter(str(letter.reason) for letter in letters)
    unreadable = sum(letter is None for letter in newest.values())
    return DeadLetterListing(letters=letters[: selection.limit], by_reason=by_reason, unreadable=unreadable)


def read_whole(settings: Settings, keys: Collection[str]) -> list[DeadLetter]:
    """Read letters by key, with their payloads; deleted letters are left out.

    Args:
        settings: the settings with brokers and topics.
        keys: the keys of the letters: topic/partition/offset.

    Raises:
        BrokerUnreachableError: no broker answers.
        TopicError: the topic does not exist.
        ConsumeError: the broker refuses the records.
    """
    return _oldest_first(_newest(settings, lambda letter: letter.record_key() in keys, payloads=True))


def read_one(settings: Settings, key: str) -> DeadLetter:
    """Read one letter, with its payload.

    Args:
        settings: the settings with brokers and topics.
        key: the key of the letter: topic/partition/offset.

    Raises:
        LetterError: there is no such letter.
        BrokerUnreachableError: no broker answers.
        TopicError: the topic does not exist.
        ConsumeError: the broker refuses the records.
    """
    for letter in read_whole(settings, {key}):
        return letter
    raise LetterError(f"there is no dead letter {key!r}; `headwater dead-letters list` lists the existing ones")


def _oldest_first(newest: dict[bytes | None, DeadLetter | None]) -> list[DeadLetter]:
    letters = [letter for letter in newest.values() if letter is not None]
    return sorted(letters, key=lambda letter: (letter.first_seen_ts, letter.topic, letter.partition, letter.offset))


def _newest(
    settings: Settings, matches: Callable[[DeadLetter], bool], *, payloads: bool
) -> dict[bytes | None, DeadLetter | None]:
    """Return the newest letter of each key, None if it is not readable; a record without value deletes."""
    wait_for_broker(settings.kafka, timeout_seconds=BROKER_TIMEOUT_SECONDS)
    newest: dict[bytes | None, DeadLetter | None] = {}
    for record in read_to_end(settings.kafka, settings.topics.dead_letters):
        newest.pop(record.key, None)
        if record.value is None:
            continue
        letter = _parse(record)
        if letter is None:
            newest[record.key] = None
        elif matches(letter):
            newest[record.key] = letter if payloads else letter.without_payload()
    return newest


def _parse(record: Record) -> DeadLetter | None:
    """Parse a record; return None if it is not a letter, or under another key, where no mark would reach it."""
    try:
        letter = DeadLetter.model_validate_json(record.value or b"")
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]["msg"]
    else:
        if letter.record_key().encode() == record.key:
            return letter
        problem = "its key differs from the record's"
    log.warning("no_dead_letter", partition=record.partition, offset=record.offset, problem=problem)
    return None
