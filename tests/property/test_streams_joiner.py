"""Every event is accounted for in any order, and a restored joiner continues as the original would."""

import json
import tempfile
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st

from streams.events import Click, Impression, Purchase, ShownItem
from streams.examples import Example, ShownList
from streams.join_store import JoinStore
from streams.joiner import Joiner

ITEMS = ["a", "b", "c", "d"]
USERS = ["u", "v"]
TIME = st.integers(0, 60_000)
NUMBER = st.integers(0, 25)
CLICK = st.tuples(st.just("click"), NUMBER, st.sampled_from(ITEMS), TIME)
SHOW = st.tuples(st.just("show"), NUMBER, st.sampled_from(ITEMS), TIME)
BUY = st.tuples(st.just("buy"), NUMBER, st.sampled_from(ITEMS), TIME)
ARRIVE = st.tuples(st.just("arrive"), st.just(0), st.sampled_from(ITEMS), st.just(0))
ADVANCE = st.tuples(st.just("advance"), st.integers(1, 3), st.just(""), TIME)
FORGET = st.tuples(st.just("forget"), st.just(0), st.sampled_from(USERS), st.just(0))
Step = tuple[str, int, str, int]
STEPS = st.lists(st.one_of(CLICK, SHOW, CLICK, SHOW, BUY, ARRIVE, ADVANCE, ADVANCE, FORGET), max_size=80)


class Shop:
    """A joiner and the items that have arrived."""

    def __init__(self, store: JoinStore, *, max_held: int, horizon: int, known: set[str] | None = None) -> None:
        self.known = known or {"a"}
        self.joiner = Joiner(
            is_known=lambda item_id: item_id in self.known,
            store=store,
            click_window_seconds=5,
            purchase_window_seconds=20,
            hold_seconds=10,
            max_held=max_held,
            max_impressions=6,
            dedupe_horizon=horizon,
        )

    def step(self, what: str, number: int, name: str, time_ms: int) -> list[Example | ShownList]:
        user_id, request_id = USERS[number % 2], f"r-{number % 5}"
        if what == "show":
            items = (ShownItem(item_id=name, position=0), ShownItem(item_id="b", position=number))
            event = Impression(
                event_id=f"i-{number}", ts=time_ms, user_id=user_id, request_id=request_id, scenario="home", items=items
            )
            return [*self.joiner.offer(event, publish_ts_ms=10**9)]
        if what in ("click", "buy"):
            model = Click if what == "click" else Purchase
            request = request_id if number % 3 else None
            one = model(event_id=f"e-{number}", ts=time_ms, user_id=user_id, item_id=name, request_id=request)
            return [*self.joiner.offer(one, publish_ts_ms=10**9)]
        if what == "arrive":
            self.known.add(name)
            return [*self.joiner.item_arrived(name)]
        if what == "forget":
            self.joiner.forget(name)
            return []
        return [*self.joiner.advance(time_ms, max_lists=number)]


@given(STEPS, st.integers(1, 8))
def test_every_event_is_accounted_for_at_any_time(steps: list[Step], max_held: int) -> None:
    shop = Shop(JoinStore(None, cached_impressions=2), max_held=max_held, horizon=1_000)
    got: list[Example | ShownList] = []
    for step in steps:
        got += shop.step(*step)
        counts = shop.joiner.counts()
        assert counts["in"] == sum(count for name, count in counts.items() if name != "in")
        lists = [one for one in got if isinstance(one, ShownList) and not one.is_correction]
        examples = [one for one in got if isinstance(one, Example)]
        assert counts["learnt"] == len(examples) + len(lists)
        assert shop.joiner.store.held_count <= max_held
    ids = [(example.kind, example.event_id) for example in examples] if steps else []
    assert len(set(ids)) == len(ids)
    assert {item_id for one in got if isinstance(one, ShownList) for item_id in one.item_ids} <= shop.known
    assert shop.joiner.counts()["in"] == sum(what in ("click", "show", "buy") for what, *_ in steps)


@example(  # two users with one request id, of whom the later is forgotten
    steps=[("show", 15, "a", 0), ("show", 0, "a", 0), ("forget", 0, "u", 0), ("click", 5, "b", 0)],
    cut=0,
    max_held=1,
    horizon=9,
    cached=1,
)
@settings(max_examples=60, deadline=None)
@given(STEPS, st.integers(0, 80), st.integers(1, 8), st.integers(1, 12), st.integers(1, 5))
def test_killed_and_restored_it_goes_on_as_if_nothing_had_been(
    steps: list[Step], cut: int, max_held: int, horizon: int, cached: int
) -> None:
    straight = Shop(JoinStore(None), max_held=max_held, horizon=horizon)
    expected = [straight.step(*step) for step in steps]
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "join"
        before = Shop(JoinStore(path, cached_impressions=cached), max_held=max_held, horizon=horizon)
        got = [before.step(*step) for step in steps[:cut]]
        state, known = json.dumps(before.joiner.state()), set(before.known)
        before.joiner.store.commit(checkpoint="1")
        for step in steps[cut:]:
            before.step(*step)  # and this was not kept
        before.joiner.store.close()
        after = Shop(JoinStore(path, cached_impressions=cached), max_held=max_held, horizon=horizon, known=known)
        after.joiner.restore(json.loads(state))
        got += [after.step(*step) for step in steps[cut:]]
        assert got == expected
        assert after.joiner.counts() == straight.joiner.counts()
        assert after.joiner.state() == straight.joiner.state()
        after.joiner.store.close()
