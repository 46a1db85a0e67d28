"""Records of the control topic: built, parsed, and rejected."""

import json

import pytest
from structlog.testing import capture_logs

from streams.control import (
    Forget,
    Quarantine,
    Quarantined,
    Released,
    forget_record,
    parse_control,
    quarantine_record,
    release_key,
)
from streams.record import Record

WHY = Quarantine(event_id="e1", ts=5, reason="item_burst", count=51, limit=50)


def record(key: bytes | None, value: bytes | None) -> Record:
    return Record("headwater.control", 0, 7, key, value, 1_000)


def test_what_is_written_is_read_again() -> None:
    assert parse_control(record(*forget_record("abc", ts_ms=5))) == Forget("abc", ts_ms=1_000)
    assert parse_control(record(*quarantine_record("item/a/b", WHY))) == Quarantined("item/a/b", WHY)
    assert parse_control(record(release_key("user/abc"), None)) == Released("user/abc")


def test_a_command_to_forget_covers_what_was_in_the_same_log_before_it() -> None:
    ends, ids = {("clicks", 0): 5}, {"clicks": "one"}
    key, value = forget_record("abc", ts_ms=5, ends=ends, topic_ids=ids)
    command = parse_control(record(key, value))
    assert command == Forget("abc", 1_000, ends, ids)
    assert Forget.from_json(json.loads(json.dumps(command.as_json()))) == command
    earlier, later = (Record("clicks", 0, offset, b"u", b"{}", 10**12) for offset in (4, 5))
    other_partition = Record("clicks", 1, 0, b"u", b"{}", 10**12)
    assert command.covers(earlier, ids)
    assert command.covers(earlier, {})
    assert not command.covers(earlier, {"clicks": "two"}), "another log of this name"
    assert not command.covers(later, ids)
    assert not command.covers(other_partition, ids)


def test_a_command_whose_ends_are_no_offsets_is_refused() -> None:
    assert parse_control(record(b"forget/abc", b'{"event_id": "e", "ts": 5, "ends": {"clicks": 5}}')) is None


def test_two_commands_have_two_ids() -> None:
    assert forget_record("abc", ts_ms=5)[1] != forget_record("abc", ts_ms=5)[1]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (None, b"{}"),
        (b"\xff", b"{}"),
        (b"forget/ann-smith", b"not json"),
        (b"forget/ann-smith", None),
        (b"quarantine/user/ann-smith", b'{"event_id": "e", "ts": 1}'),
        (b"greetings", b'{"event_id": "ann-smith", "ts": 1}'),
    ],
)
def test_anything_else_is_passed_over_and_said_without_its_text(key: bytes | None, value: bytes | None) -> None:
    with capture_logs() as lines:
        assert parse_control(record(key, value)) is None
    assert [(line["event"], line["offset"]) for line in lines] == [("control_record_refused", 7)]
    assert "ann-smith" not in str(lines)
