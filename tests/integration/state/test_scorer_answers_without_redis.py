"""Rankings over HTTP from states in Redis, and after Redis is gone."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from learnt_chain import Publications, catalogue_of
from prometheus_client import CollectorRegistry
from redis_server import RedisServer
from standing_service import standing_service
from tiny_model import tiny_encoder, titled

from peft_adapters.serving.model_builder import build_model
from services.metrics.scorer import ScorerMetrics
from services.scorer.app import create_app
from services.scorer.command import shopper_states
from services.scorer.live_items import LiveItems
from services.scorer.recommender import Recommender
from services.scorer.serving_table import ServingTable
from services.scorer.shopper_state import ShopperState
from services.scorer.shopper_state_redis import RedisState
from services.scorer.shopper_state_request import RequestState
from services.settings import Settings
from services.settings.scorer import ScorerSettings
from services.settings.state import StateSettings
from services.state.entries import pack_entry
from services.state.store import Changes
from services.web.server import running
from streams.events import Click, Item
from streams.privacy import Pseudonymiser

ITEMS = titled(30)
HIDDEN = Pseudonymiser(b"of this test alone")


class Worker:
    """What the application needs of a worker, without its threads."""

    def __init__(self, state: StateSettings, metrics: ScorerMetrics, directory: Path) -> None:
        items = LiveItems()
        for item_id, text in ITEMS:
            items.take_in(Item(event_id="e", ts=1, item_id=item_id, kind="product", title=text))
        shoppers = shopper_states(Settings(state=state), items, metrics, HIDDEN)
        assert isinstance(shoppers, RedisState)
        self.shoppers = shoppers
        self.recommender, self.table = Recommender(items, shoppers), ServingTable("home")
        self.service = standing_service(
            self.table, self.recommender, shoppers, pseudonymise=HIDDEN, problems=self.problems
        )
        publications = Publications(directory)
        publications.learner.add_items(ITEMS)
        publications.learn(64)
        encoder = tiny_encoder()
        model = build_model(
            [publications.read(publications.full(1))],
            previous=None,
            catalogue=catalogue_of(encoder, ITEMS),
            encoder=encoder,
        )
        self.table.serve_model(model)

    def problems(self) -> dict[str, str]:
        problem = self.shoppers.problem()
        return {} if problem is None else {"state": problem}


@pytest.fixture
def series() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def worker(mortal_valkey: RedisServer, series: CollectorRegistry, tmp_path: Path) -> Worker:
    return Worker(mortal_valkey.settings("shop", timeout_seconds=5.0), ScorerMetrics(series), tmp_path / "made")


@pytest.fixture
def client(worker: Worker, tmp_path: Path) -> Iterator[httpx.Client]:
    series = CollectorRegistry()  # of the application alone
    metrics = ScorerMetrics(series)
    app = create_app(worker.service, ScorerSettings(), metrics, series)
    with running(app) as url, httpx.Client(base_url=url) as client:
        yield client


def test_a_shopper_is_known_from_redis_and_still_is_when_it_is_gone(
    client: httpx.Client, worker: Worker, mortal_valkey: RedisServer, series: CollectorRegistry
) -> None:
    changes = Changes()
    for number, item_id in enumerate(("item-3", "item-7")):
        event = Click(event_id=f"c{number}", ts=number * 10**7, user_id="u", item_id=item_id)
        changes.add(HIDDEN("u"), pack_entry(event, publish_ts_ms=1, pseudonymise=HIDDEN), is_purchase=False)
    worker.shoppers._store.write(changes, before={}, after={("clicks", 0): 2}, heartbeat="b")
    worker.shoppers.check()

    asked = {"candidates": ["item-1", "item-2", "item-3", "item-4"], "ts": 10**7 + 1}
    told = {**asked, "session_items": ["item-7"], "earlier_sessions": [["item-3"]]}
    of_a_stranger = client.post("/v1/rank", json=asked).json()["items"]
    expected = client.post("/v1/rank", json=told).json()["items"]
    assert expected != of_a_stranger
    assert client.post("/v1/rank", json={**asked, "user_id": "u"}).json()["items"] == expected
    assert client.get("/readyz").json()["problems"] == []

    mortal_valkey.kill()
    answer = client.post("/v1/rank", json={**asked, "user_id": "u"})
    assert (answer.status_code, answer.json()["items"]) == (200, expected)
    assert client.post("/v1/rank", json={**asked, "user_id": "v"}).json()["items"] == of_a_stranger
    ready = client.get("/readyz")
    assert ready.status_code == 200
    assert f"127.0.0.1:{mortal_valkey.port}" in ready.json()["problems"][0]
    assert series.get_sample_value("headwater_state_available") == 0


def test_where_states_come_from_is_a_setting(series: CollectorRegistry) -> None:
    metrics, items = ScorerMetrics(series), LiveItems()
    sources = [
        shopper_states(Settings(state=StateSettings(source=source)), items, metrics, HIDDEN)
        for source in ("worker", "request")
    ]
    assert [type(source) for source in sources] == [ShopperState, RequestState]
    assert [source.reads_events for source in sources] == [True, False]
