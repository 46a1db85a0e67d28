"""`/v1/search` and `/v1/answer`, over real HTTP."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from learnt_chain import Publications
from prometheus_client import CollectorRegistry
from standing_service import standing_service
from structlog.testing import capture_logs
from tiny_model import shown_stream, tiny_encoder, titled

from peft_adapters.encoder.prefix_cache import PrefixCache
from peft_adapters.encoder.query_encoder import QueryEncoder
from peft_adapters.ranking.arrays import FloatArray
from peft_adapters.ranking.catalogue import Catalogue
from peft_adapters.serving.model_builder import build_model, refresh_model
from peft_adapters.serving.served_model import ServedModel
from services.metrics.scorer import ScorerMetrics
from services.scorer import lexicon as lexicon_module
from services.scorer import refresher as refresher_module
from services.scorer.app import create_app
from services.scorer.live_items import LiveItems
from services.scorer.recommender import Recommender
from services.scorer.search import Search
from services.scorer.search_requests import SearchRequest
from services.scorer.serving_table import ServingTable
from services.scorer.shopper_state import ShopperState
from services.settings.scorer import ScorerSettings
from services.settings.search import SearchSettings
from services.web.server import running
from streams.decode import ItemRemoved
from streams.events import Click, Item, Purchase

ITEMS = titled(60)
HELP = [("help-1", "How do I return an item"), ("help-2", "What does delivery cost"), ("help-3", "Reset a password")]


def item(item_id: str, title: str, **fields: Any) -> Item:
    return Item.model_validate(
        {"event_id": "e", "ts": 1, "item_id": item_id, "kind": "product", "title": title} | fields
    )


class Made:
    """What every test may share: an encoder, and a bundle of a learner that has seen events and lists."""

    def __init__(self, directory: Path) -> None:
        self.encoder = tiny_encoder()
        self.cache = PrefixCache(self.encoder, None)
        publications = Publications(directory)
        publications.learner.add_items(ITEMS)
        publications.learn(64)
        lists = [listed for listed, _ in shown_stream(20, items=60, seed=1)]
        publications.learner.learn_lists(publications.learner.observe_lists(lists))
        self.bundle = publications.read(publications.full(1))


class Shop:
    """A worker's parts without its threads, as the application needs them."""

    scenario = "home"

    def __init__(self, made: "Made") -> None:
        self.items = LiveItems()
        for item_id, text in reversed(ITEMS):
            self.items.take_in(item(item_id, text, price=float(item_id.removeprefix("item-"))))
        for item_id, text in HELP:
            self.items.take_in(item(item_id, text, kind="answer"))
        self.encoder, self.catalogue = made.encoder, Catalogue(made.cache)
        self.catalogue.upsert(self.items.take_changes(1_000))
        self.shoppers = ShopperState(self.items.rows, max_shoppers=10, pseudonymise=str)
        self.queries = QueryEncoder(made.encoder)
        self.recommender = Recommender(self.items, self.shoppers, encode_query=self.queries)
        self.table = ServingTable(self.scenario)
        self.table.serve_model(
            build_model([made.bundle], previous=None, catalogue=self.catalogue, encoder=made.encoder)
        )
        self.search = Search(self.queries, self.recommender, self.table, SearchSettings())
        self.search.lexicon.refresh()

    @property
    def model(self) -> ServedModel:
        assert self.table.model is not None
        return self.table.model

    def refresh(self) -> None:
        self.catalogue.upsert(self.items.take_changes(1_000))
        self.table.serve_model(refresh_model(self.model, catalogue=self.catalogue, encoder=self.encoder))

    def app(self, **settings: Any) -> Any:
        series = CollectorRegistry()
        self.search = search = Search(self.queries, self.recommender, self.table, SearchSettings(**settings))
        search.lexicon.refresh()
        own = ScorerSettings(max_k=50)
        metrics = ScorerMetrics(series)
        return create_app(
            standing_service(self.table, self.recommender, self.shoppers), own, metrics, series, search=search
        )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("made"))


@pytest.fixture
def shop(made: Made) -> Shop:
    return Shop(made)


@pytest.fixture
def client(shop: Shop) -> Iterator[httpx.Client]:
    with running(shop.app(personal_weight=0.0)) as url, httpx.Client(base_url=url) as client:
        yield client


def found(client: httpx.Client, query: str, **request: Any) -> list[str]:
    answer = client.post("/v1/search", json={"query": query, **request}).raise_for_status()
    return [item["item_id"] for item in answer.json()["items"]]


def test_an_item_is_found_by_its_own_words(client: httpx.Client) -> None:
    for item_id, text in ITEMS[::6]:
        assert found(client, text, k=5)[0] == item_id
    body = client.post("/v1/search", json={"query": ITEMS[7][1], "k": 3}).json()
    assert (body["adapter_version"], body["scenario"], len(body["items"])) == (1, "home", 3)
    first = body["items"][0]
    assert first["similarity"] == pytest.approx(1, abs=1e-3)
    assert first["words"] > 0
    assert 0 <= first["click_probability"] <= 1
    assert [each["score"] for each in body["items"]] == sorted((each["score"] for each in body["items"]), reverse=True)


def test_a_query_without_a_known_word_is_answered_by_meaning(client: httpx.Client, shop: Shop) -> None:
    items = client.post("/v1/search", json={"query": "teapots", "k": 5}).json()["items"]
    assert [each["words"] for each in items] == [0.0] * 5
    vector = shop.queries("teapots", shop.model.suffix)
    nearest = np.argsort(-(shop.model.text_vectors @ vector.numpy()))[:5].tolist()
    assert [each["item_id"] for each in items] == [shop.model.item_ids[row] for row in nearest]


def test_the_shopper_decides_between_items_that_fit_alike(shop: Shop) -> None:
    shop.shoppers.take_in(Click(event_id="c", ts=1, user_id="ann", item_id="item-3"), publish_ts_ms=1)
    with running(shop.app(personal_weight=3.0)) as url, httpx.Client(base_url=url) as client:
        plain, anns = found(client, "red", k=20), found(client, "red", k=20, user_id="ann", ts=2)
        assert found(client, "red", k=20, session_items=["item-3"]) == anns
    assert plain != anns


def test_the_ranking_is_told_what_was_searched_for(
    client: httpx.Client, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[FloatArray] = []
    judge = type(shop.model.scorer).score_with_probabilities

    def noted(scorer: Any, contexts: Any, columns: Any, query_vector: FloatArray) -> Any:
        told.append(query_vector)
        return judge(scorer, contexts, columns, query_vector)

    monkeypatch.setattr(type(shop.model.scorer), "score_with_probabilities", noted)
    found(client, "red mug")
    (query_vector,) = told
    assert np.array_equal(query_vector, shop.queries("red mug", shop.model.suffix)[None].numpy())


@pytest.mark.parametrize("kind", ["blocked", "removed"])
def test_what_is_withdrawn_is_in_no_answer_from_the_next_one_on(client: httpx.Client, shop: Shop, kind: str) -> None:
    item_id, text = ITEMS[5]
    for withdrawn, told in ((item_id, text), HELP[0]):
        shop.items.take_in(item(withdrawn, told, status="blocked") if kind == "blocked" else ItemRemoved(withdrawn, 1))
    assert item_id not in found(client, text, k=50)
    answers = client.post("/v1/answer", json={"question": HELP[0][1], "k": 50}).json()["answers"]
    assert [each["item_id"] for each in answers if each["item_id"] == "help-1"] == []
    assert len(answers) == 2


def test_filters_and_exclusions_hold(client: httpx.Client) -> None:
    cheap = found(client, "red mug", k=50, filters={"max_price": 9.0, "kinds": ["product"]})
    assert sorted(cheap) == sorted(f"item-{number}" for number in range(10))
    assert found(client, "red mug", k=50, filters={"max_price": 9.0}, exclude=[cheap[0], "no-such"]) == cheap[1:]
    assert found(client, "red mug", filters={"categories": ["no-such"]}) == []
    assert set(found(client, "red mug", filters={"kinds": ["answer"]})) == {"help-1", "help-2", "help-3"}


def test_an_empty_answer_says_why(client: httpx.Client, shop: Shop) -> None:
    def because(**request: Any) -> str | None:
        body = client.post("/v1/search", json={"query": "red mug", "k": 50, **request}).raise_for_status().json()
        assert ("empty_because" in body) == (not body["items"])
        why: str | None = body.get("empty_because")
        return why

    answers, three = {"kinds": ["answer"]}, [item_id for item_id, _ in HELP]
    assert because() is None
    assert because(filters={"categories": ["no-such"]}) == "filters"
    assert because(filters=answers, exclude=three) == "exclude"
    for item_id in three:
        shop.shoppers.take_in(Purchase(event_id=item_id, ts=1, user_id="ann", item_id=item_id), publish_ts_ms=1)
    assert because(filters=answers, user_id="ann") is None
    assert because(filters=answers, user_id="ann", exclude_bought=True) == "exclude_bought"
    assert because(filters=answers, user_id="ann", exclude=three[:1], exclude_bought=True) == "exclude_bought"
    for item_id in shop.items.rows:
        shop.items.take_in(ItemRemoved(item_id, 2))
    assert because() == because(filters=answers) == "none_available"
    without = replace(shop.model, has_text=np.zeros_like(shop.model.has_text))
    assert shop.search.found_nothing_because(SearchRequest(query="red mug"), without) == "no_items"


@pytest.mark.parametrize(
    ("query", "best"),
    [
        ("glassware", {"by-category"}),
        ("Acme", {"by-brand", "by-brand-too"}),
        ("teapot", {"by-category", "by-brand"}),
        ("taepot", {"by-category", "by-brand"}),
    ],
)
def test_one_word_finds_titles_categories_and_brands_first(
    client: httpx.Client, shop: Shop, query: str, best: set[str]
) -> None:
    """Whatever is near by meaning alone comes after the items that have the word."""
    shop.items.take_in(item("by-category", "zebra teapot", category="glassware"))
    shop.items.take_in(item("by-brand", "teapot", brand="Acme"))
    shop.items.take_in(item("by-brand-too", "red bird mug", brand="Acme"))
    shop.refresh()
    shop.search.lexicon.refresh()
    assert set(found(client, query, k=10)[: len(best)]) == best


def test_a_new_items_words_are_found_once_its_text_is_served_and_indexed(client: httpx.Client, shop: Shop) -> None:
    shop.items.take_in(item("item-new", "zebra teapot"))
    assert "item-new" not in found(client, "teapot")
    shop.refresh()
    assert found(client, "zebra teapot")[0] == "item-new", "by meaning, before its words are indexed"
    shop.search.lexicon.refresh()
    items = client.post("/v1/search", json={"query": "teapot"}).json()["items"]
    assert [each["item_id"] for each in items if each["words"] > 0] == ["item-new"]
    shop.items.take_in(item("item-new", "green rug"))
    shop.refresh()
    shop.search.lexicon.refresh()
    items = client.post("/v1/search", json={"query": "teapot"}).json()["items"]
    assert [each["item_id"] for each in items if each["words"] > 0] == []


def test_the_index_is_made_beside_and_a_fault_in_it_keeps_the_one_before(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: object) -> None:
        raise ZeroDivisionError

    before = shop.search.lexicon.words
    words, graph = shop.search.refreshers()
    thread = threading.Thread(target=words.run, daemon=True)
    monkeypatch.setattr(refresher_module, "CHECK_SECONDS", 0.01)
    with monkeypatch.context() as patch, capture_logs() as logs:
        patch.setattr(lexicon_module, "LexicalIndex", broken)
        thread.start()
        shop.items.take_in(item("item-new", "zebra teapot"))
        shop.refresh()
        _until(lambda: len(logs) > 0)
        assert shop.search.lexicon.words is before
        assert (logs[0]["event"], logs[0]["index"]) == ("index_not_made", "words")
    shop.refresh()
    _until(lambda: shop.search.lexicon.words is not before)
    words.stop()
    graph.stop()
    thread.join(5)
    assert not thread.is_alive()


def _until(holds: Any) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.01)


def test_many_items_are_searched_through_a_graph_and_new_ones_beside_it(shop: Shop) -> None:
    plain, all_of = shop.app(personal_weight=0.0), shop.search
    with running(plain) as url, httpx.Client(base_url=url) as client:
        exact = {text: found(client, text, k=5) for _, text in ITEMS[::10]}
    app = shop.app(personal_weight=0.0, graph_above_items=20, candidates=20)
    assert shop.search is not all_of
    rows = np.arange(len(shop.model))
    assert shop.search.neighbours.candidates("red mug", shop.queries, rows, 8, shop.model) is rows, (
        "there is no graph yet"
    )
    shop.search.neighbours.refresh()
    assert len(shop.search.neighbours.candidates("red mug", shop.queries, rows, 8, shop.model)) == 8
    assert len(shop.search.neighbours.candidates("red mug", shop.queries, rows[:20], 8, shop.model)) == 20, (
        "few are all looked at"
    )
    with running(app) as url, httpx.Client(base_url=url) as client:
        for text, items in exact.items():
            assert found(client, text, k=5)[0] == items[0]
        shop.items.take_in(item("item-new", "zebra teapot"))
        shop.refresh()
        assert found(client, "zebra teapot")[0] == "item-new", "the graph does not know it"
        shop.items.take_in(ItemRemoved(ITEMS[0][0], 1))
        assert ITEMS[0][0] not in found(client, ITEMS[0][1], k=50)


def test_a_graph_is_asked_with_queries_under_its_own_adapter(shop: Shop, made: Made) -> None:
    shop.app(graph_above_items=20)
    shop.search.neighbours.refresh()
    before = shop.search.neighbours._graph
    made.encoder.load_lora({name: value + 1 for name, value in made.encoder.lora_state().items()})
    shop.table.serve_model(replace(shop.model, suffix=made.encoder.merged()))
    asked: list[object] = []

    def noted(query: str, suffix: object) -> object:
        asked.append(suffix)
        return shop.queries(query, suffix)  # type: ignore[arg-type]

    rows = np.arange(len(shop.model))
    shop.search.neighbours.candidates("red mug", noted, rows, 8, shop.model)  # type: ignore[arg-type]
    assert before is not None
    assert asked == [before.adapter] != [shop.model.suffix]
    shop.search.neighbours.refresh()
    assert shop.search.neighbours._graph is not before


def test_a_scenario_may_be_named(client: httpx.Client) -> None:
    for route, body in (("search", {"query": "a"}), ("answer", {"question": "a"})):
        assert client.post(f"/v1/{route}", json={**body, "scenario": "home"}).json()["scenario"] == "home"
        other = client.post(f"/v1/{route}", json={**body, "scenario": "ads"})
        assert "no adapter of scenario 'ads' has been published" in other.json()["detail"]


def test_a_question_is_answered_by_answers_alone_and_says_how_sure_that_is(client: httpx.Client) -> None:
    body = client.post("/v1/answer", json={"question": "How do I return an item"}).json()
    assert (body["known"], body["adapter_version"]) == (True, 1)
    assert body["confidence"] > 0.99
    assert body["answers"][0] == {
        "item_id": "help-1",
        "text": "How do I return an item",
        "similarity": pytest.approx(1, abs=1e-3),
    }
    assert {answer["item_id"] for answer in body["answers"]} == {"help-1", "help-2", "help-3"}


def test_below_the_confidence_that_is_asked_for_it_does_not_know(shop: Shop) -> None:
    with running(shop.app(min_confidence=1.0)) as url, httpx.Client(base_url=url) as client:
        body = client.post("/v1/answer", json={"question": "red mug"}).json()
        assert body["known"] is False
        assert len(body["answers"]) == 3
        for item_id, _ in HELP:
            shop.items.take_in(ItemRemoved(item_id, 1))
        nothing = client.post("/v1/answer", json={"question": "red mug"}).json()
        assert (nothing["known"], nothing["confidence"], nothing["answers"]) == (False, 0.0, [])


@pytest.mark.parametrize(
    ("route", "body", "told"),
    [
        ("search", {}, "body/query: Field required"),
        ("search", {"query": ""}, "at least 1 character"),
        ("search", {"query": "  "}, "pattern"),
        ("search", {"query": "a" * 513}, "at most 512"),
        ("search", {"query": "a", "k": 51}, "`k` must be at most 50, got 51"),
        ("search", {"query": "a", "qery": "b"}, "body/qery: Extra inputs"),
        ("answer", {"question": "\n"}, "pattern"),
        ("answer", {"question": "a", "k": 0}, "body/k"),
        ("answer", {"question": "a", "k": 51}, "`k` must be at most 50, got 51"),
    ],
)
def test_bad_requests_are_problems_that_say_what_to_mend(
    client: httpx.Client, route: str, body: dict[str, Any], told: str
) -> None:
    answer = client.post(f"/v1/{route}", json=body)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert told in answer.json()["detail"]


def test_without_an_adapter_it_says_so(shop: Shop) -> None:
    shop.table.close("home")
    with running(shop.app()) as url, httpx.Client(base_url=url) as client:
        for route, body in (("search", {"query": "a"}), ("answer", {"question": "a"})):
            answer = client.post(f"/v1/{route}", json=body)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


def test_every_query_is_answered_whole_by_one_version_while_versions_flip(client: httpx.Client, shop: Shop) -> None:
    model, done = shop.model, threading.Event()

    def ask(number: int) -> list[int]:
        seen = []
        with httpx.Client(base_url=client.base_url) as own:
            while not done.is_set():
                answer = own.post("/v1/search", json={"query": f"red mug {number}", "k": 3})
                assert answer.status_code == 200
                seen.append(answer.json()["adapter_version"])
        return seen

    with ThreadPoolExecutor(3) as pool:
        asking = [pool.submit(ask, number) for number in range(3)]
        for version in range(2, 42):
            manifest = model.manifest.model_copy(update={"version": version})
            shop.table.serve_model(replace(model, manifest=manifest, suffix=shop.encoder.merged()))
            time.sleep(0.01)
        done.set()
        for seen in (future.result(30) for future in asking):
            assert seen == sorted(seen)
            assert len(set(seen)) > 3


def test_searches_are_counted_by_route(client: httpx.Client) -> None:
    found(client, "red")
    assert 'headwater_requests_total{route="/v1/search",status="200"} 1.0' in client.get("/metrics").text
