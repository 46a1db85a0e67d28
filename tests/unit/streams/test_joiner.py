import json
from pathlib import Path
from typing import Any

import pytest

from streams.events import Click, Impression, Purchase, ShownItem, UserEvent
from streams.examples import Example, ShownList
from streams.join_store import JoinStore
from streams.joiner import Joiner

CLICK_WINDOW, PURCHASE_WINDOW = 10_000, 60_000  # ms


def click(number: int, item_id: str = "known", ts: int = 1_000, **fields: Any) -> Click:
    fields = {"user_id": "u", "session_id": "s", "position": 4} | fields
    return Click(event_id=f"e-{number}", ts=ts, item_id=item_id, **fields)


def shown(number: int, *item_ids: str, ts: int = 1_000, user_id: str = "u", request_id: str = "") -> Impression:
    return Impression(
        event_id=f"i-{number}",
        ts=ts,
        user_id=user_id,
        request_id=request_id or f"r-{number}",
        scenario="home",
        items=tuple(ShownItem(item_id=item_id, position=place) for place, item_id in enumerate(item_ids)),
    )


def joiner(**options: Any) -> Joiner:
    windows = {"click_window_seconds": CLICK_WINDOW / 1000, "purchase_window_seconds": PURCHASE_WINDOW / 1000}
    return Joiner(is_known=lambda item_id: item_id.startswith("known"), **(windows | options))


def offered(join: Joiner, *events: UserEvent | Impression) -> list[Example]:
    return [example for event in events for example in join.offer(event, publish_ts_ms=2_000_000)]


def counts(**expected: int) -> dict[str, int]:
    return dict.fromkeys(("in", "learnt", "duplicate", "expired", "forgotten", "pending"), 0) | expected


def marks(lists: list[ShownList]) -> list[dict[str, bool]]:
    return [dict(zip(shown.item_ids, shown.clicked, strict=True)) for shown in lists]


class TestPositives:
    def test_event_of_a_known_item_is_an_example_at_once(self) -> None:
        join = joiner(pseudonymise=str.upper)
        purchase = Purchase(event_id="p", ts=5, user_id="u", item_id="known", scenario="search")
        (example,) = join.offer(click(1), publish_ts_ms=2_000, topic="clicks")
        assert example == Example("e-1", "U", "S", "known", 1_000, "click", "home", 4, 2_000, "clicks")
        (example,) = join.offer(purchase, publish_ts_ms=7)
        assert example == Example("p", "U", None, "known", 5, "purchase", "search", None, 7)
        assert join.counts("clicks") == counts(**{"in": 1, "learnt": 1}) == join.counts()

    def test_duplicates_are_dropped_and_counted_and_ids_of_other_kinds_are_others(self) -> None:
        join = joiner()
        assert len(offered(join, click(1), click(1), click(2), click(1))) == 2
        assert len(offered(join, Purchase(event_id="e-1", ts=5, user_id="u", item_id="known"))) == 1
        assert join.counts() == counts(**{"in": 5, "learnt": 3, "duplicate": 2})

    def test_a_repeat_beyond_the_horizon_is_taken_for_new(self) -> None:
        join = joiner(dedupe_horizon=2)
        offered(join, click(1), click(2), click(3))
        assert offered(join, click(2)) == []
        assert len(offered(join, click(1))) == 1


class TestWaitingForAnItem:
    def test_events_of_an_unknown_item_wait_for_it_in_order(self) -> None:
        join = joiner()
        assert offered(join, click(1, "new", ts=9_000), click(2, "other"), click(3, "new", ts=1)) == []
        assert join.counts()["pending"] == 3
        assert [example.event_id for example in join.item_arrived("new")] == ["e-1", "e-3"]
        assert join.item_arrived("new") == join.item_arrived("never") == []
        assert join.counts() == counts(**{"in": 3, "learnt": 2, "pending": 1})

    def test_held_events_expire_with_event_time(self) -> None:
        join = joiner(hold_seconds=10)
        offered(join, click(1, "new", ts=5_000), click(2, "new", ts=1_000))
        join.advance(11_000)
        assert join.counts()["expired"] == 0
        join.advance(11_001)
        join.advance(11_001)
        assert [example.event_id for example in join.item_arrived("new")] == ["e-1"]
        assert join.counts() == counts(**{"in": 2, "learnt": 1, "expired": 1})

    def test_an_expired_event_is_still_a_duplicate(self) -> None:
        join = joiner(hold_seconds=1)
        offered(join, click(1, "new"))
        join.advance(1_000_000)
        offered(join, click(1, "new"))
        assert join.counts() == counts(**{"in": 2, "duplicate": 1, "expired": 1})

    def test_beyond_max_held_the_longest_waiting_expires(self) -> None:
        join = joiner(max_held=2)
        offered(join, click(1, "new"), click(2, "new"), click(3, "new"))
        assert [example.event_id for example in join.item_arrived("new")] == ["e-2", "e-3"]
        assert join.counts() == counts(**{"in": 3, "learnt": 2, "expired": 1})


class TestLists:
    def test_what_was_shown_and_not_clicked_is_a_negative_once_the_window_has_passed(self) -> None:
        join = joiner()
        offered(join, shown(1, "known-a", "known-b", "unknown", "known-c"))
        offered(join, click(1, "known-b", ts=3_000, request_id="r-1"))
        assert join.advance(1_000 + CLICK_WINDOW) == []
        (due,) = join.advance(1_001 + CLICK_WINDOW)
        assert due == ShownList(
            "u", None, 1_000, ("known-a", "known-b", "known-c"), (0, 1, 3), (False, True, False), topic=""
        )
        assert join.advance(1_002 + CLICK_WINDOW) == []
        assert join.counts() == counts(**{"in": 2, "learnt": 2})

    def test_the_position_of_the_impression_comes_with_the_click(self) -> None:
        join = joiner()
        offered(join, shown(1, "known-a", "known-b"))
        (example,) = offered(join, click(1, "known-b", position=None, request_id="r-1"))
        assert example.position == 1

    def test_without_a_request_the_newest_impression_of_the_item_to_the_user_is_meant(self) -> None:
        join = joiner()
        offered(join, shown(1, "known-a"), shown(2, "known-a", ts=2_000), shown(3, "known-b", ts=3_000))
        offered(join, shown(4, "known-a", user_id="v", ts=4_000))
        offered(join, click(1, "known-a", ts=5_000))
        due = join.advance(10**6)
        assert marks(due) == [{"known-a": False}, {"known-a": True}, {"known-b": False}, {"known-a": False}]

    def test_a_click_before_or_long_after_an_impression_does_not_answer_it(self) -> None:
        join = joiner()
        offered(join, shown(1, "known-a", ts=20_000))
        offered(join, click(1, "known-a", ts=14_999), click(2, "known-a", ts=20_001 + CLICK_WINDOW))
        offered(join, click(3, "known-a", ts=21_000, user_id="another", request_id="r-1"))
        assert marks(join.advance(10**6)) == [{"known-a": False}]

    def test_a_click_that_comes_before_its_impression_is_not_missed(self) -> None:
        join = joiner()
        offered(join, click(1, "known-a", request_id="r-1"), shown(1, "known-a", "known-b"))
        assert marks(join.advance(10**6)) == [{"known-a": False, "known-b": False}]  # no impression was ever kept
        offered(join, click(2, "known-b", request_id="r-2"), shown(2, "known-a", "known-b"))
        assert marks(join.advance(2 * 10**6)) == [{"known-a": False, "known-b": False}]
        join = joiner()
        offered(join, shown(0, "known-c"), click(2, "known-b", request_id="r-2"), shown(2, "known-a", "known-b"))
        assert marks(join.advance(10**6))[1] == {"known-a": False, "known-b": True}

    def test_what_was_bought_by_then_is_told_from_what_was_clicked(self) -> None:
        join = joiner()
        early = Purchase(event_id="p-0", ts=900, user_id="u", item_id="known-c", request_id="r-1")
        offered(join, shown(0, "known"), early, shown(1, "unknown", "known-a", "known-b", "known-c"))
        offered(join, click(1, "known-a", ts=2_000, request_id="r-1"))
        offered(join, *(click(n, "known-b", ts=2_000, request_id="r-1") for n in (2, 3)))
        offered(join, Purchase(event_id="p-1", ts=3_000, user_id="u", item_id="known-b"))
        due = join.advance(10**6)[1]
        assert (due.clicked, due.bought) == ((True, True, True), (False, True, True))

    def test_a_list_of_nothing_known_expires(self) -> None:
        join = joiner()
        offered(join, shown(1, "a", "b"))
        assert join.advance(10**6) == []
        assert join.counts() == counts(**{"in": 1, "expired": 1})

    def test_so_many_lists_at_a_time(self) -> None:
        join = joiner()
        offered(join, *(shown(n, "known-a") for n in range(5)))
        assert [len(join.advance(50_000, max_lists=2)) for _ in range(4)] == [2, 2, 1, 0]


class TestCorrections:
    def late(self, event: UserEvent, **options: Any) -> list[ShownList]:
        join = joiner(**options)
        offered(join, shown(1, "known-a", "known-b"))
        assert len(join.advance(1_001 + CLICK_WINDOW)) == 1
        assert len(offered(join, event)) == 1
        return join.advance(1_002 + CLICK_WINDOW)

    def test_a_purchase_after_the_negative_was_learnt_corrects_it(self) -> None:
        purchase = Purchase(event_id="p", ts=50_000, user_id="u", item_id="known-b")
        (correction,) = self.late(purchase)
        assert correction == ShownList(
            "u", None, 1_000, ("known-b",), (1,), (True,), is_correction=True, bought=(True,)
        )

    def test_a_click_of_the_same_request_does_so_too(self) -> None:
        (correction,) = self.late(click(1, "known-a", ts=50_000, request_id="r-1"))
        assert correction == ShownList(
            "u", None, 1_000, ("known-a",), (0,), (True,), is_correction=True, bought=(False,)
        )

    def test_each_only_once_and_of_what_was_clicked_the_purchase_alone(self) -> None:
        join = joiner()
        offered(join, shown(1, "known-a", "known-b"), click(1, "known-a", ts=2_000, request_id="r-1"))
        join.advance(1_001 + CLICK_WINDOW)
        offered(join, click(2, "known-a", ts=30_000, request_id="r-1"))
        for number, item_id in enumerate(("known-a", "known-b", "known-b", "known-a")):
            offered(join, Purchase(event_id=f"p-{number}", ts=40_000, user_id="u", item_id=item_id, request_id="r-1"))
        corrections = [(late.item_ids, late.clicked, late.bought) for late in join.advance(1_002 + CLICK_WINDOW)]
        assert corrections == [(("known-a",), (False,), (True,)), (("known-b",), (True,), (True,))]

    def test_nothing_once_the_purchase_window_has_passed(self) -> None:
        join = joiner()
        offered(join, shown(1, "known-a"))
        join.advance(1_001 + CLICK_WINDOW)
        assert len(join.store) == 1
        join.advance(1_001 + PURCHASE_WINDOW)
        assert len(join.store) == 0
        offered(join, Purchase(event_id="p", ts=30_000, user_id="u", item_id="known-a", request_id="r-1"))
        assert join.advance(1_002 + PURCHASE_WINDOW) == []


class TestBounds:
    def test_beyond_max_impressions_the_oldest_expire(self) -> None:
        join = joiner(max_impressions=3)
        offered(join, *(shown(n, f"known-{n}", ts=1_000 + n) for n in range(5)))
        join.advance(2_000)
        assert join.counts() == counts(**{"in": 5, "expired": 2, "pending": 3})
        assert [due.item_ids for due in join.advance(10**6)] == [("known-2",), ("known-3",), ("known-4",)]

    def test_spilled_to_disk_it_is_the_same(self, tmp_path: Path) -> None:
        whole, spilled = joiner(), joiner(store=JoinStore(tmp_path / "join", cached_impressions=2))
        for join in (whole, spilled):
            offered(join, *(shown(n, "known-a", "known-b", user_id=f"u-{n % 3}", ts=1_000 + n) for n in range(20)))
        got = []
        for join in (whole, spilled):
            examples = offered(
                join,
                click(1, "known-b", request_id="r-2", user_id="u-2", ts=3_000, position=None),
                Purchase(event_id="p", user_id="u-1", item_id="known-a", ts=3_000),
            )
            lists = join.advance(10**6, max_lists=7) + join.advance(10**6)
            got.append((examples, lists, join.counts()))
        assert got[0] == got[1]
        assert got[0][1][19].bought == (True, False)
        assert [n for n, due in enumerate(got[0][1]) if any(due.clicked)] == [2, 19]

    def test_ids_with_any_characters_survive(self, tmp_path: Path) -> None:
        odd = ("known-\0", "known-\x1f", "known-é", 'known-",')
        join = joiner(store=JoinStore(tmp_path / "join", cached_impressions=1))
        offered(join, shown(1, *odd, user_id="\1u\0"), shown(2, "known"))
        offered(join, click(1, "known-\x1f", user_id="\1u\0", request_id="r-1"))
        first = join.advance(10**6)[0]
        assert (first.user_id, first.item_ids, first.clicked) == ("\1u\0", odd, (False, True, False, False))


def test_forgotten_is_forgotten() -> None:
    join = joiner()
    offered(join, shown(1, "known-a"), shown(2, "known-a", user_id="v"), click(1, "new"))
    join.forget("u")
    assert join.counts() == counts(**{"in": 3, "forgotten": 2, "pending": 1})
    assert join.item_arrived("new") == []
    assert [due.user_id for due in join.advance(10**6)] == ["v"]


def test_restored_joiner_goes_on_exactly(tmp_path: Path) -> None:
    options = {"hold_seconds": 10, "dedupe_horizon": 5}
    first = joiner(store=JoinStore(tmp_path / "join"), **options)
    offered(first, click(1), click(1), shown(1, "known-a", "known-b"), shown(2, "known-c", ts=5_000))
    offered(first, click(2, "new", ts=50), click(3, "new", ts=20), click(4, "other"))
    first.advance(1_001 + CLICK_WINDOW)
    offered(first, Purchase(event_id="p", ts=12_000, user_id="u", item_id="known-b", request_id="r-1"))
    saved = json.dumps(first.state())
    first.store.commit(checkpoint="1")
    offered(first, click(88, "lost with the kill"), shown(99, "known-a"))
    first.store.close()
    second = joiner(store=JoinStore(tmp_path / "join"), **options)
    second.restore(json.loads(saved))
    assert second.counts() == counts(**{"in": 8, "learnt": 3, "duplicate": 1, "expired": 3, "pending": 1})
    assert [example.event_id for example in offered(second, click(3), click(1))] == ["e-1"]
    lists = second.advance(10**6)
    assert [(due.is_correction, due.item_ids) for due in lists] == [(True, ("known-b",)), (False, ("known-c",))]


def test_state_of_another_version_is_refused() -> None:
    with pytest.raises(ValueError, match="must be of version 4, got 1"):
        joiner().restore({"version": 1})


@pytest.mark.parametrize("wrong", [{"hold_seconds": 0}, {"max_held": 0}, {"dedupe_horizon": -1}])
def test_limits_are_checked(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=f"`{name}` must be above 0"):
        joiner(**wrong)


def test_a_correction_window_shorter_than_the_click_window_is_refused() -> None:
    with pytest.raises(ValueError, match="`purchase_window_seconds` must be at least"):
        joiner(purchase_window_seconds=1)


class TestSearches:
    def search(self, number: int, *item_ids: str, query: str | None, **fields: Any) -> Impression:
        return shown(number, *item_ids, **fields).model_copy(update={"query": query})

    def test_a_click_and_its_list_know_what_was_searched_for(self) -> None:
        join = joiner()
        offered(join, self.search(1, "known", "known-2", query="  red \n mug "), shown(2, "known-3"))
        asked, plain, other = offered(
            join, click(1, request_id="r-1"), click(2, "known-3", request_id="r-2"), click(3, "known-9")
        )
        assert (asked.query, plain.query, other.query) == ("red mug", None, None)
        assert [one.query for one in join.advance(50_000)] == ["red mug", None]

    def test_an_event_may_carry_its_query_itself(self) -> None:
        join = joiner()
        (alone,) = offered(join, click(1, query=" red  mug "))
        _, own, joined = offered(
            join,
            self.search(1, "known", "known-2", query="lamp"),
            click(2, "known-3", query="rug"),
            click(3, "known", query="mug"),
            click(4, "known-2"),
        )
        assert (alone.query, own.query, joined.query) == ("red mug", "mug", "lamp")

    def test_a_correction_knows_it_too(self) -> None:
        join = joiner()
        offered(join, self.search(1, "known", "known-2", query="mug"))
        join.advance(20_000)
        (bought,) = offered(join, Purchase(event_id="p", ts=30_000, user_id="u", item_id="known", request_id="r-1"))
        assert bought.query == "mug"
        (late,) = join.advance(31_000)
        assert (late.is_correction, late.query) == (True, "mug")

    def test_what_waits_for_its_item_or_its_window_keeps_it_through_a_restart(self, tmp_path: Path) -> None:
        store = JoinStore(tmp_path / "join.sqlite")
        join = joiner(store=store)
        queries = ["mug", "a\0b", None, " ", "x" * 600]
        offered(join, *(self.search(n, "known", "new", query=query) for n, query in enumerate(queries)))
        offered(join, click(9, "new", request_id="r-0"))
        state = json.loads(json.dumps(join.state()))
        store.commit()
        store.close()
        again = joiner(store=JoinStore(tmp_path / "join.sqlite"))
        again.restore(state)
        assert [example.query for example in again.item_arrived("new")] == ["mug"]
        assert [one.query for one in again.advance(50_000)] == ["mug", "a\0b", None, None, "x" * 512]
