"""Whatever comes in whatever order, every event is accounted for, and a restored joiner goes on as the first would."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from streams.events import Click
from streams.joiner import Example, Joiner

ITEMS = ["a", "b", "c", "d"]
OFFER = st.tuples(st.just("offer"), st.integers(0, 25), st.sampled_from(ITEMS), st.integers(0, 40_000))
ARRIVE = st.tuples(st.just("arrive"), st.just(0), st.sampled_from(ITEMS), st.just(0))
ADVANCE = st.tuples(st.just("advance"), st.just(0), st.just(""), st.integers(0, 60_000))
STEPS = st.lists(st.one_of(OFFER, OFFER, OFFER, ARRIVE, ADVANCE), max_size=80)


class Catalogue:
    """A joiner, and the items that have arrived."""

    def __init__(self, *, max_held: int, horizon: int) -> None:
        self.known = {"a"}
        self.joiner = Joiner(
            is_known=lambda item_id: item_id in self.known, hold_seconds=10, max_held=max_held, dedupe_horizon=horizon
        )

    def step(self, what: str, number: int, item_id: str, time_ms: int) -> list[Example]:
        if what == "offer":
            event = Click(event_id=f"e-{number}", ts=time_ms, user_id="u", item_id=item_id)
            return self.joiner.offer(event, publish_ts_ms=0)
        if what == "arrive":
            self.known.add(item_id)
            return self.joiner.item_arrived(item_id)
        self.joiner.advance(time_ms)
        return []


@given(STEPS, st.integers(1, 8))
def test_every_event_is_accounted_for_at_any_time(steps: list[tuple[str, int, str, int]], max_held: int) -> None:
    catalogue = Catalogue(max_held=max_held, horizon=1_000)
    emitted: list[Example] = []
    for step in steps:
        emitted += catalogue.step(*step)
        counts = catalogue.joiner.counts
        assert counts.seen == counts.emitted + counts.duplicates + counts.expired + counts.pending
        assert counts.emitted == len(emitted)
        assert counts.pending <= max_held
    ids = [example.event_id for example in emitted]
    assert len(set(ids)) == len(ids)
    assert {example.item_id for example in emitted} <= catalogue.known
    assert counts_of(steps) == catalogue.joiner.counts.seen


def counts_of(steps: list[tuple[str, int, str, int]]) -> int:
    return sum(what == "offer" for what, *_ in steps)


@settings(max_examples=60)
@given(STEPS, st.integers(0, 80), st.integers(1, 8), st.integers(1, 12))
def test_restoring_changes_nothing(
    steps: list[tuple[str, int, str, int]], cut: int, max_held: int, horizon: int
) -> None:
    straight = Catalogue(max_held=max_held, horizon=horizon)
    expected = [straight.step(*step) for step in steps]
    before = Catalogue(max_held=max_held, horizon=horizon)
    got = [before.step(*step) for step in steps[:cut]]
    after = Catalogue(max_held=max_held, horizon=horizon)
    after.known = before.known
    after.joiner.restore(json.loads(json.dumps(before.joiner.state())))
    got += [after.step(*step) for step in steps[cut:]]
    assert got == expected
    assert after.joiner.counts == straight.joiner.counts
    assert after.joiner.state() == straight.joiner.state()
