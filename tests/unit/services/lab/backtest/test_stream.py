"""What a backtest reads: clicks joined to the lists they came from, and when each part is learnt."""

from pathlib import Path

import pytest

from services.data.files import InputError
from services.data.rows import RefusedRows
from services.lab.offline.stream import Stream, chunks, days, read_stream

HEADER = "timestamp_ms,user_id,session_id,event_type,request_id,item_id,position,shown_items\n"
ROWS = """\
1000,ann,s,impression,r1,,,a b gone c
3000,ann,s,click,r1,a,0,
9000,bob,,impression,r2,,,b a
12000,ann,s,purchase,r1,c,,
12500,ann,s,click,,b,,
13000,bob,,return,r2,b,,
"""
KNOWN = {"a", "b", "c"}


def read(tmp_path: Path, rows: str = ROWS, *, window: float = 10.0, max_events: int | None = None) -> Stream:
    path = tmp_path / "events.csv"
    path.write_text(HEADER + rows)
    return read_stream(path, KNOWN, max_events=max_events, click_window_seconds=window)


def test_positives_come_in_time_order_without_what_is_no_signal(tmp_path: Path) -> None:
    stream = read(tmp_path, "\n".join(reversed(ROWS.splitlines())) + "\n")
    assert [(example.item_id, example.kind) for example in stream.examples] == [
        ("a", "click"),
        ("c", "purchase"),
        ("b", "click"),
    ]
    assert [shown.as_shown.user_id for shown in stream.lists] == ["ann", "bob"]


def test_a_list_is_learnt_when_its_window_has_passed_and_late_clicks_when_they_come(tmp_path: Path) -> None:
    first, second = read(tmp_path).lists
    assert first.as_shown.item_ids == ("a", "b", "c")  # the catalogue does not have the other
    assert first.as_shown.positions == (0, 1, 3)
    assert first.as_shown.clicked == (True, False, True)
    assert first.as_shown.bought == (False, False, True)
    (due, lesson), (late_ts, late) = first.lessons
    assert (due, lesson.clicked, lesson.is_correction) == (11_000, (True, False, False), False)
    assert (lesson.bought, late.bought) == ((False, False, False), (True,))
    assert (late_ts, late.item_ids, late.positions, late.clicked, late.is_correction) == (
        12_000,
        ("c",),
        (3,),
        (True,),
        True,
    )
    assert late.ts == lesson.ts == 1_000
    assert [due for due, _ in second.lessons] == [19_000]
    assert second.as_shown.clicked == (False, False)


def test_in_a_longer_window_nothing_is_late(tmp_path: Path) -> None:
    first, _ = read(tmp_path, window=11.5).lists
    assert [lesson.clicked for _, lesson in first.lessons] == [(True, False, True)]


def test_max_events_counts_positives(tmp_path: Path) -> None:
    stream = read(tmp_path, max_events=1)
    assert len(stream.examples) == 1
    assert len(stream.lists) == 2  # up to the next positive


def test_chunks_keep_the_order_and_put_a_list_before_what_comes_at_its_time(tmp_path: Path) -> None:
    parts = list(chunks(read(tmp_path), 2))
    assert [(len(part.lists), len(part.examples), part.end_ms) for part in parts] == [
        (1, 1, 3_000),
        (1, 1, 12_000),
        (0, 1, 12_500),
    ]


def test_purchases_alone_are_cut_by_count(tmp_path: Path) -> None:
    stream = Stream(read(tmp_path).examples, [])
    assert [len(part.examples) for part in chunks(stream, 2)] == [2, 1]


def test_events_of_unknown_items_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"1 items are not in the catalogue, among them \['z'\]"):
        read(tmp_path, "1,ann,,click,,z,,\n")


def test_no_signal_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected clicks or purchases, found none"):
        read(tmp_path, "1,ann,,impression,r,,,a b\n")


def test_when_nothing_is_left_the_refused_rows_are_named(tmp_path: Path) -> None:
    path = tmp_path / "events.csv"
    path.write_text("timestamp,user_id,event_type,item_id\n2026-11-01T10:00:00Z,ann,click,\n")
    with pytest.raises(InputError, match=r"found none; 1 rows were refused, first: .*events\.csv, row 1: `item_id`"):
        read_stream(path, {"a"}, max_events=None, click_window_seconds=1, refused=RefusedRows(strict=False))


def test_a_chunk_is_cut_at_midnights_of_utc(tmp_path: Path) -> None:
    day_ms = 86_400_000
    rows = (
        f"{2 * day_ms - 1},ann,s,click,,a,,\n"
        f"{2 * day_ms},bob,,impression,r2,,,b a\n"
        f"{2 * day_ms},ann,s,click,,b,,\n"
        f"{5 * day_ms + 7},bob,,click,r2,c,,\n"
    )
    (chunk,) = chunks(read(tmp_path, rows), 10)
    parts = list(days(chunk))
    assert [(day, len(part.lists), [example.item_id for example in part.examples]) for day, part in parts] == [
        (1, 0, ["a"]),
        (2, 1, ["b"]),
        (5, 0, ["c"]),
    ]
    assert [part.end_ms for _, part in parts] == [2 * day_ms - 1, 2 * day_ms, 5 * day_ms + 7]


def test_a_purchase_that_comes_after_its_click_was_learnt_is_learnt_alone(tmp_path: Path) -> None:
    first, _ = read(tmp_path, ROWS + "14000,ann,s,purchase,r1,a,,\n15000,ann,s,purchase,r1,a,,\n").lists
    assert first.as_shown.bought == (True, False, True)
    corrections = [(ts, one.item_ids, one.clicked, one.bought) for ts, one in first.lessons[1:]]
    assert corrections == [(14_000, ("a",), (False,), (True,)), (12_000, ("c",), (True,), (True,))]


def test_a_click_carries_its_own_query_or_that_of_its_list(tmp_path: Path) -> None:
    path = tmp_path / "events.csv"
    path.write_text(
        "ts,user_id,event_type,request_id,item_id,shown_items,query\n"
        "1764500000000,ann,impression,r1,,a b,red mug\n"
        "1764500001000,ann,click,r1,a,,\n"
        "1764500002000,ann,purchase,r1,b,, blue  mug\n"
        "1764500003000,ann,click,,c,,lamp\n"
        "1764500004000,ann,click,,c,,\n"
    )
    stream = read_stream(path, KNOWN, max_events=None, click_window_seconds=600)
    assert [example.query for example in stream.examples] == ["red mug", "blue mug", "lamp", None]
