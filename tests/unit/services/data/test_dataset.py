"""Data sets as events: what is read, what is invented, what is passed over, what is refused."""

import gzip
from collections import Counter
from pathlib import Path

import pytest

from services.data.dataset import INVENTED_EPOCH_MS, read_events, read_items
from services.data.files import InputError
from streams.events import Click, Impression, Purchase

RETAIL = """timestamp,user_id,session_id,event_type,item_id,quantity,price,country
2010-12-01T08:26:00,17850,536365,purchase,85123A,6,2.55,United Kingdom
2010-12-01T08:27:00,17850,C1,return,85123A,-6,2.55,United Kingdom
2010-12-01T09:00:00,,536370,purchase,71053,1,3.39,France
"""


@pytest.fixture
def retail(tmp_path: Path) -> Path:
    path = tmp_path / "events.csv"
    path.write_text(RETAIL)
    return path


def test_purchases_are_read_in_order_with_times_in_utc(retail: Path) -> None:
    first, second = read_events(retail)
    assert first == Purchase(
        event_id="events-1",
        ts="2010-12-01T08:26:00Z",
        user_id="17850",
        session_id="536365",
        item_id="85123A",
        quantity=6,
        price=2.55,
    )
    assert second.event_id == "events-3"


def test_a_row_without_a_user_is_a_guest_of_its_session(retail: Path) -> None:
    users = [event.user_id for event in read_events(retail) if isinstance(event, Purchase)]
    assert users == ["17850", "guest-536370"]


def test_returns_are_passed_over_and_counted(retail: Path) -> None:
    skipped: Counter[str] = Counter()
    assert len(list(read_events(retail, skipped=skipped))) == 2
    assert skipped == {"return": 1}


def test_max_events_counts_events_and_not_rows(retail: Path) -> None:
    assert [event.event_id for event in read_events(retail, max_events=2)] == ["events-1", "events-3"]
    assert [event.event_id for event in read_events(retail, max_events=1)] == ["events-1"]


def test_gzip_and_plain_give_the_same_events(retail: Path, tmp_path: Path) -> None:
    packed = tmp_path / "events.csv.gz"
    packed.write_bytes(gzip.compress(RETAIL.encode()))
    assert list(read_events(packed)) == list(read_events(retail))


def test_the_scenario_is_the_one_asked_for(retail: Path) -> None:
    assert {event.scenario for event in read_events(retail, scenario="ads") if isinstance(event, Purchase)} == {"ads"}


def test_without_times_they_are_invented_one_second_apart(tmp_path: Path) -> None:
    path = tmp_path / "events.csv"
    path.write_text("seq,user_id,event_type,item_id\n0,A,purchase,1\n1,,purchase,2\n5,A,click,2\n")
    events = list(read_events(path))
    assert [event.ts - INVENTED_EPOCH_MS for event in events] == [0, 1000, 5000]
    assert [event.key() for event in events] == ["A", "guest-events-2", "A"]


def test_lists_shown_and_clicks_on_them(tmp_path: Path) -> None:
    path = tmp_path / "lists.csv"
    path.write_text(
        "timestamp_ms,user_id,session_id,event_type,request_id,item_id,position,shown_items\n"
        "1636993834000,u0,s0,impression,r0,,,1805 2387 62\n"
        "1636993839000,u0,s0,click,r0,2387,1,\n"
    )
    shown, click = read_events(path)
    assert isinstance(shown, Impression)
    assert [(item["item_id"], item["position"]) for item in shown.items] == [("1805", 0), ("2387", 1), ("62", 2)]
    assert isinstance(click, Click)
    assert (click.request_id, click.item_id, click.position, click.ts) == ("r0", "2387", 1, 1_636_993_839_000)


def test_a_time_with_a_zone_keeps_it(tmp_path: Path) -> None:
    path = tmp_path / "events.csv"
    path.write_text("timestamp,user_id,event_type,item_id\n2020-01-01T01:00:00+01:00,A,purchase,1\n")
    assert next(read_events(path)).ts == INVENTED_EPOCH_MS


def test_items_take_what_columns_there_are(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_text("item_id,title,category,price,first_seen\n7,MUG,,0.85,2009-12-01T00:00:00\n8,PLATE,china,,\n")
    mug, plate = read_items(path)
    assert (mug.item_id, mug.kind, mug.title, mug.price, mug.ts) == ("7", "product", "MUG", 0.85, 1_259_625_600_000)
    assert (plate.category, plate.price, plate.ts, plate.event_id) == ("china", None, INVENTED_EPOCH_MS, "items-2")


def test_items_take_vectors_from_columns_of_their_names(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_text('item_id,title,vectors.image,vectors.sound\n7,MUG,"[0.5, 1]",[3]\n8,PLATE,,\n9,CUP,"[1, 2]",\n')
    assert [item.vectors for item in read_items(path)] == [{"image": [0.5, 1.0], "sound": [3.0]}, {}, {"image": [1, 2]}]


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("[1]", r"row 2: `vectors\.image` must have 2 numbers, as the first has, got 1"),
        ("1;2", r"row 2: .*JSON|row 2: Extra data"),
        ('"[1, NaN]"', r"row 2: `vectors\.image\.1`: Input should be a finite number"),
    ],
)
def test_a_vector_that_cannot_be_used_names_its_row(tmp_path: Path, cell: str, message: str) -> None:
    path = tmp_path / "items.csv"
    path.write_text(f'item_id,title,vectors.image\n7,MUG,"[0.5, 1]"\n8,PLATE,{cell}\n')
    with pytest.raises(InputError, match=message):
        list(read_items(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("user_id,event_type\nA,purchase\n", r"must have the columns .* lacks item_id; it has user_id, event_type"),
        ("", r"it has no header"),
        (
            "seq,user_id,event_type,item_id\n0,A,purchase,\n",
            r"events\.csv, row 1: `item_id`: String should have at least 1",
        ),
        ("seq,user_id,event_type,item_id\n0,A,purchase,1\nx,A,purchase,1\n", r"events\.csv, row 2: .*'x'"),
        ("user_id,event_type,item_id\nA,purchase,1\n", r"row 1: a row needs a time"),
        (
            "timestamp,user_id,event_type,item_id\nyesterday,A,purchase,1\n",
            r"row 1: `timestamp` must be an ISO 8601 time such as .*, got 'yesterday'",
        ),
    ],
)
def test_a_file_that_cannot_be_used_names_its_fault(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "events.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        list(read_events(path))


@pytest.mark.parametrize("content", [None, b"no gzip at all", gzip.compress(RETAIL.encode())[:-20]])
def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "events.csv.gz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"events\.csv\.gz cannot be read: "):
        list(read_events(path))


def test_the_bundled_sample_is_read_whole() -> None:
    data = Path(__file__).parents[4] / "services" / "lab" / "demo" / "data"
    events = list(read_events(data / "events.csv.gz"))
    items = {item.item_id for item in read_items(data / "items.csv.gz")}
    assert len(events) == 48_098
    assert len(items) == 1_865
    assert {event.item_id for event in events if isinstance(event, Purchase)} <= items
    assert [event.ts for event in events] == sorted(event.ts for event in events)


@pytest.mark.parametrize("column", ["timestamp", "timestamp_ms", "ts"])
def test_times_in_seconds_are_refused_with_that_reason(tmp_path: Path, column: str) -> None:
    file = tmp_path / "events.csv"
    file.write_text(f"user_id,event_type,item_id,{column}\nann,click,i1,1764500000\n")
    with pytest.raises(InputError, match=r"row 1: .*looks like seconds; `ts` must be epoch milliseconds"):
        list(read_events(file))


@pytest.mark.parametrize(
    ("column", "cell", "problem"),
    [
        ("timestamp", "1764500000000", "`timestamp` must be an ISO 8601 time, got '1764500000000'; numbers of"),
        ("timestamp", "1796070402006", "`timestamp` must be an ISO 8601 time, got '1796070402006'; numbers of"),
        ("timestamp", "1.796070402e+18", "looks like nanoseconds"),
        ("timestamp", "NaN", "`timestamp` must be an ISO 8601 time such as 2026-01-31T09:00:00Z, got 'NaN'"),
        ("timestamp_ms", "1796070402.5", "looks like seconds"),
        ("timestamp_ms", "soon", "`timestamp_ms` must be a number of epoch milliseconds, got 'soon'"),
        ("timestamp_ms", "1e999", "`timestamp_ms` must be a number of epoch milliseconds, got '1e999'"),
        ("ts", "1796070402006000", "looks like microseconds"),
        ("seq", "1.5", "`seq` must be a whole number, got '1.5'"),
    ],
)
def test_a_cell_that_is_no_time_is_named_as_it_stands(tmp_path: Path, column: str, cell: str, problem: str) -> None:
    file = tmp_path / "events.csv"
    file.write_text(f"user_id,event_type,item_id,{column}\nann,click,i1,{cell}\n")
    with pytest.raises(InputError) as refused:
        list(read_events(file))
    assert problem in str(refused.value)


@pytest.mark.parametrize(
    ("column", "cell"),
    [
        ("timestamp", "2026-11-30T20:26:42.006Z"),
        ("timestamp_ms", "1796070402006"),
        ("timestamp_ms", "1796070402006.0"),
        ("ts", "1796070402006"),
        ("ts", "2026-11-30T20:26:42.006Z"),
    ],
)
def test_a_time_may_be_written_as_text_or_in_milliseconds(tmp_path: Path, column: str, cell: str) -> None:
    file = tmp_path / "events.csv"
    file.write_text(f"user_id,event_type,item_id,{column}\nann,click,i1,{cell}\n")
    assert [event.ts for event in read_events(file)] == [1_796_070_402_006]
