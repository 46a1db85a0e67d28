import json
import time

import pytest

from streams.dead_letters import DeadLetter
from streams.decode import MAX_EVENT_BYTES, ItemRemoved, Reason, decode
from streams.events import Click, Item
from streams.record import Record
from streams.topics import Topics

TOPICS = Topics()
CLICK = {"event_id": "e-1", "ts": 1, "user_id": "u-1", "item_id": "i-1"}
ITEM = {"event_id": "e-1", "ts": 1, "item_id": "i-1", "kind": "product", "title": "Teapot"}


def record(value: bytes | None, key: bytes | None = b"u-1", topic: str = TOPICS.clicks) -> Record:
    return Record(topic, 3, 41, key, value, 1_700_000_000_000)


def as_json(fields: dict[str, object]) -> bytes:
    return json.dumps(fields).encode()


def test_event_of_each_topic_is_of_its_kind() -> None:
    assert decode(record(as_json(CLICK)), TOPICS) == [Click.model_validate(CLICK)]
    assert decode(record(as_json(ITEM), b"i-1", TOPICS.items), TOPICS) == [Item.model_validate(ITEM)]


@pytest.mark.parametrize(
    ("refused", "reason", "text"),
    [
        (record(b""), Reason.MALFORMED_JSON, "EOF"),
        (record(b'{"event_id": '), Reason.MALFORMED_JSON, "EOF"),
        (record(b'{"event_id": "\xff\xfe"}'), Reason.MALFORMED_JSON, "JSON"),
        (record(b"\x00\x00\x00\x00\x07avro"), Reason.MALFORMED_JSON, "JSON"),
        (record(b'{"event_id": "\\ud800"}'), Reason.MALFORMED_JSON, "JSON"),
        (record(b"[" * 5000), Reason.MALFORMED_JSON, "JSON"),
        (record(None), Reason.MALFORMED_JSON, "without a value"),
        (record(b"[]"), Reason.INVALID_SCHEMA, "object"),
        (record(b"null"), Reason.INVALID_SCHEMA, "object"),
        (record(as_json(CLICK | {"ts": "soon"})), Reason.INVALID_SCHEMA, "ts"),
        (record(as_json(ITEM)), Reason.INVALID_SCHEMA, "user_id: Field required"),
        (record(as_json(CLICK | {"schema_version": 2})), Reason.UNKNOWN_VERSION, "schema_version"),
        (record(as_json({"schema_version": 2, "all": "new"})), Reason.UNKNOWN_VERSION, "schema_version"),
        (record(as_json(CLICK), b"u-2"), Reason.WRONG_KEY, "its user_id, got another"),
        (record(as_json(CLICK), None), Reason.WRONG_KEY, "its user_id, got none"),
        (record(as_json(CLICK), b"\xff"), Reason.WRONG_KEY, "user_id"),
        (record(as_json(ITEM), b"i-2", TOPICS.items), Reason.WRONG_KEY, "its item_id, got another"),
        (record(None, None, TOPICS.items), Reason.WRONG_KEY, "got none"),
        (record(None, b"\xff", TOPICS.items), Reason.WRONG_KEY, "item_id"),
        (record(as_json(CLICK), topic="elsewhere"), Reason.UNKNOWN_TOPIC, "elsewhere"),
        (record(as_json(CLICK), topic=TOPICS.adapters), Reason.UNKNOWN_TOPIC, "carries no events"),
    ],
)
def test_what_cannot_be_read_is_a_dead_letter_with_its_reason(refused: Record, reason: Reason, text: str) -> None:
    before_ms = time.time_ns() // 1_000_000
    letter = decode(refused, TOPICS)
    assert isinstance(letter, DeadLetter)
    assert letter.reason is reason
    assert text in letter.error
    assert (letter.topic, letter.partition, letter.offset) == (refused.topic, 3, 41)
    assert letter.original() == refused.value
    assert letter.payload_bytes == len(refused.value or b"")
    assert letter.first_seen_ts >= before_ms


def test_largest_event_is_read_and_one_byte_more_is_refused_unread() -> None:
    room = MAX_EVENT_BYTES - len(as_json(ITEM | {"description": ""}))
    at_most = record(as_json(ITEM | {"description": "x" * room}), b"i-1", TOPICS.items)
    assert len(at_most.value or b"") == MAX_EVENT_BYTES
    assert not isinstance(decode(at_most, TOPICS), DeadLetter)
    beyond = record(as_json(ITEM | {"description": "x" * (room + 1)}), b"i-1", TOPICS.items)
    letter = decode(beyond, TOPICS)
    assert isinstance(letter, DeadLetter)
    assert letter.reason is Reason.OVERSIZED
    assert f"at most {MAX_EVENT_BYTES} bytes, got {MAX_EVENT_BYTES + 1}" in letter.error


def test_item_without_a_value_is_removed() -> None:
    assert decode(record(None, b"i-1", TOPICS.items), TOPICS) == [ItemRemoved("i-1", 1_700_000_000_000)]


@pytest.mark.parametrize(
    "fields", [{"ts": "x" * 10_000}, {"scenario": "x" * 10_000}, {"schema_version": "x" * 10_000}, {"user_id": "u-9"}]
)
def test_the_error_text_repeats_neither_payload_nor_user(fields: dict[str, str]) -> None:
    letter = decode(record(as_json(CLICK | fields)), TOPICS)
    assert isinstance(letter, DeadLetter)
    assert "x" * 100 not in letter.error
    assert "u-9" not in letter.error


def test_letter_survives_json() -> None:
    letter = decode(record(b"\xff", b"\xfe"), TOPICS)
    assert isinstance(letter, DeadLetter)
    assert DeadLetter.model_validate_json(letter.model_dump_json()) == letter
    assert letter.record_key() == f"{TOPICS.clicks}/3/41"


@pytest.mark.parametrize(("ts", "unit"), [(1_764_500_000, "seconds"), (1_764_500_000_000_000, "microseconds")])
def test_a_time_in_another_unit_is_a_dead_letter_that_says_so(ts: int, unit: str) -> None:
    letter = decode(record(as_json(CLICK | {"ts": ts})), TOPICS)
    assert isinstance(letter, DeadLetter)
    assert letter.reason is Reason.INVALID_SCHEMA
    assert letter.error == f"ts: looks like {unit}; `ts` must be epoch milliseconds, got {ts}"
