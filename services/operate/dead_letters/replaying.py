"""Puts refused records back, once each.

The order is the guarantee, chunk by chunk: 1. The records go to their topics. 2. The broker has confirmed them.
3. Their letters are written again, marked as replayed, under the same keys. Killed between 2 and 3, the next replay
repeats the chunk at most, and the updater drops what it had by `event_id`.
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
MAX_RECORD_BYTES = 64 * 1024 * 1024  # it was in its topic before: what that takes is the broker's to say


@dataclass(slots=True)
class ReplaySummary:
    """What became of the letters.

    Attributes:
        sent: How many records were put back, by topic; in a dry run, how many would be.
        replayed_before: How many letters were passed over, as they were replayed before.
        not_replayable: How many letters have no record that can be put back, by why.
    """

    sent: Counter[str] = field(default_factory=Counter)
    replayed_before: int = 0
    not_replayable: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class _Return:
    """What goes to which topic in the place of a letter's record."""

    letter: DeadLetter
    topic: str
    record: Original


class Replay:
    """Puts back the records of letters, or mended events in their place.

    Args:
        settings: Which Kafka, which topics.
        mended: What to put in the place of a record, by the key of its letter.
        dry_run: Whether to look only, and send nothing.
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
        """Replays letters, in their order, chunk by chunk.

        Yields:
            How many letters a chunk had, once it is done.

        Raises:
            BrokerUnreachableError: No broker answers.
            ConsumeError: The broker refuses to show a record that a letter does not hold.
            DeliveryError: A record or its mark was not confirmed; what was marked before stays replayed.
        """
        with closing(Originals(self._settings)) as originals:
            for chunk in _chunks(letters):
                returns = [found for letter in chunk for found in self._return_of(letter, originals)]
                if returns and not self._dry_run:
                    self._put_back(returns)
                self.summary.sent.update(one.topic for one in returns)
                yield len(chunk)

    def _return_of(self, letter: DeadLetter, originals: Originals) -> list[_Return]:
        """What is to be put back for a letter: one record, or none."""
        event = self._mended.get(letter.record_key())
        if event is not None:
            record = Original(event.key().encode(), event.model_dump_json(exclude_none=True).encode())
            return [_Return(letter, self._settings.topics.of_kind(event.KIND), record)]
        original = originals.of(letter)
        if isinstance(original, NotReplayable):
            self.summary.not_replayable[original.why] += 1
            return []
        return [_Return(letter, letter.topic, original)]

    def _put_back(self, returns: Sequence[_Return]) -> None:
        with EventProducer(self._settings.kafka, max_record_bytes=MAX_RECORD_BYTES) as producer:
            for one in returns:
                producer.send_raw(one.topic, one.record.key, one.record.value)
            producer.flush(CONFIRM_SECONDS)
        self._mark([one.letter for one in returns])

    def _mark(self, letters: Sequence[DeadLetter]) -> None:
        replayed_ts = time.time_ns() // 1_000_000
        with closing(DeadLetterWriter(self._settings.kafka, self._settings.topics)) as writer:
            for letter in letters:
                writer.write(letter.model_copy(update={"replayed_ts": replayed_ts}))
            writer.flush(CONFIRM_SECONDS)


def _chunks(letters: Sequence[DeadLetter]) -> Iterator[Sequence[DeadLetter]]:
    """Letters few and small enough to be under way at once."""
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
