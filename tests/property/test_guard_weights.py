"""Whatever comes in whatever order: weights are weights, memory is bounded, a restored guard goes on as the first."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from streams.examples import Example, ShownList
from streams.guard import RULES, Guard
from streams.guard_quarantine import KINDS
from streams.guard_settings import GuardSettings

USERS = [f"u{number}" for number in range(6)]
ITEMS = [f"i{number}" for number in range(6)]
SMALL = GuardSettings(
    user_batch_events=3,
    user_hour_events=4,
    user_item_hour_events=2,
    item_batch_events=3,
    item_hour_events=3,
    item_hour_factor=1.0,
    burst_events=1.0,
    burst_factor=1.0,
    memory_hours=2.0,
    user_quarantine_events=3,
    item_quarantine_events=3,
    max_users=4,
    max_items=4,
    max_quarantined=2,
)
CLICK = st.tuples(st.sampled_from(USERS), st.sampled_from(ITEMS), st.integers(0, 10 * 3_600_000))
BATCH = st.tuples(st.just("batch"), st.lists(CLICK, max_size=12))
LIST = st.tuples(st.just("list"), st.lists(CLICK, max_size=4))
RELEASE = st.tuples(st.just("release"), st.sampled_from([*(f"user/{u}" for u in USERS), *(f"item/{i}" for i in ITEMS)]))
FORGET = st.tuples(st.just("forget"), st.sampled_from(USERS))
Step = tuple[str, list[tuple[str, str, int]] | str]
STEPS = st.lists(st.one_of(BATCH, BATCH, BATCH, LIST, RELEASE, FORGET), max_size=25)


def examples_of(clicks: list[tuple[str, str, int]]) -> list[Example]:
    return [
        Example(
            event_id=f"e{number}",
            user_id=user_id,
            session_id=None,
            item_id=item_id,
            ts=ts,
            kind="click",
            scenario="home",
            position=None,
            publish_ts_ms=9 * 3_600_000,
        )
        for number, (user_id, item_id, ts) in enumerate(clicks)
    ]


def lists_of(clicks: list[tuple[str, str, int]]) -> list[ShownList]:
    return [
        ShownList(user_id=user_id, session_id=None, ts=ts, item_ids=(item_id,), positions=(0,), clicked=(True,))
        for user_id, item_id, ts in clicks
    ]


def take(guard: Guard, step: Step) -> list[float]:
    """The weights that a step gives."""
    kind, what = step
    if isinstance(what, str):
        getattr(guard, kind)(what)
        return []
    if kind == "list":
        return [shown.weight for shown in guard.weigh_lists(lists_of(what))]
    return [example.weight for example in guard.weigh(examples_of(what))]


def restored(guard: Guard) -> Guard:
    other = Guard(SMALL)
    other.restore(json.loads(json.dumps(guard.state())))
    return other


@given(STEPS)
@settings(max_examples=150, deadline=None)
def test_weights_are_from_0_to_1_and_memory_is_bounded(steps: list[Step]) -> None:
    guard = Guard(SMALL)
    for step in steps:
        assert all(0 <= weight <= 1 for weight in take(guard, step))
        state = guard.state()
        assert len(state["users"]) <= 4
        assert len(state["items"]) <= 4
        assert max(len(state["quarantined"]), len(state["trusted"])) <= 2
        assert all(kept >= 0 for item in (*state["items"].values(), state["stream"]) for kept in item)
        assert all(user[4] >= 0 for user in state["users"].values()), "what was doubted"
    assert set(guard.downweighted) == set(RULES)
    assert set(guard.in_quarantine) == set(guard.quarantines) == set(KINDS)


@given(STEPS, STEPS)
@settings(max_examples=150, deadline=None)
def test_a_restored_guard_goes_on_as_the_first_would(before: list[Step], after: list[Step]) -> None:
    first = Guard(SMALL)
    for step in before:
        take(first, step)
    second = restored(first)
    assert second.state() == first.state()
    for step in after:
        assert take(first, step) == take(second, step)
    assert second.newly_quarantined() == first.newly_quarantined()
    assert json.dumps(second.state()) == json.dumps(first.state()), "to the last bit, and in the same order"


@given(STEPS)
@settings(max_examples=100, deadline=None)
def test_the_same_events_in_other_batches_are_judged_the_same_by_all_but_the_batch_rules(steps: list[Step]) -> None:
    clicks = [click for kind, what in steps if kind == "batch" and not isinstance(what, str) for click in what]
    together, singly = Guard(SMALL), Guard(SMALL)
    at_once = [example.weight > 0 for example in together.weigh(examples_of(clicks))]
    one_by_one = [one.weight > 0 for example in examples_of(clicks) for one in singly.weigh([example])]
    assert at_once == one_by_one
