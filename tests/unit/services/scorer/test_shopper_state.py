"""What a scorer knows of shoppers, and what a request may say instead."""

import threading
import time

from services.scorer.shopper_state import ShopperState
from streams.events import Click, Purchase

MINUTE_MS = 60_000


def click(number: int, item_id: str, *, ts: int, user_id: str = "u", session_id: str | None = None) -> Click:
    return Click(event_id=f"c{number}", ts=ts, user_id=user_id, session_id=session_id, item_id=item_id)


def state_of(*clicks: Click, rows: dict[str, int] | None = None) -> ShopperState:
    state = ShopperState({"a": 0, "b": 1, "c": 2} if rows is None else rows, max_shoppers=10, pseudonymise=str)
    for event in clicks:
        state.take_in(event, publish_ts_ms=0)
    return state


def test_the_session_at_hand_and_earlier_ones_newest_first() -> None:
    state = state_of(click(1, "a", ts=0), click(2, "b", ts=MINUTE_MS), click(3, "c", ts=120 * MINUTE_MS))
    assert state.context("u", None, 121 * MINUTE_MS, session=None)[:2] == ([2, 1, 0], [0, 1, 1])
    assert state.context("u", None, 500 * MINUTE_MS, session=None)[:2] == ([2, 1, 0], [1, 2, 2])
    assert state.context("stranger", None, 0, session=None)[:2] == ([], [])
    assert state.context(None, None, 0, session=None)[:2] == ([], [])


def test_the_session_in_a_request_replaces_what_is_known_of_it_and_nothing_else() -> None:
    state = state_of(click(1, "a", ts=0), click(2, "b", ts=120 * MINUTE_MS))
    assert state.context("u", None, 121 * MINUTE_MS, session=[2, 1])[:2] == ([1, 2, 0], [0, 0, 1])
    assert state.context("u", None, 121 * MINUTE_MS, session=[])[:2] == ([0], [1])
    assert state.context("u", "another", 121 * MINUTE_MS, session=[2])[:2] == ([2, 0], [0, 1])
    assert state.context(None, None, 0, session=[2, 1])[:2] == ([1, 2], [0, 0])


def test_times_are_known_of_events_and_guessed_of_what_a_request_states() -> None:
    state, day_ms = state_of(click(1, "a", ts=0), click(2, "b", ts=120 * MINUTE_MS)), 24 * 60 * MINUTE_MS
    now_ms = 121 * MINUTE_MS
    assert state.context("u", None, now_ms).elapsed_ms == [MINUTE_MS, now_ms]
    assert state.context("u", None, now_ms, session=[2, 1]).elapsed_ms == [0, 0, now_ms]
    assert state.context("u", None, now_ms, earlier=[[2], [0, 1]]).elapsed_ms == [MINUTE_MS, day_ms, day_ms, 2 * day_ms]


def test_of_a_very_long_session_the_newest_items_count_as_many_as_the_learner_looks_at() -> None:
    state = state_of(click(1, "a", ts=0))
    items, ages = state.context("u", None, 120 * MINUTE_MS, session=[1] * 10 + [2] * 128)[:2]
    assert (items, ages) == ([2] * 128, [0] * 128)


def test_a_session_id_tells_sessions_apart() -> None:
    state = state_of(click(1, "a", ts=0, session_id="s1"))
    assert state.context("u", "s1", 1, session=None)[:2] == ([0], [0])
    assert state.context("u", "s2", 1, session=None)[:2] == ([0], [1])


def test_an_event_that_comes_twice_counts_once_and_a_purchase_beside_a_click_counts() -> None:
    state = state_of(click(1, "a", ts=0), click(1, "a", ts=0))
    state.take_in(Purchase(event_id="c1", ts=1, user_id="u", item_id="a"), publish_ts_ms=0)
    assert state.context("u", None, 2, session=None)[:2] == ([0, 0], [0, 0])


def test_an_event_of_an_unknown_item_waits_for_it() -> None:
    rows = {"a": 0}
    state = state_of(click(1, "a", ts=0), click(2, "late", ts=1), rows=rows)
    assert state.context("u", None, 2, session=None)[:2] == ([0], [0])
    rows["late"] = 1
    state.item_arrived("late")
    assert state.context("u", None, 2, session=None)[:2] == ([1, 0], [0, 0])
    state.item_arrived("late")
    assert state.context("u", None, 2, session=None)[:2] == ([1, 0], [0, 0])


def test_the_least_recently_seen_shopper_is_forgotten_first() -> None:
    state = state_of(*(click(number, "a", ts=number, user_id=f"u{number}") for number in range(11)))
    assert len(state) == 10
    assert state.context("u0", None, 20, session=None)[:2] == ([], [])
    assert state.context("u1", None, 20, session=None)[:2] == ([0], [0])


def test_what_is_asked_while_events_come_in_is_never_half_an_event() -> None:
    state = state_of()
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            items, ages = state.context("u", None, 10**9, session=None)[:2]
            assert len(items) == len(ages)

    asking = [threading.Thread(target=ask) for _ in range(3)]
    for thread in asking:
        thread.start()
    for number in range(2_000):
        state.take_in(click(number, "abc"[number % 3], ts=number), publish_ts_ms=0)
    done.set()
    for thread in asking:
        thread.join()
    assert len(state.context("u", None, 10**9, session=None)[0]) == 128


def test_a_shopper_is_known_by_pseudonym_alone() -> None:
    state = ShopperState({"a": 0}, max_shoppers=10, pseudonymise=lambda user_id: f"<{user_id}>")
    state.take_in(click(1, "a", ts=0, session_id="s"), publish_ts_ms=0)
    assert state.context("<u>", "<s>", 1, session=None)[:2] == ([0], [0])
    assert state.context("u", "s", 1, session=None)[:2] == ([], [])


def test_a_forgotten_shopper_leaves_nothing_and_what_is_read_of_the_time_before_counts_no_more() -> None:
    state = ShopperState({"a": 0}, max_shoppers=10, pseudonymise=lambda user_id: f"<{user_id}>")
    state.take_in(click(1, "a", ts=0), publish_ts_ms=100)
    state.take_in(click(2, "not-yet", ts=0), publish_ts_ms=100)
    state.take_in(click(3, "a", ts=0, user_id="v"), publish_ts_ms=100)
    state.forget("<u>", until_ms=200)
    state.item_arrived("not-yet")
    state.take_in(click(4, "a", ts=0), publish_ts_ms=200)
    assert state.context("<u>", None, 1, session=None)[:2] == ([], [])
    assert state.context("<v>", None, 1, session=None)[:2] == ([0], [0])
    state.take_in(click(5, "a", ts=0), publish_ts_ms=201)
    assert state.context("<u>", None, 1, session=None)[:2] == ([0], [0])


def test_a_click_dated_ahead_lets_no_other_one_expire() -> None:
    rows = {"a": 0}
    state = ShopperState(rows, max_shoppers=10, pseudonymise=str)
    now_ms = time.time_ns() // 1_000_000
    state.take_in(click(1, "late", ts=now_ms), publish_ts_ms=now_ms)
    for number, ahead_ms in enumerate((59_000, 23 * 60 * MINUTE_MS), start=2):
        state.take_in(click(number, "a", ts=now_ms + ahead_ms, user_id="ahead"), publish_ts_ms=now_ms)
    state.take_in(click(4, "a", ts=now_ms + 300 * MINUTE_MS, user_id="v"), publish_ts_ms=now_ms + 300 * MINUTE_MS)
    rows["late"] = 1
    state.item_arrived("late")
    assert state.context("u", None, now_ms, session=None)[:2] == ([1], [0])
