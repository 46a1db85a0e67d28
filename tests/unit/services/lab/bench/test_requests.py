"""Requests that are made from events, and figures from answers."""

import json
from pathlib import Path

import pytest

from services.lab.bench.command import print_targets
from services.lab.bench.report import percentile, spread, target
from services.lab.bench.requests import CANDIDATES, StorefrontRequest, rank_bodies, requests_before
from services.scorer.requests import RankRequest, RecommendRequest
from streams.events import Impression, Item, Purchase

RANKLENS = Path(__file__).parents[6] / "shared" / "data" / "ranklens"
ITEMS = [Item(event_id="e", ts=1, item_id=f"i{n}", kind="product", title="t") for n in range(150)]


def bought(user: str, item: str, ts: int, session: str | None = None) -> Purchase:
    return Purchase(event_id=f"{ts}", ts=ts, user_id=user, item_id=item, scenario="home", session_id=session)


def shown(user: str, *items: str) -> Impression:
    places = [{"item_id": item, "position": place} for place, item in enumerate(items)]
    return Impression.model_validate(
        {"event_id": "s", "ts": 9, "user_id": user, "scenario": "home", "request_id": "r", "items": places}
    )


def test_a_request_knows_what_came_before_it_in_its_session_and_nothing_after() -> None:
    found = requests_before(
        [bought("u", "i1", 1, "s"), bought("u", "i2", 2, "s"), bought("u", "i3", 3, "other")], newest=5
    )
    assert [each.shopper["session_items"] for each in found] == [[], ["i1"], []]
    assert [each.offered for each in found] == [("i1",), ("i2",), ("i3",)]


def test_where_lists_were_shown_these_are_ranked() -> None:
    found = requests_before([bought("u", "i1", 1), shown("u", "i7", "i8"), bought("u", "i7", 10)], newest=5)
    assert [each.offered for each in found] == [("i7", "i8")]
    assert found[0].shopper == {"user_id": "u", "session_items": ["i1"], "ts": 9}


def test_only_the_newest_are_asked() -> None:
    assert [each.offered for each in requests_before([bought("u", f"i{n}", n) for n in range(9)], newest=2)] == [
        ("i7",),
        ("i8",),
    ]


def test_candidates_are_filled_up_and_bodies_are_what_the_scorer_takes() -> None:
    request = StorefrontRequest({"user_id": "u", "session_id": "s", "session_items": ["i1"], "ts": 5}, ("i3", "i4"))
    parsed = RankRequest.model_validate_json(rank_bodies([request], ITEMS)[0])
    assert len(parsed.candidates) == len(set(parsed.candidates)) == CANDIDATES
    assert {"i3", "i4"} <= set(parsed.candidates)
    assert RecommendRequest.model_validate_json(request.recommend()).k == 20
    few = json.loads(rank_bodies([request], ITEMS[:10])[0])["candidates"]
    assert sorted(few) == sorted(item.item_id for item in ITEMS[:10])


@pytest.mark.skipif(not RANKLENS.exists(), reason="the data set is not there")
def test_ranklens_is_a_source_of_requests() -> None:
    from services.data.dataset import read_events, read_items

    items = list(read_items(RANKLENS / "items.csv.gz"))
    found = requests_before(read_events(RANKLENS / "events.csv.gz", max_events=500), newest=50)
    assert len(found) == 50
    assert all(len(each.offered) == 24 for each in found)
    assert all(len(json.loads(body)["candidates"]) == CANDIDATES for body in rank_bodies(found, items))


def test_percentiles_of_few_values_are_among_them() -> None:
    assert [percentile([float(n) for n in range(1, 11)], p) for p in (50, 90, 99)] == [5.0, 9.0, 10.0]
    assert spread([])["p99_ms"] is None


def test_a_target_is_met_missed_or_not_measured() -> None:
    targets = [target("a", 1.0, at_most=1), target("b", 0.4, at_least=0.5), target("c", None, at_most=1)]
    assert [each["holds"] for each in targets] == [True, False, None]
    lines: list[str] = []
    print_targets({"targets": targets}, lines.append)
    assert [line.split("  ")[-1].strip() for line in lines] == ["met", "NOT MET", "not measured"]
