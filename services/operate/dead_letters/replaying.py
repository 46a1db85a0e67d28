"""Replay of refused records, once each.

The order gives the guarantee, chunk by chunk: 1. Send the records to their topics. 2. Wait until the broker has
confirmed them. 3. Write their letters again under the same keys, marked as replayed. If the process is killed between
2 and 3, the next replay repeats at most one chunk, and the updater drops the duplicates by `event_id`.
"""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field

from services.operate.dead_letters.originals import NotReplayable, Original, Originals
from services.settings import Settings
from streams.dead_letters import DeadLetter, DeadLetterWriter
from streams.events import Event
from streams.producer import EventProducer

CHUNK_LETTERS = 100
CHUNK_BYTES = 8 * 1024 * 1024
CONFIRM_SECONDS = 30.0
MAX_RECORD_BYTES = 64 * 1024 * 1024  # the record was in its topic before: the broker's own limit applies


@dataclass(slots=True)
class ReplaySummary:
    """The outcome of a replay.

    Attributes:
        sent: the number of records put back by topic; in a dry run, those that would be.
        replayed_before: the number of letters skipped because they were replayed before.
        not_replayable: the number of letters whose record cannot be put back, by reason.
    """

    sent: Counter[str] = field(default_factory=Counter)
    replayed_before: int = 0
    not_replayable: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class _Replacement:
    """The record to send for a letter, and its topic."""

    letter: DeadLetter
    topic: str
    record: Original


class Replay:
    """A replay of letters, with their own records or corrected events in their place.

    Args:
        settings: the settings with brokers and topics.
        mended: the event to send in place of a record, by the key of its letter.
        dry_run: whether to only count, and send nothing.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        mended: Mapping[str, Event] | None = None,
        dry_run: bool = False,
    ) -> None:
        self.summary = ReplaySummary()
        self._settings, self._mended, self._dry_run = settings, mended or {}, dry_run

    def run(self, letters: Sequence[DeadLetter]) -> Iterator[int]:
        """Replay letters in their order, chunk by chunk.

        Yields:
            The number of letters of each chunk, once it is done.

        Raises:
            BrokerUnreachableError: no broker answers.
            ConsumeError: the broker refuses a record that a letter does not contain.
            DeliveryError: a record or its mark was not confirmed; letters marked before stay replayed.
        """
        with closing(Originals(self._settings)) as originals:
            for chunk in _chunks(letters):
                replacements = [entry for letter in chunk for entry in self._replacements(letter, originals)]
                if replacements and not self._dry_run:
                    self._put_back(replacements)
                self.summary.sent.update(entry.topic for entry in replacements)
                yield len(chunk)

    def _replacements(self, letter: DeadLetter, originals: Originals) -> list[_Replacement]:
        """Return the record to send for a letter, or an empty list."""
        event = self._mended.get(letter.record_key())
        if event is not None:
            record = Original(event.key().encode(), event.model_dump_json(exclude_none=True).encode())
            return [_Replacement(letter, self._settings.topics.of_kind(event.KIND), record)]
        original = originals.of(letter)
        if isinstance(original, NotReplayable):
            self.summary.not_replayable[original.why] += 1
            return []
        return [_Replacement(letter, letter.topic, original)]

    def _put_back(self, replacements: Sequence[_Replacement]) -> None:
        with EventProducer(self._settings.kafka, max_record_bytes=MAX_RECORD_BYTES) as producer:
            for entry in replacements:
                producer.send_raw(entry.topic, entry.record.key, entry.record.value)
            producer.flush(CONFIRM_SECONDS)
        self._mark([entry.letter for entry in replacements])

    def _mark(self, letters: Sequence[DeadLetter]) -> None:
        replayed_ts = time.time_ns() // 1_000_000
        with closing(DeadLetterWriter(self._settings.kafka, self._settings.topics)) as writer:
            for letter in letters:
                writer.write(letter.model_copy(update={"replayed_ts": replayed_ts}))
            writer.flush(CONFIRM_SECONDS)


def _chunks(letters: Sequence[DeadLetter]) -> Iterator[Sequence[DeadLetter]]:
    """Split letters into chunks that are small enough to be in flight at once."""
    chunk: list[DeadLetter] = []
    size_bytes = 0
    for letter in letters:
        if chunk and (len(chunk) == CHUNK_LETTERS or size_bytes + letter.payload_bytes > CHUNK_BYTES):
            yield chunk
            chunk, size_bytes = [], 0
        chunk.append(letter)
        size_bytes += letter.payload_bytes
    if chunk:
        yield chunk
