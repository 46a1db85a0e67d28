"""The same lists and clicks, as a CSV data set and as Metarank's events, are the same events of ours."""

import csv
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services.data.dataset import read_events
from streams.dead_letters import DeadLetter
from streams.decode import decode
from streams.events import Click, Event, Impression
from streams.record import Record
from streams.topics import Topics

RANKLENS = Path(__file__).parents[5] / "shared" / "data" / "ranklens" / "events.csv.gz"
TOPICS = Topics(dialects={"ranklens": "metarank"})

SMALL = """\
timestamp_ms,user_id,session_id,event_type,request_id,item_id,position,shown_items
1636993834000,u0000,u0000,impression,r00000,,,1805 2387 105197 62374 47423
1636993835000,u0001,u0001,impression,r00001,,,1907 232 3753 60397
1636993839000,u0000,u0000,click,r00000,2387,1,
1636993839000,u0000,u0000,click,r00000,1805,0,
1636993840000,u0001,u0001,click,r00001,60397,3,
1636993841000,u0001,u0001,impression,r00002,,,1907
"""


def as_metarank(row: dict[str, str], number: int) -> dict[str, Any]:
    """A row as Metarank has it: places are not said of clicks, and a ranking's id is the one of its request."""
    common = {"timestamp": row["timestamp_ms"], "user": row["user_id"], "session": row["session_id"], "fields": []}
    if row["event_type"] == "impression":
        items = [{"id": item_id, "relevancy": 0} for item_id in row["shown_items"].split()]
        return common | {"event": "ranking", "id": row["request_id"], "items": items}
    interaction = {"event": "interaction", "id": f"{row['request_id']}-{number}", "ranking": row["request_id"]}
    return common | interaction | {"type": "click", "item": row["item_id"]}


def through_metarank(path: Path) -> Iterator[Event]:
    with gzip.open(path, "rt") as file:
        for number, row in enumerate(csv.DictReader(file), start=1):
            value = json.dumps(as_metarank(row, number)).encode()
            decoded = decode(Record("ranklens", 0, number, None, value, 0), TOPICS)
            assert not isinstance(decoded, DeadLetter)
            (event,) = decoded
            assert isinstance(event, Impression | Click)
            yield event


def directly(path: Path) -> Iterator[Event]:
    """As `headwater replay` publishes them, but for what Metarank's events cannot say."""
    for number, event in enumerate(read_events(path), start=1):
        assert isinstance(event, Impression | Click)
        if isinstance(event, Impression):
            yield event.model_copy(update={"event_id": event.request_id})
        else:
            yield event.model_copy(update={"event_id": f"{event.request_id}-{number}", "position": None})


def test_a_few_rows_are_the_same(tmp_path: Path) -> None:
    path = tmp_path / "events.csv.gz"
    path.write_bytes(gzip.compress(SMALL.encode()))
    found = list(through_metarank(path))
    assert found == list(directly(path))
    kinds = [event.KIND for event in found]
    assert kinds == ["impression", "impression", "click", "click", "click", "impression"]


@pytest.mark.skipif(not RANKLENS.exists(), reason="the data set is not there")
def test_the_whole_of_ranklens_is_the_same() -> None:
    count = 0
    for found, expected in zip(through_metarank(RANKLENS), directly(RANKLENS), strict=True):
        assert found == expected
        count += 1
    assert count > 10_000
