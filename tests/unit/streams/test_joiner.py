import json
from typing import Any

import pytest

from streams.events import Click, Purchase
from streams.joiner import Example, JoinCounts, Joiner


def click(number: int, item_id: str = "known", ts: int = 1_000) -> Click:
    return Click(event_id=f"e-{number}", ts=ts, user_id="u", session_id="s", item_id=item_id, position=4)


def joiner(**options: Any) -> Joiner:
    return Joiner(is_known=lambda item_id: item_id == "known", **options)


def offered(join: Joiner, *events: Click) -> list[Example]:
    return [example for event in events for example in join.offer(event, publish_ts_ms=2_000)]


def test_event_of_a_known_item_is_an_example_at_once() -> None:
    join = joiner()
    purchase = Purchase(event_id="p", ts=5, user_id="u", item_id="known", scenario="search")
    assert offered(join, click(1)) == [Example("e-1", "u", "s", "known", 1_000, "click", "home", 4, 2_000)]
    assert join.offer(purchase, publish_ts_ms=7) == [Example("p", "u", None, "known", 5, "purchase", "search", None, 7)]
    assert join.counts == JoinCounts(seen=2, emitted=2)


def test_duplicates_are_dropped_and_counted() -> None:
    join = joiner()
    assert len(offered(join, click(1), click(1), click(2), click(1))) == 2
    assert join.counts == JoinCounts(seen=4, emitted=2, duplicates=2)


def test_a_repeat_beyond_the_horizon_is_taken_for_new() -> None:
    join = joiner(dedupe_horizon=2)
    offered(join, click(1), click(2), click(3))
    assert offered(join, click(2)) == []
    assert len(offered(join, click(1))) == 1


def test_events_of_an_unknown_item_wait_for_it_in_order() -> None:
    join = joiner()
    assert offered(join, click(1, "new", ts=9_000), click(2, "other"), click(3, "new", ts=1)) == []
    assert join.counts.pending == 3
    assert [example.event_id for example in join.item_arrived("new")] == ["e-1", "e-3"]
    assert join.item_arrived("new") == join.item_arrived("never") == []
    assert join.counts == JoinCounts(seen=3, emitted=2, pending=1)


def test_held_events_expire_with_event_time() -> None:
    join = joiner(hold_seconds=10)
    offered(join, click(1, "new", ts=5_000), click(2, "new", ts=1_000))
    assert join.advance(11_000) == 0
    assert join.advance(11_001) == 1
    assert join.advance(11_001) == 0
    assert [example.event_id for example in join.item_arrived("new")] == ["e-1"]
    assert join.counts == JoinCounts(seen=2, emitted=1, expired=1)


def test_a_released_event_does_not_expire() -> None:
    join = joiner(hold_seconds=1)
    offered(join, click(1, "new"))
    join.item_arrived("new")
    assert join.advance(1_000_000) == 0
    assert join.counts == JoinCounts(seen=1, emitted=1)


def test_an_expired_event_is_still_a_duplicate() -> None:
    join = joiner(hold_seconds=1)
    offered(join, click(1, "new"))
    join.advance(1_000_000)
    offered(join, click(1, "new"))
    assert join.counts == JoinCounts(seen=2, duplicates=1, expired=1)


def test_beyond_max_held_the_longest_waiting_expires() -> None:
    join = joiner(max_held=2)
    offered(join, click(1, "new"), click(2, "new"), click(3, "new"))
    assert [example.event_id for example in join.item_arrived("new")] == ["e-2", "e-3"]
    assert join.counts == JoinCounts(seen=3, emitted=2, expired=1)


def test_restored_joiner_goes_on_exactly() -> None:
    first = joiner(hold_seconds=10, dedupe_horizon=3)
    offered(first, click(1), click(1), click(2, "new", ts=50), click(3, "new", ts=20), click(4, "other"))
    saved = json.loads(json.dumps(first.state()))
    second = joiner(hold_seconds=10, dedupe_horizon=3)
    offered(second, click(77, "leftover"))
    second.restore(saved)
    for join in (first, second):  # the horizon of 3 has forgotten e-1, and remembers e-3
        assert [example.event_id for example in offered(join, click(3), click(1))] == ["e-1"]
    assert first.advance(10_021) == second.advance(10_021) == 1
    assert first.item_arrived("new") == second.item_arrived("new") != []
    assert first.state() == second.state()
    assert first.counts == second.counts


def test_state_of_another_version_is_refused() -> None:
    with pytest.raises(ValueError, match="must be of version 1, got 2"):
        joiner().restore({"version": 2})


@pytest.mark.parametrize("wrong", [{"hold_seconds": 0}, {"max_held": 0}, {"dedupe_horizon": -1}])
def test_limits_are_checked(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=f"`{name}` must be above 0"):
        joiner(**wrong)
