"""Whatever bytes there are, in whichever dialect: events of ours, nothing, or a dead letter with its reason."""

import json
from typing import Any

import pytest
from foreign_events import EXAMPLES, TOPICS, record
from hypothesis import example, given, settings
from hypothesis import strategies as st

from streams.dead_letters import DeadLetter
from streams.decode import ItemRemoved, decode
from streams.events import MODELS
from streams.record import Record
from streams.topics import Dialect

OURS: dict[str, dict[str, Any]] = {
    "impression": {
        "schema_version": 1, "event_id": "e-1", "ts": 1_599_391_467_000, "user_id": "u-1", "session_id": "s-1",
        "request_id": "r-1", "scenario": "search", "query": "tea", "adapter_version": "7",
        "items": [{"item_id": "i-1", "position": 0}, {"item_id": "i-2", "position": 1}],
    },
    "click": {"event_id": "e-2", "ts": "2020-09-06T11:24:27Z", "user_id": "u-1", "item_id": "i-1", "position": 0},
    "purchase": {"event_id": "e-3", "ts": 1, "user_id": "u-1", "item_id": "i-1", "quantity": 2, "price": 9.5},
    "item": {"event_id": "e-4", "ts": 1, "item_id": "u-1", "kind": "product", "title": "Pot", "status": "active"},
}  # fmt: skip

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, -1, 1.5, 1e308, -0.0, 10**19, 2**63, 10**400, "", "(not set)", "\x00", "1", "9" * 50])
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["x" * 257, "track", "purchase", "item", "2020-09-06T11:24:27", "9999-12-31T23:59:59.9999Z"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@st.composite
def mutated(draw: st.DrawFn, said: dict[str, Any]) -> bytes:
    """A real event in which some parts are others', gone, doubled or renamed, and some bytes were lost or flipped."""
    whole = json.loads(json.dumps(said))
    for _ in range(draw(st.integers(1, 3))):
        _mutate(draw, whole)
    text = json.dumps(whole).encode()
    if draw(st.integers(0, 3)):
        return text
    at = draw(st.integers(0, len(text)))
    return text[:at] + draw(st.binary(max_size=4)) + text[at + draw(st.integers(0, 4)) :]


def _mutate(draw: st.DrawFn, part: Any) -> None:
    while True:
        if not part:
            return
        key = draw(st.sampled_from(range(len(part)) if isinstance(part, list) else sorted(part)))
        if isinstance(part[key], dict | list) and draw(st.booleans()):
            part = part[key]
            continue
        action = draw(st.sampled_from(["replace", "remove", "copy"]))
        if action == "replace":
            part[key] = draw(json_values)
        elif action == "remove":
            del part[key]
        elif isinstance(part, list):
            part.append(part[key])
        else:
            part[draw(st.text(max_size=8))] = part[key]
        return


def outcome(refused: Record) -> None:
    result = decode(refused, TOPICS)
    if isinstance(result, DeadLetter):
        assert result.original() == refused.value
        assert result.error
        assert DeadLetter.model_validate_json(result.model_dump_json()) == result
        return
    letters = [one for one in result if isinstance(one, DeadLetter)]
    assert len({letter.record_key() for letter in letters}) == len(letters) < len(result) or not letters
    for letter in letters:
        assert letter.line
        assert letter.error
        assert isinstance(json.loads(letter.original() or b""), dict)
        assert DeadLetter.model_validate_json(letter.model_dump_json()) == letter
    for event in result:
        if isinstance(event, ItemRemoved | DeadLetter):
            continue
        model = MODELS[event.KIND]
        assert type(event) is model
        assert model.model_validate_json(event.model_dump_json()) == event  # so that all our rules hold for it
    ids = [event.event_id for event in result if not isinstance(event, ItemRemoved | DeadLetter)]
    assert len(set(ids)) == len(ids) or TOPICS.dialects[refused.topic] == "ga4"


@pytest.mark.parametrize("dialect", list(EXAMPLES))
@given(value=st.none() | st.binary() | json_values.map(lambda value: json.dumps(value).encode()))
@example(value=b'{"event":' * 400)
@example(value=b"\xef\xbb\xbf{}")
@example(value=b"NaN")
@settings(deadline=None)
def test_any_bytes_in_any_dialect(dialect: Dialect, value: bytes | None) -> None:
    outcome(record(dialect, value))


@pytest.mark.parametrize(
    ("dialect", "number"), [(name, n) for name, said in EXAMPLES.items() for n in range(len(said))]
)
@given(data=st.data())
@settings(deadline=None)
def test_any_mutation_of_a_real_event(dialect: Dialect, number: int, data: st.DataObject) -> None:
    outcome(record(dialect, data.draw(mutated(EXAMPLES[dialect][number]))))


@pytest.mark.parametrize("kind", list(OURS))
@given(data=st.data())
@settings(deadline=None)
def test_any_bytes_and_any_mutation_on_topics_of_our_own(kind: str, data: st.DataObject) -> None:
    value = data.draw(st.none() | st.binary() | mutated(OURS[kind]))
    key = data.draw(st.sampled_from([b"u-1", None, b"", b"\xff", b"other"]))
    outcome(Record(TOPICS.of_kind(kind), 0, 5, key, value, 1_700_000_000_000))


@pytest.mark.parametrize("kind", list(OURS))
def test_what_is_mutated_is_good_before(kind: str) -> None:
    value = json.dumps(OURS[kind]).encode()
    assert not isinstance(decode(Record(TOPICS.of_kind(kind), 0, 5, b"u-1", value, 0), TOPICS), DeadLetter)


@pytest.mark.parametrize(
    ("dialect", "number"), [(name, n) for name, said in EXAMPLES.items() for n in range(len(said))]
)
def test_each_real_event_is_good(dialect: Dialect, number: int) -> None:
    said = json.dumps(EXAMPLES[dialect][number]).encode()
    assert not isinstance(decode(record(dialect, said), TOPICS), DeadLetter)
