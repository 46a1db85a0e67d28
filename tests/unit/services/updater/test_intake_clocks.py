"""The intake with wrong clocks of producers, brokers or its host: other users are unaffected, and kept times heal."""

import json

from intake_box import HOUR_MS, NOW_MS, TOPICS, Box, click, impression, item, record_of

from streams.dead_letters import Reason
from streams.events import Click, Item
from streams.record import Record

MINUTE_MS = 60_000
OPEN = 60


def live_box(**updater: float) -> Box:
    """An intake that reads what is written just now, with impressions whose windows are open."""
    box = Box(**updater)
    box.now_ms = NOW_MS
    box.send(item())
    box.take_slice(*(record_of(impression(n, user=f"u{n}"), n, published_ms=NOW_MS) for n in range(OPEN)))
    return box


def ahead(event: Click, box: Box, *, by_ms: int, partition: int = 1) -> None:
    box.take_slice(record_of(event, 900, partition=partition, published_ms=box.now_ms + by_ms))


def clamped(box: Box, topic: str = TOPICS.clicks) -> float | None:
    box.intake.accounts.export(box.metrics.intake)
    return box.registry.get_sample_value("headwater_clamped_times_total", {"topic": topic})


def test_a_click_58_minutes_ahead_closes_no_window_and_is_counted() -> None:
    box = live_box()
    assert clamped(box) == 0
    ahead(click(1, ts=NOW_MS + 58 * MINUTE_MS, user="futann"), box, by_ms=58 * MINUTE_MS)
    assert box.lists == []
    assert box.exported(TOPICS.impressions)["pending"] == OPEN
    assert [example.ts for example in box.learnt] == [NOW_MS]
    assert clamped(box) == 1
    box.now_ms += MINUTE_MS
    box.take_slice(record_of(click(2, ts=box.now_ms, user="u7"), 901, published_ms=box.now_ms))
    box.now_ms += 10 * MINUTE_MS
    box.send(click(3, ts=box.now_ms), published_ms=box.now_ms)
    assert [shown.user_id for shown in box.lists if any(shown.clicked)] == [box.learnt[1].user_id]
    assert len(box.lists) == OPEN
    box.check_identity()


def test_an_impression_that_is_ahead_holds_up_none_that_came_after_it() -> None:
    box = live_box()
    ahead(impression(500, ts=NOW_MS + 59 * MINUTE_MS, user="futann"), box, by_ms=59 * MINUTE_MS)  # type: ignore[arg-type]
    box.send(impression(501), published_ms=NOW_MS)
    box.now_ms += 11 * MINUTE_MS
    box.send(click(1, ts=box.now_ms), published_ms=box.now_ms)
    assert box.exported(TOPICS.impressions)["pending"] == 0


def test_within_the_allowance_no_window_closes_early_either() -> None:
    box = live_box(click_window_seconds=30)
    ahead(click(1, ts=NOW_MS + 59_000), box, by_ms=59_000)
    assert (box.lists, clamped(box)) == ([], 0)


def test_more_than_a_day_ahead_is_a_dead_letter() -> None:
    box = live_box()
    box.send(click(1, ts=4_102_444_800_000), published_ms=NOW_MS)
    assert [letter.reason for letter in box.letters] == [Reason.FROM_THE_FUTURE]
    assert box.intake.watermarks.latest_ms == NOW_MS
    box.check_identity()


def test_what_an_earlier_release_kept_of_the_future_is_healed_at_the_first_slice() -> None:
    box = live_box()
    box.send(click(700, item="late"), published_ms=NOW_MS)
    state = json.loads(json.dumps(box.intake.state()))
    for name in ("clamped", "item_times"):
        del state[name]
    future_ms = NOW_MS + 20 * HOUR_MS
    state["watermarks"] = {"stream_ms": future_ms, "partitions": [[TOPICS.clicks, 1, future_ms, future_ms]]}
    state["guard"]["stream"][0] = future_ms
    box._store.save()
    box._store._db.execute("UPDATE shown SET ts = ? WHERE seq = 1", (future_ms,))
    box._store._db.execute("UPDATE held SET ts = ?", (4_102_444_800_000,))
    box._store._cache[1].ts = future_ms
    box._start()
    box.intake.restore(state)
    box.now_ms += MINUTE_MS
    box.send(click(1, ts=box.now_ms), published_ms=box.now_ms)
    assert box.intake.watermarks.stream_ms == box.now_ms
    assert box.intake.guard.state()["stream"][0] == box.now_ms
    assert box.exported(TOPICS.impressions)["pending"] == OPEN
    box.now_ms += 2 * HOUR_MS
    box.send(click(2, ts=box.now_ms), published_ms=box.now_ms)
    assert box.exported(TOPICS.impressions)["pending"] == 0
    assert box.exported(TOPICS.clicks)["expired"] == 1


def test_a_readers_clock_that_was_an_hour_ahead_heals_when_it_is_set_back() -> None:
    box = Box()
    box.now_ms = NOW_MS + HOUR_MS
    box.send(item())
    box.send(click(1, ts=NOW_MS + HOUR_MS), published_ms=NOW_MS + HOUR_MS)
    box.now_ms = NOW_MS
    box.send(impression(2), published_ms=NOW_MS)
    assert box.intake.watermarks.stream_ms == NOW_MS
    assert box.lists == []
    assert box.exported(TOPICS.impressions)["pending"] == 1


def test_the_same_slices_with_the_same_clocks_give_the_same_state() -> None:
    one, other = live_box(), live_box()
    for box in (one, other):
        ahead(click(1, ts=NOW_MS + 58 * MINUTE_MS), box, by_ms=58 * MINUTE_MS)
        box.now_ms -= 500
        box.send(click(2, ts=NOW_MS + MINUTE_MS), published_ms=NOW_MS)
        if box is one:
            box.restart()
        box.now_ms += 1_000
        box.send(click(3, ts=box.now_ms), published_ms=box.now_ms)
    assert one.intake.state() == other.intake.state()


class TestItems:
    def texts(self, box: Box) -> list[str]:
        return box.learner.catalogue.texts

    def test_an_older_event_that_arrives_later_changes_nothing_and_is_ignored_after_a_restart_too(self) -> None:
        box = Box()
        box.send(item(title="blue mug").model_copy(update={"ts": NOW_MS}))
        for _ in range(2):
            box.send(item(title="red mug").model_copy(update={"ts": NOW_MS - 1}))
            assert self.texts(box) == ["blue mug"]
            box.restart()
        assert box.exported(TOPICS.items)["ignored"] == 2
        box.send(item(title="oak mug"))
        assert self.texts(box) == ["oak mug"]
        box.check_identity()

    def test_the_same_within_one_slice(self) -> None:
        box = Box()
        events = [item(title=title).model_copy(update={"ts": ts}) for title, ts in (("new", NOW_MS), ("old", 7))]
        box.take_slice(*(record_of(event, n) for n, event in enumerate(events)))
        assert self.texts(box) == ["new"]

    def test_a_wrong_date_freezes_no_item(self) -> None:
        box = Box()
        box.now_ms = NOW_MS
        box.send(item(title="dated ahead").model_copy(update={"ts": NOW_MS + 23 * HOUR_MS}))
        box.now_ms += 1_000
        box.send(item(title="right").model_copy(update={"ts": NOW_MS + 1_000}), published_ms=NOW_MS + 1_000)
        assert self.texts(box) == ["right"]

    def test_an_older_event_does_not_undo_a_removal(self) -> None:
        box = Box()
        box.take(TOPICS.items, b"i0", None, published_ms=NOW_MS + 5)
        old = item().model_copy(update={"ts": NOW_MS})
        assert isinstance(old, Item)
        box.take_slice(Record(TOPICS.items, 0, 99, b"i0", old.model_dump_json().encode(), NOW_MS + 9))
        assert self.texts(box) == []
