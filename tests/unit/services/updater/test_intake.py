"""The intake: for any mix of records, in = the sum of all outcomes + pending."""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from intake_box import HOUR_MS, NOTHING, NOW_MS, READ, TOPICS, Box, click, impression, item, record_of
from structlog.testing import capture_logs

from streams.control import forget_record
from streams.events import Click, Item, Purchase
from streams.privacy import Pseudonymiser
from streams.record import Record

GOOD = st.tuples(
    st.sampled_from([Click, Purchase]), st.integers(0, 12), st.integers(0, 4), st.integers(0, 5), st.sampled_from("uv")
)
SPOILT = st.tuples(
    st.sampled_from(READ),
    st.sampled_from([(b"k", b"{"), (b"k", b"{}"), (b"", None), (b"\xff", None), (b"other", b"whole")]),
)
MIX = st.lists(
    st.one_of(
        st.tuples(st.just("event"), GOOD),
        st.tuples(st.just("event"), GOOD),
        st.tuples(st.just("item"), st.integers(0, 4)),
        st.tuples(st.just("removed"), st.integers(0, 4)),
        st.tuples(st.just("spoilt"), SPOILT),
        st.tuples(st.just("restart"), st.none()),
    ),
    max_size=40,
)


def events_of(mix: list[tuple[str, Any]]) -> Iterator[Click | Purchase]:
    for what, how in mix:
        if what == "event":
            model, number, item_number, hours, user = how
            yield model(event_id=f"e{number}", ts=NOW_MS + hours * HOUR_MS, user_id=user, item_id=f"i{item_number}")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(MIX)
def test_identity_holds_after_any_mix_on_each_topic_and_over_restarts(mix: list[tuple[str, Any]]) -> None:
    box = Box(hold_seconds=2 * HOUR_MS / 1000)
    coming = events_of(mix)
    for what, how in mix:
        if what == "event":
            box.send(next(coming), published_ms=NOW_MS + 24 * HOUR_MS)
        elif what == "item":
            box.send(item(f"i{how}"))
        elif what == "removed":
            box.take(TOPICS.items, f"i{how}".encode(), None)
        elif what == "spoilt":
            topic, (key, value) = how
            event = item() if topic == TOPICS.items else impression() if topic == TOPICS.impressions else click()
            whole = event.model_dump_json(exclude_none=True).encode()
            box.take(topic, key, whole if value == b"whole" else value)
        else:
            box.restart()
        box.check_identity()

    events = list(events_of(mix))
    counts = box.intake.accounts.totals()
    for topic, model in ((TOPICS.clicks, Click), (TOPICS.purchases, Purchase)):
        ids = [event.event_id for event in events if type(event) is model]
        learnt = [example.event_id for example in box.learnt if example.kind == model.KIND]
        assert counts[topic]["duplicate"] == len(ids) - len(set(ids))
        assert counts[topic]["learnt"] == len(learnt) == len(set(learnt))
        assert set(learnt) <= set(ids)
        assert counts[topic]["pending"] + counts[topic]["expired"] == len(set(ids)) - len(learnt)
    spoilt = Counter(how[0] for what, how in mix if what == "spoilt")
    assert {topic: counts[topic]["dead_letter"] for topic in READ} == {topic: spoilt[topic] for topic in READ}
    assert len(box.learner.catalogue) == len({how for what, how in mix if what == "item"})


def test_items_come_before_events() -> None:
    assert Box().intake.topics == [
        TOPICS.items, TOPICS.control, TOPICS.impressions, TOPICS.clicks, TOPICS.purchases,
    ]  # fmt: skip


def test_an_item_is_learnt_as_it_comes_and_its_text_may_change() -> None:
    box = Box()
    for title in ("red mug", "blue mug"):
        box.send(item(title=title))
    assert box.learner.catalogue.texts == ["blue mug"]
    assert box.exported(TOPICS.items) == NOTHING | {"in": 2, "learnt": 2}


def test_a_removed_item_keeps_its_row_and_events_of_it_are_learnt() -> None:
    box = Box()
    box.send(item())
    box.take(TOPICS.items, b"i0", None)
    box.send(click())
    assert box.learner.catalogue.rows == {"i0": 0}
    assert [example.item_id for example in box.learnt] == ["i0"]


def test_vectors_of_another_length_are_a_dead_letter_and_the_item_stays_what_it_was() -> None:
    box = Box()
    for vectors in ({"image": [3.0, 4.0]}, {"image": [1.0], "sound": [1.0]}, {"sound": [1.0, 2.0]}):
        box.send(item(title=f"mug {len(box.letters)}", vectors=vectors))
        box.restart()
    (letter,) = box.letters
    assert (letter.reason, letter.topic, letter.offset) == ("wrong_vector", TOPICS.items, 1)
    assert letter.error == "`vectors.image` must have 2 numbers, as the first one had, got 1; keep to one length"
    assert json.loads(letter.original() or b"")["vectors"] == {"image": [1.0], "sound": [1.0]}
    assert box.learner.catalogue.texts == ["mug 1"]
    assert list(box.learner.catalogue.modality_vectors[0]) == ["sound"]  # the second one fixed no length of its own
    assert box.exported(TOPICS.items) == NOTHING | {"in": 3, "learnt": 2, "dead_letter": 1}
    box.check_identity()


def test_the_first_length_holds_within_a_slice_and_what_does_not_decode_fixes_none() -> None:
    box = Box()
    events = [
        item(name, vectors={"image": [1.0] * length}).model_dump_json().encode()
        for name, length in (("i0", 3), ("i1", 2), ("i2", 2), ("i3", 3))
    ]
    events[0] = events[0].replace(b"1.0", b"null", 1)
    box.take_slice(*(Record(TOPICS.items, 0, at, f"i{at}".encode(), value, NOW_MS) for at, value in enumerate(events)))
    assert [letter.reason for letter in box.letters] == ["invalid_schema", "wrong_vector"]
    assert "vectors.image.0" in box.letters[0].error
    assert box.learner.catalogue.ids == ["i1", "i2"]


@pytest.mark.parametrize(
    ("key", "reason"),
    [(b"another", "wrong_key"), (None, "wrong_key"), (b"u", None)],
    ids=["another", "none", "its own"],
)
def test_an_event_under_another_key_is_refused(key: bytes | None, reason: str | None) -> None:
    box = Box()
    box.send(item())
    box.take(TOPICS.clicks, key, click().model_dump_json(exclude_none=True).encode())
    assert [letter.reason for letter in box.letters] == ([reason] if reason else [])
    assert len(box.learnt) == (0 if reason else 1)


def test_a_letter_names_its_place_and_carries_the_bytes_as_they_came() -> None:
    box = Box()
    box.send(item())
    box.take(TOPICS.purchases, b"k", b"\xff\x00 no json")
    (letter,) = box.letters
    assert (letter.topic, letter.partition, letter.offset) == (TOPICS.purchases, 0, 1)
    assert letter.original() == b"\xff\x00 no json"


def test_an_event_waits_for_its_item_and_is_learnt_once() -> None:
    box = Box()
    box.send(click(1))
    box.send(click(2))
    box.send(click(1))
    assert box.learnt == []
    assert box.exported(TOPICS.clicks)["pending"] == 2
    box.send(item())
    box.send(item(title="blue mug"))
    assert [example.event_id for example in box.learnt] == ["e1", "e2"]
    assert box.exported(TOPICS.clicks) == NOTHING | {"in": 3, "learnt": 2, "duplicate": 1}


def test_an_event_whose_item_never_comes_expires_by_event_time() -> None:
    box = Box(hold_seconds=60)
    box.send(item("known"))
    box.send(click(1, item="late"))
    box.send(click(2, item="known", ts=NOW_MS + 60_000), published_ms=NOW_MS + HOUR_MS)
    assert box.exported(TOPICS.clicks)["pending"] == 1
    box.send(click(3, item="known", ts=NOW_MS + 60_001), published_ms=NOW_MS + HOUR_MS)
    counts = box.exported(TOPICS.clicks)
    assert (counts["expired"], counts["pending"]) == (1, 0)
    box.send(item("late"))
    assert [example.event_id for example in box.learnt] == ["e2", "e3"]


def test_an_event_from_the_future_gives_up_none_that_wait() -> None:
    box = Box(hold_seconds=60)
    box.send(item("known"))
    box.send(click(1, item="late"))
    box.now_ms = NOW_MS + HOUR_MS
    box.send(click(2, item="known", ts=NOW_MS + 24 * HOUR_MS))
    assert box.intake.watermarks.latest_ms == NOW_MS
    box.send(item("late"))
    assert [example.event_id for example in box.learnt] == ["e2", "e1"]


def test_items_of_a_slice_come_first_whatever_their_place() -> None:
    box = Box()
    box.take_slice(record_of(click(1), 0), record_of(item(), 0))
    assert [example.event_id for example in box.learnt] == ["e1"]
    assert box.exported(TOPICS.clicks) == NOTHING | {"in": 1, "learnt": 1}


def test_items_taken_together_are_those_taken_singly() -> None:
    events = [item("i0"), item("i1", "small oak rug"), item("i0", "blue mug")]
    singly, together = Box(), Box()
    for event in events:
        singly.send(event)
    records = [record_of(event, offset) for offset, event in enumerate(events)]
    records.append(Record(TOPICS.items, 0, 3, b"i2", b"{", NOW_MS))
    records.append(Record(TOPICS.items, 0, 4, b"i1", None, NOW_MS))
    together.take_slice(*records)
    assert [letter.offset for letter in together.letters] == [3]
    assert together.learner.catalogue.texts == singly.learner.catalogue.texts == ["blue mug", "small oak rug"]
    assert together.exported(TOPICS.items) == NOTHING | {"in": 5, "learnt": 4, "dead_letter": 1}


def test_a_list_is_learnt_when_its_window_closes() -> None:
    box = Box(click_window_seconds=60)
    for event in (item("i0"), item("i1"), impression(1, "i1", "i0"), click(2, item="i0", ts=NOW_MS + 5_000)):
        box.send(event, published_ms=NOW_MS + HOUR_MS)
    assert box.exported(TOPICS.impressions) == NOTHING | {"in": 1, "pending": 1}
    box.take_slice(record_of(impression(3, "i1", ts=NOW_MS + 60_001), 9), record_of(click(4, ts=NOW_MS + 60_001), 9))
    assert [(shown.item_ids, shown.clicked) for shown in box.lists] == [(("i1", "i0"), (False, True))]
    assert box.exported(TOPICS.impressions) == NOTHING | {"in": 2, "learnt": 1, "pending": 1}
    assert box.learnt[0].position == 1


def test_a_partition_that_is_behind_keeps_windows_open_until_it_is_idle() -> None:
    box = Box(click_window_seconds=60, idle_seconds=600)
    box.send(item())
    late, soon = NOW_MS + HOUR_MS, NOW_MS + HOUR_MS + 599_000
    box.take_slice(
        record_of(impression(1), 0, published_ms=late), record_of(click(1), 0, partition=1, published_ms=late)
    )
    box.take_slice(record_of(impression(2, ts=NOW_MS + 120_000), 1, published_ms=soon))
    assert box.lists == []
    box.take_slice(record_of(impression(3, ts=NOW_MS + 120_000), 2, published_ms=soon + 2_000))
    assert len(box.lists) == 1


def test_events_behind_the_watermark_are_counted_by_how_much() -> None:
    box = Box()
    for number, seconds in enumerate((0, 3_000, 2_995, 2_970, 0, 3_000)):
        box.send(click(number, ts=NOW_MS + 1_000 * seconds), published_ms=NOW_MS + HOUR_MS)
    box.intake.accounts.export(box.metrics.intake)
    late = {
        by: box.registry.get_sample_value("headwater_late_events_total", {"topic": TOPICS.clicks, "late_by": by})
        for by in ("10s", "60s", "600s", "3600s", "86400s", "more")
    }
    assert late == {"10s": 1, "60s": 1, "600s": None, "3600s": 1, "86400s": None, "more": None}


def test_a_user_is_forgotten_at_the_place_of_the_command() -> None:
    box = Box()
    box.send(item())
    for user in ("u", "v"):
        box.send(click(1 if user == "u" else 2, user=user))
        box.send(click(3 if user == "u" else 4, user=user, item="late"))
        box.send(impression(5 if user == "u" else 6, user=user))
    pseudonym = Pseudonymiser(b"only for tests")
    for example in box.learnt:
        box.learner.shoppers.update(example.user_id, example.session_id, example.ts, 0)
    box.take(TOPICS.control, *forget_record(pseudonym("u"), ts_ms=NOW_MS))
    assert pseudonym("u") not in box.learner.shoppers
    assert pseudonym("v") in box.learner.shoppers
    assert box.exported(TOPICS.clicks) == NOTHING | {"in": 4, "learnt": 2, "forgotten": 1, "pending": 1}
    assert box.exported(TOPICS.impressions) == NOTHING | {"in": 2, "forgotten": 1, "pending": 1}
    box.check_identity()


def test_what_a_slice_says_of_a_user_before_the_command_is_forgotten_too() -> None:
    box = Box()
    box.send(item())
    key, value = forget_record(Pseudonymiser(b"only for tests")("u"), ts_ms=NOW_MS)
    command = Record(TOPICS.control, 0, 0, key, value, NOW_MS)
    box.take_slice(record_of(click(1), 0), record_of(click(2, user="v"), 0), command, record_of(click(3), 1))
    assert [example.event_id for example in box.learnt] == ["e2", "e3"]
    assert box.exported(TOPICS.clicks) == NOTHING | {"in": 3, "learnt": 2, "forgotten": 1}
    box.check_identity()


def test_what_was_in_the_log_before_the_command_is_forgotten_though_its_clock_was_ahead() -> None:
    """Records are sorted by their times, so that those of a clock ahead come after the command."""
    box = Box()
    box.send(item())
    key, value = forget_record(Pseudonymiser(b"only for tests")("u"), ts_ms=NOW_MS, ends={(TOPICS.clicks, 0): 2})
    command = Record(TOPICS.control, 0, 0, key, value, NOW_MS)
    box.take_slice(command, record_of(click(1), 0))
    assert box.learnt == []
    box.restart()
    box.take_slice(record_of(click(2), 1), record_of(click(3), 2), record_of(click(4, user="v"), 3))
    assert [example.event_id for example in box.learnt] == ["e3", "e4"]
    assert box.exported(TOPICS.clicks) == NOTHING | {"in": 4, "learnt": 2, "forgotten": 2}
    assert "forgotten" not in box.intake.state(), "the command is dropped once its ends are passed"
    box.check_identity()


def test_a_scrape_after_a_restart_counts_on_from_the_checkpoint() -> None:
    box = Box()
    box.send(item())
    box.send(click(1))
    box.send(click(1))
    box.take(TOPICS.clicks, b"u", b"{")
    before = box.exported(TOPICS.clicks)
    box.restart()
    assert box.exported(TOPICS.clicks) == before
    assert box.exported(TOPICS.clicks) == before  # a second look adds nothing
    box.send(click(1))
    assert box.exported(TOPICS.clicks) == before | {"in": 4, "duplicate": 2}
    assert box.intake.watermarks.latest_ms == NOW_MS


def test_what_the_guard_caps_is_an_outcome_of_its_own_and_one_log_line_an_item_and_hour() -> None:
    box = Box()
    items = [f"i{number}" for number in range(10)]
    for item_id in [*items, "target"]:
        box.send(Item(event_id=f"item-{item_id}", ts=NOW_MS, item_id=item_id, kind="product", title=item_id))
    clicks = [(f"u{user}", item_id) for user in range(20) for item_id in items]
    clicks += [(f"bot-{number}", "target") for number in range(40)]
    with capture_logs() as lines:
        for number, (user_id, item_id) in enumerate(clicks):
            box.send(Click(event_id=f"e{number}", ts=NOW_MS + number, user_id=user_id, item_id=item_id))
    counts = box.intake.accounts.totals()[TOPICS.clicks]
    assert counts["in"] == len(clicks) == counts["learnt"] + counts["capped"]
    assert (counts["capped"], counts["quarantined"]) == (38, 0)
    (line,) = [line for line in lines if line["event"] == "item_capped"]
    assert (line["item"], line["rule"], line["left_out_so_far"]) == ("target", "item_burst", 1)
    report = box.intake.guard_report("home")
    assert [(cap.key, cap.left_out) for cap in report.caps] == [("item/target", 38)]
