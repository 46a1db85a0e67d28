"""Slices of a stream, and their figures and gains in the report."""

from array import array
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from tiny_model import titled

from services.lab.backtest.replay import Data, Outcome
from services.lab.backtest.summary import summary
from services.lab.backtest.tables import figures_table, slice_rows, slice_tables
from services.lab.offline.judging import Ranks
from services.lab.offline.slices import slice_figures, slices
from services.lab.offline.stream import Stream, read_stream
from services.settings import Settings
from streams.examples import Example

ROWS = (
    "ts,user_id,session_id,event_type,item_id\n"
    "1764500000000,ann,s1,purchase,a\n"
    "1764500001000,,s2,purchase,b\n"
    "1764500002000,ann,s1,purchase,b\n"
    "1764500003000,ann,s1,click,a\n"
    "1764500004000,,,purchase,a\n"
    "1764500005000,ann,s1,purchase,c\n"
    "1764500006000,ann,s3,purchase,a\n"
    "1764500007000,,s2,purchase,b\n"
)


@pytest.fixture
def stream(tmp_path: Path) -> Stream:
    path = tmp_path / "events.csv"
    path.write_text(ROWS)
    return read_stream(path, {"a", "b", "c"}, max_events=None, click_window_seconds=600)


def test_rows_without_a_user_are_guests(stream: Stream) -> None:
    assert stream.guests == {"guest-s2", "guest-events-5"}
    places = {name: np.flatnonzero(flags).tolist() for name, flags in slices(stream).items()}
    assert places == {
        "guests": [1, 4, 7],
        "known": [0, 2, 3, 5, 6],
        "session_first": [0, 1, 4, 6],
        "session_2_3": [2, 3, 7],
        "session_later": [5],
        "cold_item": [0, 1, 2, 3, 4, 5, 7],
        "repeat": [3, 6, 7],
        "not_repeat": [0, 1, 2, 4, 5],
    }


def test_a_file_without_guests_has_no_slice_of_known_customers(stream: Stream) -> None:
    known = [example for example in stream.examples if example.user_id == "ann"]
    assert not {"guests", "known"} & slices(Stream(known, [])).keys()


def test_queries_are_unseen_until_an_event_has_them() -> None:
    queries = ["mug", None, "Mug", "lamp", "mug"]
    examples = [
        Example(f"e-{place}", "ann", None, "a", place, "click", "search", None, 0, query=query)
        for place, query in enumerate(queries)
    ]
    flags = slices(Stream(examples, []))
    assert np.flatnonzero(flags["unseen_query"]).tolist() == [0, 3]
    assert np.flatnonzero(flags["known_query"]).tolist() == [2, 4]


def test_earlier_events_are_history(stream: Stream) -> None:
    warm_up = [
        Example(f"w-{place}", "ann", None, item, 1, "purchase", "home", None, 0) for place, item in enumerate("abc")
    ]
    flags = slices(stream, warm_up * 3)
    assert np.flatnonzero(flags["repeat"]).tolist() == [0, 2, 3, 5, 6, 7]
    assert "cold_item" not in flags


def test_figures_are_over_the_events_of_a_slice() -> None:
    ranks = Ranks(rank=array("i", [1, 3, 30, 1]), candidates=40)
    values = slice_figures(ranks, {"repeat": np.array([False, True, True, False])})
    assert values == {"events_repeat": 2, "hr20_repeat": 0.5, "ndcg20_repeat": pytest.approx(0.25)}


def outcome(ranks: list[int]) -> Outcome:
    count = len(ranks)
    judged = Ranks(
        array("i", ranks), array("f", [0.5] * count), first_of_item=[False] * count, new_user=[False] * count
    )
    return Outcome(judged, events_learnt=8, learn_seconds=1.0, seconds=1.0, publications=1)


@pytest.fixture
def report(stream: Stream) -> dict[str, Any]:
    data = Data(titled(3), [], stream, 10, judge_after=0.25)  # the first two are not judged
    outcomes = {
        "live": [outcome([1, 1, 3, 1, 1, 1])],
        "live-without-lora": [outcome([1, 1, 1, 1, 1, 1])],
        "cooccurrence": [outcome([3, 3, 3, 3, 3, 3])],
    }
    return {"events": "events.csv"} | summary(Settings(), data, outcomes)


def test_gains_are_reported_by_slice(report: dict[str, Any]) -> None:
    assert report["slices"]["guests"] == {"events": 2, "about": "events without a user id"}
    assert report["policies"]["live"]["events_known"]["mean"] == 4
    over = report["gains_by_slice"]
    assert over["known"]["live-without-lora"]["ndcg20"]["difference"] == 0
    assert over["guests"]["live-without-lora"]["ndcg20"]["difference"] == pytest.approx(-0.25)
    assert over["guests"]["live-without-lora"]["ndcg20"]["low"] == pytest.approx(-0.5)
    known = slice_rows(report, "known")
    assert known[0] == ["live", "1.0000", "1.0000", "", "", ""]
    assert known[2][3:] == ["+0.5000", "+0.5000 to +0.5000", "+100.0%"]


def test_tables_fit_a_terminal_and_known_customers_come_first(report: dict[str, Any]) -> None:
    out = StringIO()
    console = Console(file=out, width=80)
    console.print(figures_table(report))
    for table in slice_tables(report):
        console.print(table)
    text = out.getvalue()
    assert "…" not in text
    above, header = text.splitlines()[1:3]
    assert above.split()[:2] == ["hr20", "ndcg20"]
    assert header.split()[:3] == ["policy", "known", "known"]
    assert "-.2500" in text
