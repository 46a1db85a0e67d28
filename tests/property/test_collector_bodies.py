"""Whatever is posted to the collector, it answers with a reason, and keeps exactly what it says it accepted."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from collector_app import CollectorApp, open_collector
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from streams.events import MODELS

# Bodies come in thousands to one collector, whose state is looked at before and after each.
RUNS = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
JSON_TYPE = {"content-type": "application/json"}

texts = st.text(max_size=20) | st.sampled_from(
    ["", "\ud800", "\0", "home", "2026-01-01T00:00:00Z", "9999-12-31T23:59:59-23:59"]
)
leaves = (
    st.none()
    | st.booleans()
    | texts
    | st.floats()
    | st.integers()
    | st.integers(min_value=-(10**400), max_value=10**400)
)
anything = st.recursive(leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4))
fields = sorted({name for model in MODELS.values() for name in model.model_fields})
times = st.integers() | texts | st.datetimes().map(lambda time: f"{time.isoformat()}+14:00")
shown = st.lists(st.fixed_dictionaries({"item_id": st.just("x") | anything, "position": st.integers() | anything}))
whole: dict[str, Any] = {
    "user_id": "u",
    "item_id": "x",
    "request_id": "r",
    "scenario": "home",
    "title": "t",
    "kind": "ad",
}
whole |= {"items": [{"item_id": "x", "position": 0}]}  # is an event of any kind
changes = st.dictionaries(st.sampled_from(fields), anything, max_size=2)
near_events = st.builds(
    lambda kind, ts, items, changed: whole | {"type": kind} | ts | items | changed,
    st.sampled_from([*MODELS]) | anything,
    st.just({}) | times.map(lambda ts: {"ts": ts}),
    st.just({}) | shown.map(lambda items: {"items": items}),
    changes,
)
bodies = near_events | st.lists(near_events | anything, max_size=6).map(lambda events: {"events": events}) | anything


@pytest.fixture(scope="module")
def collector(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CollectorApp]:
    path: Path = tmp_path_factory.mktemp("collector") / "spool.db"
    with open_collector(path, max_batch_events=5) as collector:
        yield collector


@RUNS
@given(body=bodies)
@example(body=whole | {"type": "item", "title": "\ud800"})
@example(body={"events": [whole | {"type": "impression", "query": "\udfff"}, whole | {"type": "click"}]})
def test_any_json_is_answered_event_by_event(collector: CollectorApp, body: Any) -> None:
    before = len(collector.spool)
    answer = collector.post(body)
    told = answer.json()
    kept = collector.spool.oldest(max_events=10**6, max_bytes=10**9)[before:]
    if answer.status_code == 202:
        accepted = [outcome["event_id"] for outcome in told["events"] if outcome["status"] == "accepted"]
        assert len(accepted) == told["accepted"] == len(kept) > 0
        assert all(outcome["reason"] for outcome in told["events"] if outcome["status"] == "rejected")
        # What was kept is what a consumer will read.
        read = [MODELS[event.kind].model_validate_json(event.value) for _, event in kept]
        assert [event.event_id for event in read] == accepted
        assert [event.key().encode() for event in read] == [entry.record.key for entry in kept]
    else:
        assert answer.status_code in (400, 422)
        assert told["detail"]
        assert kept == []


@RUNS
@given(body=st.binary(max_size=200) | anything.map(lambda value: repr(value).encode("utf-16", "surrogatepass")))
def test_any_bytes_are_answered_with_a_reason(collector: CollectorApp, body: bytes) -> None:
    before = len(collector.spool)
    answer = collector.client.post("/v1/events", content=body, headers=JSON_TYPE)
    assert answer.status_code in (400, 422)
    assert answer.json()["detail"]
    assert len(collector.spool) == before
