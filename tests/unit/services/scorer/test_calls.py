"""Filters, diversity, bids, related items and several calls at once, over real HTTP."""

from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from call_shop import IDS, ITEMS, Shop, item

from services.scorer.responses import BatchAnswer, CandidateRanking, Ranking
from services.web.server import running
from streams.events import Click, Purchase


@pytest.fixture(scope="module")
def open_shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    shop = Shop(tmp_path_factory.mktemp("bundles"))
    with running(shop.app) as url, httpx.Client(base_url=url) as shop.client:
        yield shop


@pytest.fixture
def shop(open_shop: Shop) -> Iterator[Shop]:
    yield open_shop
    open_shop.table.serve_model(open_shop.model)
    for item_id in IDS:
        open_shop.items.take_in(item(item_id))


def ids(body: dict[str, Any]) -> list[str]:
    return [entry["item_id"] for entry in body["items"]]


def vectors(shop: Shop, item_ids: list[str]) -> np.ndarray[Any, np.dtype[np.float32]]:
    rows = np.array([shop.model.rows[item_id] for item_id in item_ids])
    found: np.ndarray[Any, np.dtype[np.float32]] = shop.model.ranker.candidate_vectors(rows).numpy()
    return found


def test_filters_leave_the_order_of_what_fits(shop: Shop) -> None:
    filters = {"kinds": ["ad", "article"], "categories": ["C1"], "min_price": 3, "max_price": 23, "in_stock": True}
    fitting = [one for one in ids(shop.post("rank", candidates=IDS)) if int(one[5:]) in {7, 11, 13, 17, 19, 23}]
    assert ids(shop.post("recommend", k=25, filters=filters)) == fitting
    body = shop.post("rank", candidates=[*IDS, "no-such"], filters=filters)
    assert ids(body) == fitting
    assert body["unknown_candidates"] == ["no-such"], "what filters left out is not unknown"
    assert len(fitting) == 6
    assert set(
        shop.similar("item-5", k=25, kind=["ad", "article"], category="c1", min_price=3, max_price=23, in_stock="true")
    ) == set(fitting)
    assert ids(shop.post("recommend", filters={"categories": ["nowhere"]})) == []


def test_what_was_bought_is_left_out_where_that_is_asked_for(shop: Shop) -> None:
    for number, event in enumerate((Purchase, Purchase, Click)):
        made = event(event_id=f"e{number}", ts=number, user_id="buyer", item_id=f"item-{number}")
        shop.shoppers.take_in(made, publish_ts_ms=0)
    for user, left_out in (("buyer", {"item-0", "item-1"}), ("other", set())):
        asked: dict[str, Any] = {"user_id": user, "exclude_bought": True}
        assert set(ids(shop.post("rank", candidates=IDS, **asked))) == set(IDS) - left_out
        assert not left_out & set(ids(shop.post("recommend", k=25, **asked)))
    assert set(ids(shop.post("rank", candidates=IDS, user_id="buyer"))) == set(IDS)


def test_more_diversity_puts_less_alike_items_first(shop: Shop) -> None:
    def alike(item_ids: list[str]) -> float:
        own = vectors(shop, item_ids)
        products = own @ own.T
        return float((products.sum() - len(own)) / (len(own) * (len(own) - 1)))

    plain = ids(shop.post("recommend", k=6))
    assert ids(shop.post("recommend", k=6, diversity=0)) == plain
    lists = {share: ids(shop.post("recommend", k=6, diversity=share)) for share in (0.5, 0.9)}
    assert all(one[0] == plain[0] for one in lists.values()), "the best one stays the first"
    assert alike(lists[0.9]) < alike(lists[0.5]) <= alike(plain)
    ranked = shop.post("rank", candidates=IDS, diversity=0.9)
    assert sorted(ids(ranked)) == sorted(IDS)
    assert ids(ranked)[:6] == lists[0.9]
    scores = {entry["item_id"]: entry["score"] for entry in shop.post("rank", candidates=IDS)["items"]}
    for entry in ranked["items"]:
        assert entry["score"] == pytest.approx(scores[entry["item_id"]]), "each keeps its own score"


def test_bids_order_by_what_they_bring_in(shop: Shop) -> None:
    plain = shop.post("rank", candidates=IDS[:9])
    bids = {"item-4": 2.0, "item-7": 0.5, "item-8": 1000, "no-such": 5}
    body = shop.post("rank", candidates=IDS[:9], bids=bids)
    clicked = {entry["item_id"]: entry["click_probability"] for entry in plain["items"]}
    for entry in body["items"]:
        worth = bids.get(entry["item_id"], 0) * clicked[entry["item_id"]]
        assert entry["expected_value"] == pytest.approx(worth, rel=1e-5)
    values = [entry["expected_value"] for entry in body["items"]]
    assert values == sorted(values, reverse=True)
    assert ids(body)[0] == "item-8"
    assert ids(body)[3:] == [one for one in ids(plain) if one not in bids], "without a bid by score"
    assert "expected_value" not in plain["items"][0]


def test_bids_on_what_was_never_learnt_are_refused_and_harm_no_swap(shop: Shop) -> None:
    asked = {"candidates": ["item-1"], "bids": {"item-1": 1}}
    for request, told in ((asked | {"pay_per": "purchase"}, "purchase"), (asked, "click")):
        answer = shop.client.post("/v1/rank", json=request)
        assert answer.status_code == (200 if request is asked else 409)
        shop.table.serve_model(shop.without_lists)
        answer = shop.client.post("/v1/rank", json=request)
        assert (answer.status_code, answer.headers["content-type"]) == (409, "application/problem+json")
        assert f"how likely a {told} is" in answer.json()["detail"]
        shop.table.serve_model(shop.model)
    shop.post("rank", **asked)
    shop.recommender.warm(shop.without_lists)


def test_related_items_come_by_behaviour_or_by_likeness(shop: Shop) -> None:
    behaviour = shop.similar("item-3", k=25)
    assert (
        behaviour
        == [one for one in ids(shop.post("rank", candidates=IDS, session_items=["item-3"])) if one != "item-3"][:25]
    )
    likeness = vectors(shop, IDS) @ vectors(shop, ["item-3"])[0]
    nearest = [IDS[row] for row in np.argsort(-likeness) if IDS[row] != "item-3"]
    assert shop.similar("item-3", k=5, by="likeness") == nearest[:5]
    assert len(shop.similar("item-3", by="likeness", diversity=0.7)) == 20


def test_of_an_unknown_item_nothing_is_related(shop: Shop) -> None:
    for path in ("/v1/items/no-such/similar", "/v1/items/a%2Fb/similar"):
        answer = shop.client.get(path)
        assert answer.status_code == 404
        assert answer.headers["content-type"] == "application/problem+json"


def test_a_batch_answers_each_as_the_call_of_its_own_does(shop: Shop) -> None:
    rank: dict[str, Any] = {"candidates": IDS[:5], "session_items": ["item-9"], "ts": 1}
    recommend: dict[str, Any] = {"k": 4, "session_items": ["item-2"], "ts": 1}
    body = shop.post("batch", requests=[{"call": "rank", **rank}, {"call": "recommend", **recommend}])
    assert body == {"answers": [shop.post("rank", **rank), shop.post("recommend", **recommend)]}
    BatchAnswer.model_validate(body)
    CandidateRanking.model_validate(body["answers"][0], extra="forbid")


@pytest.mark.parametrize(
    ("requests", "told"),
    [
        ([], "at least 1 item"),
        ([{"call": "recommend"}] * 4, "`requests` must be at most 3, got 4"),
        ([{"call": "recommend"}, {"call": "recommend", "k": 26}], "`k` must be at most 25, got 26"),
        ([{"call": "search", "k": 1}], "body/requests/0"),
        ([{"call": "recommend", "candidates": ["item-1"]}], "Extra inputs"),
    ],
)
def test_a_batch_with_a_fault_is_refused_as_a_whole(shop: Shop, requests: list[Any], told: str) -> None:
    answer = shop.client.post("/v1/batch", json={"requests": requests})
    assert answer.status_code == 422
    assert told in answer.json()["detail"]


def everything_that_comes_out(shop: Shop) -> set[str]:
    """Every item id in every answer to requests that would bring out all there is."""
    lists = [
        shop.post("recommend", k=25, diversity=share, filters=filters)
        for share in (0, 0.5)
        for filters in (None, {"kinds": ["product"]}, {"kinds": ["ad"]}, {"kinds": ["article"]})
    ]
    lists += [shop.post("rank", candidates=IDS, diversity=share) for share in (0, 0.5)]
    lists.append(shop.post("rank", candidates=IDS, bids=dict.fromkeys(IDS, 1.0)))
    lists += shop.post("batch", requests=[{"call": "rank", "candidates": IDS}, {"call": "recommend", "k": 25}])[
        "answers"
    ]
    lists.append(shop.post("explain", candidates=IDS))
    lists += [shop.post("search", query=title, k=25, diversity=share) for _, title in ITEMS[:4] for share in (0, 0.5)]
    related = {one for by in ("behaviour", "likeness") for of in IDS[:3] for one in shop.similar(of, by=by, k=25)}
    return related | {one for body in lists for one in ids(body)}


def test_a_blocked_item_comes_out_of_no_call_from_the_event_on(shop: Shop) -> None:
    Ranking.model_validate(shop.client.get("/v1/items/item-1/similar").json(), extra="forbid")
    assert everything_that_comes_out(shop) == set(IDS)
    for gone in ("item-0", "item-17"):
        shop.items.take_in(item(gone, status="blocked"))
    assert everything_that_comes_out(shop) == set(IDS) - {"item-0", "item-17"}
    assert shop.post("rank", candidates=IDS)["unknown_candidates"] == ["item-0", "item-17"]
    assert "item-0" not in shop.similar("item-0"), "the page of a blocked item still shows others"


def test_what_is_blocked_while_an_answer_is_made_is_not_in_it(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    context = shop.shoppers.context

    def blocks_meanwhile(*who: Any, **session: Any) -> Any:
        shop.items.take_in(item("item-6", status="blocked"))
        return context(*who, **session)

    for call, request in (
        ("rank", {"candidates": IDS}),
        ("recommend", {"k": 25, "filters": {"min_price": 6}}),
        ("search", {"query": dict(ITEMS)["item-6"]}),
    ):
        shop.items.take_in(item("item-6"))
        assert "item-6" in ids(shop.post(call, **request))
        monkeypatch.setattr(shop.shoppers, "context", blocks_meanwhile)
        assert "item-6" not in ids(shop.post(call, **request))
        monkeypatch.undo()
