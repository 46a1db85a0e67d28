"""`/v1/explain` over real HTTP: it adds up to what `/v1/rank` says, and reads well."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from learnt_chain import Publications, catalogue_of
from prometheus_client import CollectorRegistry
from standing_service import standing_service
from tiny_model import paired_stream, tiny_encoder, titled

from peft_adapters.encoder.query_encoder import QueryEncoder
from peft_adapters.serving.explanations import Explanation, HistoryShare
from peft_adapters.serving.model_builder import build_model
from services.metrics.scorer import ScorerMetrics
from services.scorer.app import create_app
from services.scorer.live_items import LiveItems
from services.scorer.recommender import Recommender
from services.scorer.sentences import because
from services.scorer.serving_table import ServingTable
from services.scorer.shopper_state import ShopperState
from services.settings.scorer import ScorerSettings
from services.web.server import running
from streams.events import Item

ITEMS = titled(30)
ASKED = {"session_items": ["item-8", "item-4"], "candidates": ["item-5", "item-4", "no-such", "item-9", "item-7"]}


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Any:
    encoder = tiny_encoder()
    items = LiveItems()
    for item_id, text in ITEMS:
        status = "blocked" if item_id == "item-7" else "active"
        items.take_in(Item(event_id="e", ts=1, item_id=item_id, kind="product", title=text, status=status))
    shoppers = ShopperState(items.rows, max_shoppers=10, pseudonymise=str)
    publications = Publications(tmp_path_factory.mktemp("bundles"))
    publications.learner.add_items(ITEMS)
    for seed in range(2):
        publications.learner.learn(publications.learner.observe(paired_stream(64, items=30, seed=seed, users=8)))
    recommender = Recommender(items, shoppers, encode_query=QueryEncoder(encoder))
    table = ServingTable("home")
    bundle = publications.read(publications.full(3))
    table.serve_model(build_model([bundle], previous=None, catalogue=catalogue_of(encoder, ITEMS), encoder=encoder))
    service = standing_service(table, recommender, shoppers)
    return SimpleNamespace(items=items, table=table, shoppers=shoppers, service=service)


@pytest.fixture(scope="module")
def client(worker: Any) -> Iterator[httpx.Client]:
    series = CollectorRegistry()
    app = create_app(worker.service, ScorerSettings(), ScorerMetrics(series), series)
    with running(app) as url, httpx.Client(base_url=url) as client:
        yield client


def asked(client: httpx.Client, **request: Any) -> dict[str, Any]:
    answer = client.post("/v1/explain", json=ASKED | request)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def test_contributions_add_up_to_the_score_that_rank_gives(client: httpx.Client) -> None:
    body = asked(client)
    ranked = client.post("/v1/rank", json=ASKED).json()
    assert [item["item_id"] for item in body["items"]] == [item["item_id"] for item in ranked["items"]]
    assert (body["adapter_version"], body["scenario"]) == (3, "home")
    for item, score in zip(body["items"], (item["score"] for item in ranked["items"]), strict=True):
        sources = item["sources"]
        whole = sum(sources[name] for name in ("popularity", "global_preference", "query", "more_history"))
        whole += sum(one["contribution"] for one in sources["history"])
        for total in (item["score"], whole, sum(item["kinds"].values()), sum(item["features"].values())):
            assert total == pytest.approx(score, abs=1e-4)
        for one in sources["history"]:
            assert sum(one["kinds"].values()) == pytest.approx(one["contribution"])


def test_what_is_searched_for_is_part_of_the_score_and_of_what_it_is_made_of(client: httpx.Client) -> None:
    query = dict(ITEMS)["item-9"]
    plain = {item["item_id"]: item for item in asked(client)["items"]}
    ranked = {item["item_id"]: item for item in client.post("/v1/rank", json=ASKED | {"query": query}).json()["items"]}
    for item in asked(client, query=f" {query} ")["items"]:
        before = plain[item["item_id"]]
        assert item["score"] == pytest.approx(ranked[item["item_id"]]["score"], abs=1e-4)
        assert item["sources"]["query"] == pytest.approx(item["score"] - before["score"], abs=1e-4)
        assert item["sources"]["query"] > 1
        assert before["sources"]["query"] == 0
        assert sum(item["kinds"].values()) == pytest.approx(item["score"], abs=1e-4)
    assert "it fits what you are looking for" in item["sentence"]


def test_what_must_not_be_offered_is_not_explained(client: httpx.Client) -> None:
    body = asked(client)
    assert body["unknown_candidates"] == ["no-such", "item-7"]
    assert "item-7" not in [item["item_id"] for item in body["items"]]
    assert asked(client, candidates=["item-7"])["items"] == []


def test_what_was_looked_at_and_is_blocked_since_is_named_nowhere(client: httpx.Client, worker: Any) -> None:
    before = asked(client)["items"]
    looked_at = Item(
        event_id="e", ts=1, item_id="item-4", kind="product", title=dict(ITEMS)["item-4"], status="blocked"
    )
    worker.items.take_in(looked_at)
    after = asked(client)["items"]
    worker.items.take_in(looked_at.model_copy(update={"status": "active"}))
    kept = {item["item_id"]: item for item in before if item["item_id"] != "item-4"}
    assert {item["item_id"] for item in after} == set(kept)
    for item in after:
        sources, whole = item["sources"], kept[item["item_id"]]["sources"]
        assert "item-4" not in [one["item_id"] for one in sources["history"]]
        assert looked_at.title not in item["sentence"]
        told_before = next(one["contribution"] for one in whole["history"] if one["item_id"] == "item-4")
        assert sources["more_history"] == pytest.approx(whole["more_history"] + told_before, abs=1e-5)


def test_history_that_is_not_told_one_by_one_is_told_together(client: httpx.Client) -> None:
    whole, none = asked(client)["items"][0]["sources"], asked(client, history=0)["items"][0]["sources"]
    assert none["history"] == []
    assert none["more_history"] == pytest.approx(sum(one["contribution"] for one in whole["history"]))


def test_the_sentence_names_what_the_shopper_looked_at(client: httpx.Client) -> None:
    sentences = {item["item_id"]: item["sentence"] for item in asked(client)["items"]}
    assert f"you looked at “{dict(ITEMS)['item-4']}”" in sentences["item-5"]  # it follows item 4 in every session


@pytest.mark.parametrize("request_", [{"candidates": []}, {"candidates": ["x"] * 51}, {"history": 129}, {"histori": 1}])
def test_what_is_beyond_the_limits_is_refused(client: httpx.Client, request_: dict[str, Any]) -> None:
    answer = client.post("/v1/explain", json=ASKED | request_)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"


def _explanation(
    popularity: float, global_preference: float, *history: HistoryShare, query: float = 0.0
) -> Explanation:
    return Explanation(
        row=0,
        score=0.0,
        kinds={},
        popularity=popularity,
        global_preference=global_preference,
        query=query,
        second_stage=0.0,
        history=list(history),
        features={},
    )


def _looked_at(row: int, ago: int, **shares: float) -> HistoryShare:
    return HistoryShare(row, ago, {"cooccurrence": 0.0, "text": 0.0, "residual": 0.0, "repeats": 0.0} | shares)


@pytest.mark.parametrize(
    ("explanation", "sentence"),
    [
        (_explanation(-1.0, 0.0), "We know too little yet to say why."),
        (_explanation(0.1, 0.0, query=2.0), "Because it fits what you are looking for."),
        (_explanation(1.0, 0.1), "Because many shoppers choose it."),
        (
            _explanation(1.0, 0.5),
            "Because many shoppers choose it, and because it is the kind of thing that shoppers here like.",
        ),
        (_explanation(0.0, 0.0, _looked_at(0, 0, repeats=1.0)), "Because you looked at it just now."),
        (_explanation(0.0, 0.0, _looked_at(0, 2, repeats=1.0)), "Because you looked at it before."),
        (_explanation(0.0, 0.0, _looked_at(1, 2, cooccurrence=1.0)), "Because you looked at “Mug” before."),
        (
            _explanation(0.0, 0.0, _looked_at(1, 0, text=1.0)),
            "Because you looked at “Mug”, and it is much like that.",
        ),
    ],
)
def test_a_sentence_gives_the_strongest_reasons(worker: Any, explanation: Explanation, sentence: str) -> None:
    model: Any = SimpleNamespace(texts=["Vase. Blue", "Mug. Acme. Small."])
    assert because(explanation, model) == sentence
