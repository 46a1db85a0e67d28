"""Checks that journaled slices can still be repeated from the log."""

from __future__ import annotations

import time
from contextlib import suppress

import structlog

from services.updater.journal import JournalEntry
from streams.consumer import PartitionConsumer
from streams.errors import HeadwaterStreamError
from streams.offsets import Offsets, encode_offsets
from streams.slices import Slice
from streams.topic_metadata import is_other_log

log = structlog.get_logger(__name__)

_CHECK_SECONDS = 2.0  # interval between requests for the ends of the log
_UNREADABLE_SECONDS = 30.0  # longest wait for a topic that cannot be read


class ReplayCheck:
    """Comparison of journaled slices with the current log.

    Slices are repeated from the log. That is impossible if a topic was recreated, if the log has become shorter, or
    while a topic cannot be read.

    Args:
        consumer: the consumer that reads the log.
    """

    def __init__(self, consumer: PartitionConsumer) -> None:
        self._consumer = consumer
        self._next_check = 0.0  # monotonic seconds
        self._unreadable_since: float | None = None  # monotonic seconds

    def obstacle(self, entry: JournalEntry) -> str | None:
        """Return the reason why a journaled slice cannot be repeated; None if it can, or if that is not known yet."""
        ids = self._consumer.topic_ids()
        other = [topic for topic, id_ in sorted(entry.topic_ids.items()) if is_other_log(id_, ids.get(topic))]
        if other:
            return f"the topics {other} were deleted and created again since"
        if time.monotonic() < self._next_check:
            return None
        self._next_check = time.monotonic() + _CHECK_SECONDS
        with suppress(HeadwaterStreamError):  # the consumer itself reports that the broker is away
            ends = self._consumer.end_offsets()
            return self._cut_off(entry, ends) or self._unreadable(entry, ends)
        return None

    def compare(self, slice_: Slice, entry: JournalEntry) -> None:
        """Log an error if records of a repeated slice were deleted since it was journaled."""
        if slice_.missed != entry.missed:
            log.error(
                "slice_not_repeated_exactly",
                problem="retention deleted records after they were learnt and before the checkpoint; they are missed",
                missed=encode_offsets(slice_.missed),
                journaled=encode_offsets(entry.missed),
            )

    def _cut_off(self, entry: JournalEntry, ends: Offsets) -> str | None:
        short = {at: ends[at] for at, end in entry.ends.items() if at in ends and ends[at] < end}
        return f"the log is shorter than it was, and ends at {encode_offsets(short)}" if short else None

    def _unreadable(self, entry: JournalEntry, ends: Offsets) -> str | None:
        positions = self._consumer.positions()
        unread = {at[0] for at, end in entry.ends.items() if at not in ends and positions.get(at, 0) < end}
        unreadable = sorted(unread.intersection(self._consumer.topics))
        if not unreadable:
            self._unreadable_since = None
            return None
        self._unreadable_since = self._unreadable_since or time.monotonic()
        if time.monotonic() < self._unreadable_since + _UNREADABLE_SECONDS:
            return None
        return f"the topics {unreadable} cannot be read for {_UNREADABLE_SECONDS:.0f} s"
