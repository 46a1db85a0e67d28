"""What every source of shoppers' states does, whoever holds them: the request, the worker, Redis, Valkey."""

import uuid
from collections.abc import Iterator, Sequence

import pytest
from prometheus_client import CollectorRegistry
from redis_server import RedisServer

from peft_adapters.ranking.shoppers import SESSION_GAP_MS
from services.metrics.shopper_state import ShopperStateMetrics
from services.scorer.shopper_state import ShopperState, StateSource
from services.scorer.shopper_state_redis import RedisState
from services.scorer.shopper_state_request import RequestState
from services.state.entries import pack_entry
from services.state.store import Changes, StateStore
from streams.events import Click, Purchase
from streams.offsets import Offsets

MINUTE_MS = 60_000
ROWS = {"a": 0, "b": 1, "c": 2}
Context = tuple[list[int], list[int]]  # catalogue rows, newest first, and the age of each in sessions


def hidden(name: str) -> str:
    return f"<{name}>"


def click(number: int, item_id: str, *, ts: int, user_id: str = "u", session_id: str | None = None) -> Click:
    return Click(event_id=f"c{number}", ts=ts, user_id=user_id, session_id=session_id, item_id=item_id)


class WorkersOwn:
    """The worker reads the log."""

    def __init__(self) -> None:
        self.rows = dict(ROWS)
        self.source: StateSource = ShopperState(self.rows, max_shoppers=100, pseudonymise=hidden)

    def happened(self, *events: Click | Purchase, publish_ts_ms: int = 0) -> None:
        for event in events:
            self.source.take_in(event, publish_ts_ms=publish_ts_ms)

    def forget(self, user_id: str, *, until_ms: int) -> None:
        self.source.forget(hidden(user_id), until_ms=until_ms)

    def item_arrived(self, item_id: str) -> None:
        self.rows[item_id] = len(self.rows)
        self.source.item_arrived(item_id)

    def context(self, user_id: str | None, ts_ms: int, *, session_id: str | None = None) -> Context:
        user, session = (name if name is None else hidden(name) for name in (user_id, session_id))
        return self.source.context(user, session, ts_ms)[:2]


class InTheRequest(WorkersOwn):
    """The storefront keeps its shoppers' sessions, and sends them along."""

    def __init__(self) -> None:
        self.rows = dict(ROWS)
        self.source = RequestState()
        self._events: dict[str, list[Click | Purchase]] = {}

    def happened(self, *events: Click | Purchase, publish_ts_ms: int = 0) -> None:
        for event in events:
            own = self._events.setdefault(event.user_id, [])
            if event not in own:
                own.append(event)

    def forget(self, user_id: str, *, until_ms: int) -> None:
        self._events.pop(user_id, None)

    def context(self, user_id: str | None, ts_ms: int, *, session_id: str | None = None) -> Context:
        known = [event for event in self._events.get(user_id or "", ()) if event.item_id in self.rows]
        sessions: list[list[Click | Purchase]] = []
        for event in known:
            if not sessions or not _goes_on(sessions[-1][-1], event.session_id, event.ts):
                sessions.append([])
            sessions[-1].append(event)
        baskets = [[self.rows[event.item_id] for event in session] for session in sessions]
        goes_on = bool(sessions) and _goes_on(sessions[-1][-1], session_id, ts_ms)
        at_hand = baskets.pop() if goes_on else []
        return self.source.context(None, None, ts_ms, session=at_hand, earlier=baskets)[:2]


def _goes_on(before: Click | Purchase, session_id: str | None, ts_ms: int) -> bool:
    if session_id is not None and before.session_id is not None:
        return session_id == before.session_id
    return ts_ms - before.ts < SESSION_GAP_MS


class InRedis(WorkersOwn):
    """The writer keeps them in a real server."""

    def __init__(self, server: RedisServer) -> None:
        self.rows = dict(ROWS)
        settings = server.settings(f"t{uuid.uuid4().hex[:8]}", timeout_seconds=5.0)
        self.store = StateStore(settings, fingerprint="one", timeout_seconds=5.0)
        metrics = ShopperStateMetrics(CollectorRegistry())
        self.redis = RedisState(self.store, self.rows, fallback_shoppers=10, metrics=metrics)
        self.source = self.redis
        self._offsets: Offsets = {}
        self._forgotten: dict[str, int] = {}
        self._write(Changes())
        self.redis.check()

    def happened(self, *events: Click | Purchase, publish_ts_ms: int = 0) -> None:
        changes = Changes()
        for event in events:
            entry = pack_entry(event, publish_ts_ms=publish_ts_ms, pseudonymise=hidden)
            changes.add(hidden(event.user_id), entry, is_purchase=isinstance(event, Purchase))
        self._write(changes)

    def _write(self, changes: Changes) -> None:
        after = {("clicks", 0): self._offsets.get(("clicks", 0), 0) + 1}
        self.store.write(changes, before=self._offsets, after=after, heartbeat="b")
        self._offsets = after


@pytest.fixture(params=["request", "worker", "redis", "valkey"])
def shop(request: pytest.FixtureRequest) -> Iterator[WorkersOwn]:
    if request.param == "request":
        yield InTheRequest()
    elif request.param == "worker":
        yield WorkersOwn()
    else:
        made = InRedis(request.getfixturevalue(f"{request.param}_server"))
        yield made
        made.store.close()


def test_the_session_at_hand_and_earlier_ones_newest_first(shop: WorkersOwn) -> None:
    shop.happened(click(1, "a", ts=0), click(2, "b", ts=MINUTE_MS), click(3, "c", ts=120 * MINUTE_MS))
    assert shop.context("u", 121 * MINUTE_MS) == ([2, 1, 0], [0, 1, 1])
    assert shop.context("stranger", 0) == ([], [])
    assert shop.context(None, 0) == ([], [])


def test_when_the_session_is_over_everything_is_of_earlier_ones(shop: WorkersOwn) -> None:
    shop.happened(click(1, "a", ts=0), click(2, "b", ts=120 * MINUTE_MS))
    assert shop.context("u", 500 * MINUTE_MS) == ([1, 0], [1, 2])


def test_a_session_id_tells_sessions_apart(shop: WorkersOwn) -> None:
    shop.happened(click(1, "a", ts=0, session_id="s1"), click(2, "b", ts=1, session_id="s2"))
    assert shop.context("u", 2, session_id="s2") == ([1, 0], [0, 1])
    assert shop.context("u", 2, session_id="s3") == ([1, 0], [1, 2])


def test_an_event_that_comes_twice_counts_once_and_a_purchase_beside_a_click_counts(shop: WorkersOwn) -> None:
    shop.happened(click(1, "a", ts=0))
    shop.happened(click(1, "a", ts=0), Purchase(event_id="c1", ts=1, user_id="u", item_id="b"))
    assert shop.context("u", 2) == ([1, 0], [0, 0])


def test_an_item_that_is_not_known_yet_counts_once_it_is(shop: WorkersOwn) -> None:
    shop.happened(click(1, "a", ts=0), click(2, "late", ts=1))
    assert shop.context("u", 2) == ([0], [0])
    shop.item_arrived("late")
    assert shop.context("u", 2) == ([3, 0], [0, 0])


def test_the_newest_128_items_are_what_a_ranking_is_made_from(shop: WorkersOwn) -> None:
    shop.happened(click(0, "a", ts=0), *(click(number, "bc"[number % 2], ts=number) for number in range(1, 201)))
    items, ages = shop.context("u", 201)
    assert (len(items), set(ages)) == (128, {0})
    assert items[:3] == [1, 2, 1]
    assert 0 not in items


def test_sessions_are_told_apart_the_same_after_the_oldest_events_have_gone(shop: WorkersOwn) -> None:
    shop.happened(
        *(click(number, "a", ts=number * 10 * MINUTE_MS + number // 4 * 40 * MINUTE_MS) for number in range(400))
    )
    _, ages = shop.context("u", 400 * 50 * MINUTE_MS)
    assert ages == [1 + index // 4 for index in range(128)]


def test_a_forgotten_shopper_leaves_nothing_and_may_come_again(shop: WorkersOwn) -> None:
    shop.happened(click(1, "a", ts=0), click(2, "a", ts=0, user_id="v"), publish_ts_ms=100)
    assert shop.context("u", 1) == ([0], [0])
    shop.forget("u", until_ms=200)
    assert shop.context("u", 1) == ([], [])
    assert shop.context("v", 1) == ([0], [0])
    shop.happened(click(3, "b", ts=2), publish_ts_ms=201)
    assert shop.context("u", 3) == ([1], [0])


def test_nothing_is_wrong_with_it(shop: WorkersOwn) -> None:
    assert shop.source.problem() is None


@pytest.mark.parametrize(
    ("session", "earlier", "expected"),
    [
        ([2, 1], None, ([1, 2, 0], [0, 0, 1])),
        ([], None, ([0], [1])),
        (None, [[2], [1, 2]], ([1, 2, 1, 2], [0, 1, 1, 2])),
        ([0], [[2]], ([0, 2], [0, 1])),
    ],
)
def test_what_a_request_says_stands_in_place_of_what_is_known(
    shop: WorkersOwn, session: Sequence[int] | None, earlier: Sequence[Sequence[int]] | None, expected: Context
) -> None:
    if isinstance(shop, InTheRequest):
        pytest.skip("it knows nothing that a request could replace")
    shop.happened(click(1, "a", ts=0), click(2, "b", ts=120 * MINUTE_MS))
    assert shop.source.context(hidden("u"), None, 121 * MINUTE_MS, session=session, earlier=earlier)[:2] == expected


def test_what_was_bought_is_known_until_it_is_forgotten(shop: WorkersOwn) -> None:
    if isinstance(shop, InTheRequest):
        pytest.skip("it knows of no purchases")
    bought = [Purchase(event_id=f"p{number}", ts=number, user_id="u", item_id=item) for number, item in enumerate("ab")]
    shop.happened(click(1, "c", ts=0), *bought, bought[0], publish_ts_ms=100)
    assert set(shop.source.bought(hidden("u"))) == {"a", "b"}
    assert shop.source.bought(hidden("v")) == ()
    shop.forget("u", until_ms=200)
    assert shop.source.bought(hidden("u")) == ()
