"""A context holds the shopper's earlier items by session, and the number of shoppers and items is bounded."""

import json

import pytest

from peft_adapters.ranking.shoppers import HISTORY_ITEMS, PASSED_ITEMS, SESSION_GAP_MS, Shoppers, pad

NOW = 1_700_000_000_000


def test_unknown_shopper_has_no_context() -> None:
    shoppers = Shoppers()
    assert shoppers.context("ann", None, NOW)[:2] == ([], [])
    assert shoppers.session_before("ann", None, NOW, limit=5) == []
    assert "ann" not in shoppers


def test_context_is_as_of_before_the_event() -> None:
    shoppers = Shoppers()
    shoppers.update("ann", "s1", NOW, 7)
    before = shoppers.context("ann", "s1", NOW + 1)
    shoppers.update("ann", "s1", NOW + 1, 8)
    assert before == ([7], [0], [1])
    assert shoppers.context("ann", "s1", NOW + 2)[:2] == ([8, 7], [0, 0])


def test_asking_changes_nothing() -> None:
    shoppers = Shoppers()
    shoppers.update("ann", "s1", NOW, 7)
    state = shoppers.state_dict()
    shoppers.context("ann", "s2", NOW + 1)
    shoppers.context("bob", None, NOW + 1)
    shoppers.session_before("ann", "s2", NOW + 1, limit=5)
    assert shoppers.state_dict() == state


def test_sessions_by_id() -> None:
    shoppers = Shoppers()
    for session, item in (("s1", 1), ("s1", 2), ("s2", 3), ("s3", 4)):
        shoppers.update("ann", session, NOW, item)
    assert shoppers.context("ann", "s3", NOW)[:2] == ([4, 3, 2, 1], [0, 1, 2, 2])
    assert shoppers.context("ann", "s4", NOW)[:2] == ([4, 3, 2, 1], [1, 2, 3, 3])
    assert shoppers.session_before("ann", "s3", NOW, limit=5) == [4]
    assert shoppers.session_before("ann", "s4", NOW, limit=5) == []


def test_one_session_id_goes_on_over_any_pause() -> None:
    shoppers = Shoppers()
    shoppers.update("ann", "s1", NOW, 1)
    assert shoppers.context("ann", "s1", NOW + 100 * SESSION_GAP_MS)[:2] == ([1], [0])


@pytest.mark.parametrize(("pause_ms", "age"), [(SESSION_GAP_MS - 1, 0), (SESSION_GAP_MS, 1)])
@pytest.mark.parametrize("ids", [(None, None), ("s1", None), (None, "s1")])
def test_sessions_by_gap_where_an_id_is_missing(pause_ms: int, age: int, ids: tuple[str | None, str | None]) -> None:
    shoppers = Shoppers()
    shoppers.update("ann", ids[0], NOW, 1)
    assert shoppers.context("ann", ids[1], NOW + pause_ms)[:2] == ([1], [age])
    shoppers.update("ann", ids[1], NOW + pause_ms, 2)
    assert shoppers.context("ann", ids[1], NOW + pause_ms)[:2] == ([2, 1], [0, age])


def test_an_event_out_of_order_stays_in_the_session() -> None:
    shoppers = Shoppers()
    shoppers.update("ann", None, NOW, 1)
    assert shoppers.context("ann", None, NOW - 10 * SESSION_GAP_MS)[:2] == ([1], [0])


def test_session_before_is_limited_to_the_newest() -> None:
    shoppers = Shoppers()
    for item in range(6):
        shoppers.update("ann", "s1", NOW, item)
    assert shoppers.session_before("ann", "s1", NOW, limit=3) == [5, 4, 3]


def test_history_keeps_the_newest() -> None:
    shoppers = Shoppers()
    for item in range(HISTORY_ITEMS + 10):
        shoppers.update("ann", f"s{item}", NOW, item)
    items, ages = shoppers.context("ann", f"s{HISTORY_ITEMS + 9}", NOW)[:2]
    assert items == list(range(HISTORY_ITEMS + 9, 9, -1))
    assert ages == list(range(HISTORY_ITEMS))


def test_the_least_recently_seen_is_forgotten_first() -> None:
    shoppers = Shoppers(max_shoppers=2)
    for user in ("ann", "bob", "ann", "cat"):
        shoppers.update(user, None, NOW, 1)
    assert len(shoppers) == 2
    assert [user in shoppers for user in ("ann", "bob", "cat")] == [True, False, True]


def test_state_comes_back_exactly_with_its_order_through_json() -> None:
    shoppers = Shoppers(max_shoppers=2)
    for index, user in enumerate(("ann", "bob", "ann")):
        shoppers.update(user, None if user == "bob" else "s1", NOW + index, index)
    shoppers.pass_over("ann", NOW, [7, 8])
    restored = Shoppers(max_shoppers=2)
    restored.load_state_dict(json.loads(json.dumps(shoppers.state_dict())))
    assert restored.state_dict() == shoppers.state_dict()
    for either in (shoppers, restored):
        either.update("cat", None, NOW, 9)
        assert "bob" not in either
    assert restored.context("ann", "s1", NOW)[:2] == shoppers.context("ann", "s1", NOW)[:2] == ([2, 0], [0, 0])
    assert restored.passed_over("ann", NOW) == [8, 7]


def test_a_state_stands_still_when_events_go_on() -> None:
    shoppers, restored = Shoppers(), Shoppers()
    shoppers.update("ann", "s1", NOW, 1)
    state = shoppers.state_dict()
    restored.load_state_dict(state)
    shoppers.update("ann", "s1", NOW, 2)
    restored.update("ann", "s1", NOW, 3)
    assert state["ann"][:3] == [0, [1], [0]]


def test_pad_fills_with_minus_one() -> None:
    contexts = pad([([3, 1], [0, 2]), ([], []), ([4], [1])])
    assert contexts.items.tolist() == [[3, 1], [-1, -1], [4, -1]]
    assert contexts.ages.tolist() == [[0, 2], [-1, -1], [1, -1]]
    assert len(contexts) == 3
    assert pad([]).items.shape == (0, 0)
    assert pad([([], [])]).items.shape == (1, 0)
    assert contexts.passed.shape == (3, 0)
    assert pad([([1], [0]), ([], [])], [[], [5, 6]]).passed.tolist() == [[-1, -1], [5, 6]]


def test_as_of_a_time_later_items_are_not_there() -> None:
    shoppers = Shoppers()
    for minute, (session, item) in enumerate([("s1", 1), ("s1", 2), ("s2", 3), ("s2", 4)]):
        shoppers.update("ann", session, NOW + minute, item)
    assert shoppers.context("ann", "s1", NOW + 1, only_before=True)[:2] == (
        [1],
        [0],
    )  # an item of the same time is later
    assert shoppers.context("ann", "s2", NOW + 2, only_before=True)[:2] == ([2, 1], [1, 1])
    assert shoppers.context("ann", "s2", NOW + 3, only_before=True)[:2] == ([3, 2, 1], [0, 1, 1])
    assert shoppers.context("ann", "s2", NOW, only_before=True)[:2] == ([], [])
    assert shoppers.context("ann", "s2", NOW + 9, only_before=True)[:2] == shoppers.context("ann", "s2", NOW + 9)[:2]


def test_since_gives_items_with_what_was_before_them_in_their_session() -> None:
    shoppers = Shoppers()
    for minute, (session, item) in enumerate([("s1", 1), ("s2", 2), ("s2", 3), ("s2", 4)]):
        shoppers.update("ann", session, NOW + minute, item)
    assert shoppers.since("ann", NOW + 1, limit=1) == [(2, []), (3, [2]), (4, [3])]
    assert shoppers.since("ann", NOW + 3, limit=5) == [(4, [3, 2])]
    assert shoppers.since("bob", NOW, limit=5) == []


def test_keys_of_sessions_are_dropped_with_their_items() -> None:
    shoppers = Shoppers()
    for item in range(HISTORY_ITEMS + 50):
        shoppers.update("ann", f"s{item}", NOW + item, item)
    assert len(shoppers.state_dict()["ann"][4]) == HISTORY_ITEMS
    early = NOW + 60
    items, ages = shoppers.context("ann", "s60", early, only_before=True)[:2]
    assert (items[0], ages[0]) == (59, 1)
    assert shoppers.context("ann", "s59", early, only_before=True)[1][0] == 0


def test_what_was_passed_over_is_kept_newest_first_as_of_a_time() -> None:
    shoppers = Shoppers()
    shoppers.update("ann", None, NOW, 1)
    shoppers.pass_over("ann", NOW, [2, 3])
    shoppers.pass_over("ann", NOW + 5, [4])
    assert shoppers.passed_over("ann", NOW + 5) == [4, 3, 2]
    assert shoppers.passed_over("ann", NOW + 5, only_before=True) == [3, 2]  # an impression of the same time is later
    assert shoppers.passed_over("bob", NOW + 5) == []
    assert shoppers.context("ann", None, NOW + 5)[:2] == ([1], [0])


def test_what_was_passed_over_is_bounded_and_forgotten_with_its_shopper() -> None:
    shoppers = Shoppers()
    shoppers.pass_over("ann", NOW, [1])
    assert "ann" not in shoppers  # a shopper without events gets no state
    shoppers.update("ann", None, NOW, 1)
    for item in range(PASSED_ITEMS + 10):
        shoppers.pass_over("ann", NOW + item, [item, item])
    kept = shoppers.passed_over("ann", NOW)
    assert len(kept) == PASSED_ITEMS
    assert kept[:3] == [PASSED_ITEMS + 9, PASSED_ITEMS + 9, PASSED_ITEMS + 8]
    assert len(shoppers.passed_over("ann", NOW + PASSED_ITEMS + 9, only_before=True)) == PASSED_ITEMS - 2
    shoppers.forget("ann")
    shoppers.update("ann", None, NOW, 1)
    assert shoppers.passed_over("ann", NOW) == []


def test_a_shopper_can_be_forgotten() -> None:
    shoppers = Shoppers()
    shoppers.update("ann", None, NOW, 1)
    assert shoppers.forget("ann")
    assert not shoppers.forget("ann")
    assert "ann" not in shoppers


def test_times_count_from_the_request_and_never_backwards() -> None:
    shoppers = Shoppers()
    for item, ts_ms in enumerate((NOW, NOW + 5, NOW + 3)):
        shoppers.update("ann", "s1", ts_ms, item)
    assert shoppers.context("ann", "s1", NOW + 10).elapsed_ms == [7, 5, 10]
    assert shoppers.context("ann", "s1", NOW + 4).elapsed_ms == [1, 0, 4]
    assert shoppers.context("ann", "s1", NOW + 4, only_before=True) == ([2, 0], [0, 0], [1, 4])
    contexts = pad([shoppers.context("ann", "s1", NOW + 10), ([8], [0])])
    assert contexts.elapsed_ms.tolist() == [[7, 5, 10], [0, -1, -1]]
    assert contexts.part(slice(1, 2)).elapsed_ms.tolist() == [[0, -1, -1]]
