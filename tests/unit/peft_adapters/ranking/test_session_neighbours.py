"""Sessions similar to a context, against a direct computation of STAN's formula, and their states."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peft_adapters.ranking.session_neighbours import SessionNeighbours
from peft_adapters.ranking.shoppers import Contexts, Shoppers, pad

DAY_MS = 86_400_000
NOW = 1_700_000_000_000
ITEMS = 12

Event = tuple[int, int]  # key of the session, row of the item


def stream(neighbours: SessionNeighbours, events: Sequence[Event], *, start_ms: int = NOW) -> None:
    keys, rows = np.array(events, dtype=np.int64).reshape(-1, 2).T
    neighbours.update(rows, keys, start_ms + 1_000 * np.arange(len(rows)))


def kept(events: Sequence[Event] = (), *, slots: int = 50, slot_items: int = 8) -> SessionNeighbours:
    neighbours = SessionNeighbours(slots=slots, slot_items=slot_items)
    neighbours.grow(ITEMS)
    stream(neighbours, events)
    return neighbours


def context(current: Sequence[int], earlier: Sequence[int] = ()) -> Contexts:
    """Return a context of items, newest first."""
    return pad([([*current, *earlier], [0] * len(current) + [1] * len(earlier))])


def scores(neighbours: SessionNeighbours, of: Contexts, now_ms: int = NOW) -> np.ndarray:
    return neighbours.scores(of, np.full(len(of), now_ms))[0]


def stan(sessions: Sequence[tuple[Sequence[int], int]], current: Sequence[int], now_ms: int) -> np.ndarray:
    """Return STAN's scores of all items.

    Args:
        sessions: items, oldest first, and time of the last event of each past session.
        current: items of the current session, newest first, without repeats.
        now_ms: time of the request.
    """
    result = np.zeros(ITEMS)
    for items, last_ms in sessions:
        shared = [row for row in current if row in items]
        if not shared:
            continue
        similarity = sum(math.exp(-current.index(row) / 5) for row in shared) / math.sqrt(len(items) * len(current))
        similarity *= math.exp(-(now_ms - last_ms) / DAY_MS / 60)
        nearest = items.index(shared[0])
        for place, row in enumerate(items):
            result[row] += similarity * math.exp(-abs(place - nearest) / 8)
    return result


def test_scores_are_those_of_the_formula() -> None:
    neighbours = kept()
    stream(neighbours, [(1, 0), (1, 1), (1, 2), (1, 3)], start_ms=NOW - 90 * DAY_MS)
    stream(neighbours, [(2, 4), (2, 1), (2, 5)], start_ms=NOW - 10 * DAY_MS)
    stream(neighbours, [(3, 7), (3, 8)], start_ms=NOW - DAY_MS)
    past = [
        ([0, 1, 2, 3], NOW - 90 * DAY_MS + 3_000),
        ([4, 1, 5], NOW - 10 * DAY_MS + 2_000),
    ]
    np.testing.assert_allclose(scores(neighbours, context([1, 6, 2]))[0, 0], stan(past, [1, 6, 2], NOW), rtol=1e-5)


def test_items_after_the_shared_one_have_a_score_of_their_own() -> None:
    _, directed, without_position = scores(kept([(1, 0), (1, 1), (1, 2), (1, 3)]), context([1]))[:, 0]
    assert directed[:2].tolist() == [0, 0]
    assert directed[2] > directed[3] > 0
    assert np.ptp(without_position[:4]) == 0
    assert without_position[0] > 0


def test_a_start_of_session_uses_the_shoppers_newest_items() -> None:
    neighbours = kept([(1, 0), (1, 1), (2, 4), (2, 5)])
    at_start = scores(neighbours, context([], earlier=[0]))[0, 0]
    assert at_start[1] > 0 == at_start[5]
    with_items = scores(neighbours, context([4], earlier=[0]))[0, 0]
    assert with_items[5] > 0 == with_items[1]
    assert not scores(neighbours, context([]))[0].any()


@pytest.mark.parametrize("current", [[0], [1, 0], [2, 1, 0], [5, 2, 1, 0]])
def test_the_current_session_as_of_earlier_is_no_neighbour(current: list[int]) -> None:
    neighbours = kept([(1, 0), (1, 1), (1, 2)])
    is_run = len(current) > 2
    assert scores(neighbours, context(current))[0, 0].any() == (not is_run)


def test_only_the_asked_columns_are_scored() -> None:
    neighbours = kept([(1, 0), (1, 1), (1, 2), (2, 1), (2, 5)])
    of = pad([([1], [0]), ([0, 3], [0, 0])])
    whole, totals = neighbours.scores(of, np.full(2, NOW))
    columns = np.array([5, 2])
    part, same_totals = neighbours.scores(of, np.full(2, NOW), columns)
    np.testing.assert_array_equal(part, whole[:, :, columns])
    np.testing.assert_array_equal(totals, same_totals)
    alone, _ = neighbours.scores(pad([([0, 3], [0, 0])]), np.full(1, NOW), columns)
    np.testing.assert_array_equal(alone[:, 0], part[:, 1])


def test_sessions_that_leave_the_ring_are_forgotten() -> None:
    neighbours = kept([(1, 0), (1, 1), (2, 0), (2, 2), (3, 0), (3, 3)], slots=2)
    found = scores(neighbours, context([0]))[0, 0]
    assert found[1] == 0
    assert found[2] > 0
    assert found[3] > 0
    stream(neighbours, [(1, 5)])  # a forgotten session goes on in a slot of its own
    assert len(neighbours) == 2
    assert scores(neighbours, context([0]))[0, 0][2] == 0


def test_a_long_session_goes_on_in_a_new_slot() -> None:
    neighbours = kept([(1, row) for row in range(5)], slot_items=3)
    assert len(neighbours) == 2
    assert scores(neighbours, context([3]))[0, 0].nonzero()[0].tolist() == [3, 4]
    neighbours.forget([1])
    assert len(neighbours) == 0


def test_forgotten_sessions_are_cleared_and_others_stay() -> None:
    shoppers, neighbours = Shoppers(), kept()
    for place, (user, row) in enumerate([("ann", 0), ("ann", 1), ("bob", 0), ("bob", 2), ("ann", 0), ("ann", 3)]):
        session = f"session {place // 2}"
        shoppers.update(user, session, NOW, row)
        stream(neighbours, [(shoppers.session_key_of(user), row)])
    assert len(shoppers.session_keys_of("ann")) == 2
    neighbours.forget(shoppers.session_keys_of("ann"))
    assert len(neighbours) == 1
    assert scores(neighbours, context([0]))[0, 0].nonzero()[0].tolist() == [0, 2]
    assert shoppers.session_keys_of("nobody") == []
    stream(neighbours, [(shoppers.session_key_of("ann"), 4)])
    assert len(neighbours) == 2


def test_nothing_restores_no_session() -> None:
    neighbours = kept([(1, 0), (1, 1)])
    neighbours.load_state_dict({})
    assert (len(neighbours), neighbours.started) == (0, 0)
    stream(neighbours, [(1, 2)])
    assert len(neighbours) == 1


def test_items_are_added_while_sessions_stay() -> None:
    neighbours = kept([(1, 0), (1, 1)])
    neighbours.grow(ITEMS + 3)
    stream(neighbours, [(2, 0), (2, ITEMS + 2)])
    assert scores(neighbours, context([0]))[0, 0].nonzero()[0].tolist() == [0, 1, ITEMS + 2]


EVENTS = st.lists(st.tuples(st.integers(1, 9), st.integers(0, ITEMS - 1)), min_size=1, max_size=60)


@settings(deadline=None, max_examples=60)
@given(batches=st.lists(EVENTS, min_size=2, max_size=4), forgotten=st.integers(1, 9))
def test_restored_and_published_sessions_score_alike(batches: list[list[Event]], forgotten: int) -> None:
    live, follower = kept(slots=6, slot_items=4), kept(slots=6, slot_items=4)
    stream(live, batches[0])
    follower.apply(live.full())
    live.mark_published()
    for events in batches[1:]:
        stream(live, events)
        live.forget([forgotten])
        follower.apply(live.delta())
        live.mark_published()
        restored = kept([(99, 0)], slots=6, slot_items=4)
        restored.load_state_dict(live.state_dict())
        for name, tensor in live.state_dict().items():
            np.testing.assert_array_equal(tensor, restored.state_dict()[name])
        of = pad([([first, second], [0, 0]) for first in range(ITEMS) for second in range(ITEMS)])
        for other in (restored, follower, live.copy()):
            np.testing.assert_array_equal(scores(live, of), scores(other, of))
        live = restored


def test_chains_of_popular_items_follow_from_the_sessions() -> None:
    """More sessions have an item than are compared with a context, and many are open at once."""
    generator = np.random.default_rng(0)
    live = kept(slots=400, slot_items=4)
    for begin in range(0, 3_000, 200):
        keys = begin // 4 + generator.integers(1, 300, size=200)
        stream(live, list(zip(keys.tolist(), generator.integers(ITEMS, size=200).tolist(), strict=True)))
        restored = kept(slots=400, slot_items=4)
        restored.load_state_dict(live.state_dict())
        of = pad([([first, second], [0, 0]) for first in range(ITEMS) for second in range(ITEMS)])
        np.testing.assert_array_equal(scores(restored, of), scores(live, of))
    assert len(live) == 400


@settings(deadline=None, max_examples=60)
@given(events=EVENTS)
def test_a_copy_keeps_its_scores(events: list[Event]) -> None:
    live = kept(events, slots=6, slot_items=4)
    copy, of = live.copy(), pad([([row], [0]) for row in range(ITEMS)])
    before = scores(copy, of)
    stream(live, [(50, 0), (50, 1), (51, 1)])
    np.testing.assert_array_equal(scores(copy, of), before)


def test_a_session_key_names_the_session_alone() -> None:
    shoppers = Shoppers()
    shoppers.update("ann", "s1", NOW, 0)
    first = shoppers.session_key_of("ann")
    shoppers.update("ann", "s1", NOW, 1)
    assert shoppers.session_key_of("ann") == first
    shoppers.update("ann", "s2", NOW, 1)
    shoppers.update("bob", "s2", NOW, 1)
    assert len({first, shoppers.session_key_of("ann"), shoppers.session_key_of("bob")}) == 3
    again = Shoppers()
    again.load_state_dict(shoppers.state_dict())
    assert again.session_keys_of("ann") == shoppers.session_keys_of("ann") == [first, shoppers.session_key_of("ann")]


def test_sessions_from_before_a_moment_are_forgotten_and_the_others_stay() -> None:
    neighbours = SessionNeighbours(slots=4)
    neighbours.grow(10)
    for session in range(6):  # the first two have made room
        neighbours.update(np.array([session, session + 1]), np.full(2, session + 100), np.full(2, 1_000 * session))
    before = neighbours.started
    neighbours.update(np.array([9, 8]), np.full(2, 200), np.full(2, 9_000))
    neighbours.mark_published()
    neighbours.forget_before(before)
    assert len(neighbours) == 1
    assert sorted(neighbours.full()["items"].tolist()) == [8, 9]
    assert len(neighbours.delta()["slots"]) == 3
    neighbours.update(np.array([7]), np.array([200]), np.array([9_500]))
    assert len(neighbours) == 1
