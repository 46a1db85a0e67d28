"""Times of producers and brokers are never later than the reader's clock allows."""

import json
from typing import Any

import pytest

from streams.clocks import DAY_MS, BoundedRecord, ClockSettings, ReaderClock, decode_bounded
from streams.dead_letters import DeadLetter, Reason
from streams.decode import ItemRemoved
from streams.events import Item
from streams.item_times import ItemTimes
from streams.record import Record
from streams.topics import Topics
from streams.watermarks import Watermarks

TOPICS = Topics(dialects={"of.ga4": "ga4"})
NOW_MS = 1_790_000_000_000
MINUTE_MS = 60_000
CLOCK = ReaderClock.from_records((), ClockSettings(), now_ms=NOW_MS)


def record(ts: int, *, log_ms: int = NOW_MS, topic: str = TOPICS.clicks, **fields: Any) -> Record:
    event = {"event_id": "e", "ts": ts, "user_id": "u", "item_id": "i", **fields}
    key = b"i" if topic == TOPICS.items else b"u"
    return Record(topic, 0, 7, key, json.dumps(event).encode(), log_ms)


def item_record(ts: int, *, log_ms: int = NOW_MS) -> Record:
    return record(ts, log_ms=log_ms, topic=TOPICS.items, kind="product", title="Mug")


def times(bounded: BoundedRecord) -> tuple[int, list[int], bool]:
    assert isinstance(bounded.decoded, list)
    ts = [event.ts for event in bounded.decoded if not isinstance(event, DeadLetter)]
    return bounded.record.timestamp_ms, ts, bounded.clamped


@pytest.mark.parametrize(
    ("ahead_ms", "log_ahead_ms", "expected"),
    [
        (0, 0, (NOW_MS, [NOW_MS], False)),
        (MINUTE_MS, MINUTE_MS, (NOW_MS + MINUTE_MS, [NOW_MS + MINUTE_MS], False)),
        (MINUTE_MS + 1, 0, (NOW_MS, [NOW_MS], True)),
        (-5, 58 * MINUTE_MS, (NOW_MS, [NOW_MS - 5], True)),
        (58 * MINUTE_MS, 58 * MINUTE_MS, (NOW_MS, [NOW_MS], True)),
        (DAY_MS, 30 * DAY_MS, (NOW_MS, [NOW_MS], True)),
    ],
)
def test_a_time_beyond_the_allowance_is_replaced(
    ahead_ms: int, log_ahead_ms: int, expected: tuple[int, list[int], bool]
) -> None:
    sent = record(NOW_MS + ahead_ms, log_ms=NOW_MS + log_ahead_ms)
    assert times(decode_bounded(sent, TOPICS, CLOCK)) == expected


@pytest.mark.parametrize("make", [record, item_record])
def test_an_event_more_than_a_day_ahead_is_a_dead_letter(make: Any) -> None:
    refused = decode_bounded(make(NOW_MS + DAY_MS + 1), TOPICS, CLOCK).decoded
    assert isinstance(refused, DeadLetter)
    assert refused.reason is Reason.FROM_THE_FUTURE
    assert refused.error.startswith("`ts` must be at most a day ahead of the reader's clock (2026-09-21T")
    assert f"got {NOW_MS + DAY_MS + 1} (2026-09-22T" in refused.error


def test_an_event_without_a_time_of_its_own_has_the_bounded_time_of_its_record() -> None:
    event = {"name": "view_item", "client_id": "u", "params": {"items": [{"item_id": "i"}]}}
    sent = Record("of.ga4", 0, 0, None, json.dumps(event).encode(), NOW_MS + 58 * MINUTE_MS)
    assert times(decode_bounded(sent, TOPICS, CLOCK)) == (NOW_MS, [NOW_MS], True)


def test_a_record_without_a_time_has_the_readers() -> None:
    assert times(decode_bounded(record(NOW_MS - 9, log_ms=-1), TOPICS, CLOCK)) == (NOW_MS, [NOW_MS - 9], False)


def test_in_a_backlog_a_time_ahead_counts_as_of_the_log_not_of_the_reader() -> None:
    old = [record(NOW_MS - 7_200_000, log_ms=NOW_MS - 7_200_000 + n) for n in range(3)]
    ahead = record(NOW_MS + 50 * MINUTE_MS, log_ms=NOW_MS + 50 * MINUTE_MS)
    clock = ReaderClock.from_records([*old, ahead], ClockSettings(), now_ms=NOW_MS)
    log_ms = NOW_MS - 7_200_000 + 2
    assert times(decode_bounded(ahead, TOPICS, clock)) == (log_ms, [log_ms], True)


def test_where_most_records_are_ahead_the_readers_own_time_counts() -> None:
    ahead = [record(0, log_ms=NOW_MS + 300_000) for _ in range(3)]
    clock = ReaderClock.from_records([record(0, log_ms=NOW_MS - 7_200_000), *ahead], ClockSettings(), now_ms=NOW_MS)
    assert clock.bound_record(ahead[0]).timestamp_ms == NOW_MS


def test_an_item_is_not_later_than_its_record() -> None:
    bounded = decode_bounded(item_record(NOW_MS + 50_000, log_ms=NOW_MS - 3), TOPICS, CLOCK)
    assert times(bounded) == (NOW_MS - 3, [NOW_MS - 3], False)
    removal = Record(TOPICS.items, 0, 8, b"i", None, NOW_MS + DAY_MS * 9)
    assert decode_bounded(removal, TOPICS, CLOCK).decoded == [ItemRemoved("i", NOW_MS)]


class TestItemTimes:
    def item(self, ts: int) -> Item:
        return Item(event_id="e", ts=ts, item_id="i", kind="product", title="Mug")

    def test_an_older_event_does_not_undo_a_newer_one_and_equals_follow_the_log(self) -> None:
        known = ItemTimes()
        assert known.update(self.item(NOW_MS), latest_ms=NOW_MS)
        assert not known.update(self.item(NOW_MS - 1), latest_ms=NOW_MS)
        assert known.update(self.item(NOW_MS), latest_ms=NOW_MS)
        assert known.update(ItemRemoved("i", NOW_MS + 1), latest_ms=NOW_MS + 1)
        assert not known.update(self.item(NOW_MS), latest_ms=NOW_MS + 1)

    def test_the_removal_of_an_unknown_item_is_remembered_over_a_restart(self) -> None:
        known, restarted = ItemTimes(), ItemTimes()
        known.update(ItemRemoved("i", NOW_MS), latest_ms=NOW_MS)
        restarted.restore(json.loads(json.dumps(known.state())))
        assert not restarted.update(self.item(NOW_MS - 1), latest_ms=NOW_MS)

    def test_a_time_from_before_the_clock_was_set_back_freezes_no_item(self) -> None:
        known = ItemTimes()
        known.update(self.item(NOW_MS + 3_600_000), latest_ms=NOW_MS + 3_600_000)
        assert known.update(self.item(NOW_MS), latest_ms=NOW_MS)


class TestWatermarks:
    def test_a_record_from_the_future_makes_no_other_partition_idle(self) -> None:
        marks = Watermarks(idle_seconds=60)
        marks.bound(NOW_MS)
        marks.observe(("clicks", 0), event_ms=NOW_MS - 30_000, log_ms=NOW_MS - 30_000)
        marks.observe(("clicks", 1), event_ms=NOW_MS + 50 * MINUTE_MS, log_ms=NOW_MS + 50 * MINUTE_MS)
        assert marks.advance() == NOW_MS - 30_000
        assert marks.latest_ms == NOW_MS

    def test_a_partition_with_only_a_clock_that_is_behind_holds_no_other_back(self) -> None:
        marks = Watermarks(idle_seconds=60)
        marks.observe(("clicks", 0), event_ms=NOW_MS, log_ms=NOW_MS)
        marks.observe(("clicks", 1), event_ms=NOW_MS - 7 * DAY_MS, log_ms=NOW_MS)
        assert marks.advance() == NOW_MS

    def test_a_partition_with_events_a_little_behind_holds_the_others_back(self) -> None:
        marks = Watermarks(idle_seconds=60)
        marks.observe(("clicks", 0), event_ms=NOW_MS, log_ms=NOW_MS)
        marks.observe(("clicks", 1), event_ms=NOW_MS - MINUTE_MS, log_ms=NOW_MS)
        assert marks.advance() == NOW_MS - MINUTE_MS

    def test_in_a_replay_of_old_events_no_partition_is_behind(self) -> None:
        marks = Watermarks(idle_seconds=60)
        marks.observe(("clicks", 0), event_ms=NOW_MS - 7 * DAY_MS, log_ms=NOW_MS)
        marks.observe(("clicks", 1), event_ms=NOW_MS - 8 * DAY_MS, log_ms=NOW_MS)
        assert marks.advance() == NOW_MS - 8 * DAY_MS

    def test_kept_ones_that_are_ahead_are_healed_and_the_stream_goes_on(self) -> None:
        marks = Watermarks()
        marks.restore({"stream_ms": NOW_MS + DAY_MS, "partitions": [["clicks", 0, NOW_MS + DAY_MS, NOW_MS + DAY_MS]]})
        assert marks.bound(NOW_MS)
        assert marks.advance() == NOW_MS
        assert not marks.bound(NOW_MS + 1_000)
        marks.observe(("clicks", 0), event_ms=NOW_MS + 1_000, log_ms=NOW_MS + 1_000)
        assert marks.advance() == NOW_MS + 1_000
