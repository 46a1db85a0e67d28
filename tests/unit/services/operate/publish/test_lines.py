"""Lines of JSON as events: kinds, defaults, and reasons."""

import io
import json
import time
from pathlib import Path

import pytest

from services.operate.publish.lines import read_file, read_lines
from streams.events import Click, Event, Item, Purchase

CLICK = {"type": "click", "event_id": "e1", "ts": "2026-01-01T00:00:00Z", "user_id": "u", "item_id": "i"}

ITEM = {"type": "item", "item_id": "i", "kind": "product"}


def only(line: bytes, kind: str | None = None) -> Event | str:
    [(number, result)] = read_lines([line], kind=kind)
    assert number == 1
    return result


@pytest.mark.parametrize("field", ["type", "kind_of_event"])
def test_a_line_says_its_kind(field: str) -> None:
    fields = {field: "purchase"} | {name: value for name, value in CLICK.items() if name != "type"}
    event = only(json.dumps(fields).encode())
    assert isinstance(event, Purchase)
    assert (event.event_id, event.ts, event.user_id, event.item_id) == ("e1", 1_767_225_600_000, "u", "i")


def test_the_kind_can_be_given_for_all_lines() -> None:
    item = only(b'{"item_id": "i", "kind": "article", "title": "t"}', kind="item")
    assert isinstance(item, Item)
    assert item.kind == "article"
    assert isinstance(only(json.dumps(CLICK).encode(), kind="click"), Click)


def test_a_missing_id_is_made_up_and_a_missing_time_is_now() -> None:
    line = b'{"type": "click", "user_id": "u", "item_id": "i"}'
    before = time.time_ns() // 1_000_000
    [(_, first), (_, second)] = read_lines([line, line])
    assert isinstance(first, Click)
    assert isinstance(second, Click)
    assert first.event_id != second.event_id
    assert before <= first.ts <= time.time_ns() // 1_000_000


@pytest.mark.parametrize(
    ("line", "kind", "reason"),
    [
        (b'{"user_id": "u"}', None, "an event must name its `type`, one of impression, click, purchase, item"),
        (b'{"type": "view"}', None, "`type` must be one of impression, click, purchase, item, got 'view'"),
        (b'{"type": ["click"]}', None, "`type` must be one of"),
        (json.dumps(CLICK).encode(), "purchase", "`type` must be purchase, as --kind says, got 'click'"),
        (b'{"type": "click"', None, "not JSON: "),
        (b'{"type": "\xff"}', None, "not UTF-8: invalid start byte at byte 11"),
        (b"[1]", None, "an event must be a JSON object, got list"),
        (b"[" * 100_000, None, "nested too deeply"),
        (b'{"type": "click", "user_id": "u"}', None, "`item_id`: Field required"),
        (b'{"type": "click", "user_id": "", "item_id": "i"}', None, "`user_id`: String should have at least 1"),
        (b'{"type": "click", "ts": "2026-01-01T00:00:00"}', None, "`ts` must carry a UTC offset"),
        (
            json.dumps(ITEM | {"title": "tea\ud83d"}).encode(),
            None,
            "`title`: must be Unicode text, got half a surrogate",
        ),
        (json.dumps(CLICK | {"schema_version": 2}).encode(), None, "`schema_version`: "),
    ],
)
def test_a_bad_line_has_its_reason(line: bytes, kind: str | None, reason: str) -> None:
    result = only(line, kind)
    assert isinstance(result, str)
    assert reason in result


def test_a_bad_line_does_not_end_the_file_and_empty_lines_keep_the_numbers_right() -> None:
    good = json.dumps(CLICK).encode() + b"\n"
    results = list(read_lines([good, b"\n", b"oops\n", b"  \r\n", good]))
    assert [(number, type(result)) for number, result in results] == [(1, Click), (3, str), (5, Click)]


@pytest.mark.parametrize("column", ["timestamp_ms", "ts"])
def test_the_time_of_a_row_is_never_passed_over(column: str) -> None:
    table = f"user_id,item_id,{column}\nann,i1,1796070402006\nann,i1,1796070402\n"
    (_, event), (_, reason) = read_file(io.BytesIO(table.encode()), Path("clicks.csv"), kind="click")
    assert isinstance(event, Click)
    assert event.ts == 1_796_070_402_006
    assert reason == "looks like seconds; `ts` must be epoch milliseconds, got 1796070402"
