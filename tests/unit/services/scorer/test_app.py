"""The scorer's HTTP side, over real HTTP."""

import gzip
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from learnt_chain import Publications, catalogue_of
from prometheus_client import CollectorRegistry
from standing_service import standing_service
from tiny_model import tiny_encoder, titled

from peft_adapters.encoder.encoder import Encoder
from peft_adapters.serving.model_builder import build_model
from peft_adapters.serving.served_model import ServedModel
from services.metrics.scorer import ScorerMetrics
from services.scorer.app import create_app
from services.scorer.live_items import LiveItems
from services.scorer.recommender import RankedList, Recommender
from services.scorer.requests import RecommendRequest
from services.scorer.serving_table import ServingTable
from services.scorer.shopper_state import ShopperState
from services.settings.scorer import ScorerSettings
from services.web.server import running
from streams.events import Click, Item

ITEMS = titled(30)
IDS = [item_id for item_id, _ in ITEMS]


def hidden(user_id: str) -> str:
    return f"<{user_id}>"


class StandingWorker:
    """What the application needs of a worker, without its threads."""

    def __init__(self, encoder: Encoder, directory: Path) -> None:
        items = LiveItems()
        for item_id, text in ITEMS:
            items.take_in(Item(event_id="e", ts=1, item_id=item_id, kind="product", title=text))
        self.wrong: dict[str, str] = {}
        self.shoppers = ShopperState(items.rows, max_shoppers=10, pseudonymise=hidden)
        self.recommender, self.table = Recommender(items, self.shoppers), ServingTable("home")
        self.service = standing_service(
            self.table, self.recommender, self.shoppers, pseudonymise=hidden, problems=lambda: self.wrong
        )
        publications = Publications(directory)
        publications.learner.add_items(ITEMS)
        publications.learn(64)
        bundle = publications.read(publications.full(1))
        self.model: ServedModel = build_model(
            [bundle], previous=None, catalogue=catalogue_of(encoder, ITEMS), encoder=encoder
        )

    def flip(self, version: int) -> None:
        manifest = self.model.manifest.model_copy(update={"version": version})
        self.table.serve_model(replace(self.model, manifest=manifest))


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return tiny_encoder()


@pytest.fixture
def worker(encoder: Encoder, tmp_path: Path) -> StandingWorker:
    return StandingWorker(encoder, tmp_path)


@pytest.fixture
def client(worker: StandingWorker) -> Iterator[httpx.Client]:
    series = CollectorRegistry()
    settings = ScorerSettings(max_candidates=50, max_k=25, max_body_bytes=2_048)
    app = create_app(worker.service, settings, ScorerMetrics(series), series)
    with running(app) as url, httpx.Client(base_url=url) as client:
        yield client


@pytest.fixture
def serving(client: httpx.Client, worker: StandingWorker) -> httpx.Client:
    worker.flip(7)
    return client


def test_without_an_adapter_it_is_alive_not_ready_and_says_why(client: httpx.Client) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    for answer in (
        client.get("/readyz"),
        client.post("/v1/rank", json={"candidates": ["item-1"]}),
        client.post("/v1/recommend", json={}),
    ):
        assert answer.status_code == 503
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["retry-after"] == "1"
        assert "no adapter" in answer.json()["detail"]


def test_what_it_goes_on_without_it_says_and_stays_ready(serving: httpx.Client, worker: StandingWorker) -> None:
    def available(name: str) -> str:
        wanted = f'headwater_dependency_available{{dependency="{name}"}} '
        page = serving.get("/metrics").text.splitlines()
        return next(line.removeprefix(wanted) for line in page if line.startswith(wanted))

    assert serving.get("/readyz").json()["problems"] == []
    assert available("kafka") == "1.0"
    worker.wrong = {"kafka": "Kafka does not answer"}
    answer = serving.get("/readyz")
    assert (answer.status_code, answer.json()["problems"]) == (200, ["Kafka does not answer"])
    assert (available("kafka"), available("registry")) == ("0.0", "1.0")
    worker.table.close("home")
    assert serving.get("/readyz").json()["problems"] == ["Kafka does not answer"]


def test_rank_orders_the_candidates_and_names_the_version(serving: httpx.Client) -> None:
    asked = {"user_id": "u", "session_items": ["item-3"], "candidates": ["item-1", "no-such", "item-2"], "ts": 5}
    body = serving.post("/v1/rank", json=asked).json()
    assert set(body) == {"adapter_version", "scenario", "items", "unknown_candidates"}
    assert (body["adapter_version"], body["scenario"]) == (7, "home")
    assert body["unknown_candidates"] == ["no-such"]
    assert sorted(item["item_id"] for item in body["items"]) == ["item-1", "item-2"]
    assert body["items"][0]["score"] >= body["items"][1]["score"]


def test_recommend_gives_k_items_of_the_same_shape(serving: httpx.Client) -> None:
    body = serving.post("/v1/recommend", json={"k": 4, "exclude": ["item-1"], "ts": "2026-01-31T09:00:00Z"}).json()
    assert set(body) == {"adapter_version", "scenario", "items"}
    assert len(body["items"]) == 4
    assert set(body["items"][0]) == {"item_id", "score"}


def test_ids_of_requests_go_no_further_than_the_door(
    serving: httpx.Client, worker: StandingWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[object, ...]] = []
    context = worker.shoppers.context

    def noted(*who: object, **session: object) -> object:
        asked.append(who[:2])
        return context(*who, **session)  # type: ignore[arg-type]

    monkeypatch.setattr(worker.shoppers, "context", noted)
    worker.shoppers.take_in(Click(event_id="c", ts=1, user_id="ann", item_id="item-3"), publish_ts_ms=1)
    serving.post("/v1/rank", json={"user_id": "ann", "session_id": "s", "candidates": ["item-1"], "ts": 5})
    serving.post("/v1/recommend", json={"user_id": "ann", "ts": 5})
    serving.post("/v1/recommend", json={})
    worker.recommender.warm(worker.model)
    assert asked == [("<ann>", "<s>"), ("<ann>", None), (None, None)] * 2


def test_ready_says_which_version_and_how_stale(serving: httpx.Client, worker: StandingWorker) -> None:
    body = serving.get("/readyz").json()
    assert body["adapter_version"] == 7
    assert body["watermark_ms"] == worker.model.manifest.watermark_ms
    assert 0 <= body["staleness_seconds"] < 60


@pytest.mark.parametrize(
    ("route", "body", "status", "told"),
    [
        ("rank", {"candidates": [f"i{n}" for n in range(51)]}, 422, "`candidates` must be at most 50, got 51"),
        ("rank", {"candidates": []}, 422, "candidates"),
        ("rank", {}, 422, "body/candidates: Field required"),
        ("rank", {"candidates": ["item-1"], "sesion_items": []}, 422, "body/sesion_items: Extra inputs"),
        ("rank", {"candidates": [""]}, 422, "at least 1 character"),
        ("rank", {"candidates": ["item-1"], "ts": "yesterday"}, 422, "RFC 3339"),
        ("rank", {"candidates": ["item-1"], "user_id": 3}, 422, "body/user_id"),
        ("recommend", {"k": 26}, 422, "`k` must be at most 25, got 26"),
        ("recommend", {"k": 0}, 422, "body/k"),
        ("recommend", {"session_items": [""]}, 422, "body/session_items/0"),
        ("recommend", {"user_id": "u" * 257}, 422, "at most 256"),
        ("recommend", {"exclude": ["a" * 200] * 11}, 413, "at most 2048 bytes"),
    ],
)
def test_bad_requests_are_problems_that_say_what_to_mend(
    serving: httpx.Client, route: str, body: dict[str, Any], status: int, told: str
) -> None:
    answer = serving.post(f"/v1/{route}", json=body)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert told in answer.json()["detail"]


def test_a_body_without_a_length_is_cut_off_at_the_limit(serving: httpx.Client) -> None:
    def endless() -> Iterator[bytes]:
        yield b'{"candidates": ['
        for _ in range(1_000):
            yield b'"item-1",' * 20

    answer = serving.post("/v1/rank", content=endless(), headers={"content-type": "application/json"})
    assert answer.status_code == 413


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"candidates": "item-1"}', b"null"])
def test_what_is_no_request_is_no_fault_of_ours(serving: httpx.Client, body: bytes) -> None:
    answer = serving.post("/v1/rank", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_body_that_is_not_even_text_is_told_so(serving: httpx.Client) -> None:
    answer = serving.post("/v1/rank", content=b"\xff", headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"


def test_requests_are_counted_by_route_and_status(serving: httpx.Client) -> None:
    serving.post("/v1/rank", json={"candidates": ["item-1"]})
    serving.post("/v1/rank", json={"candidates": []})
    page = serving.get("/metrics").text
    assert 'headwater_requests_total{route="/v1/rank",status="200"} 1.0' in page
    assert 'headwater_requests_total{route="/v1/rank",status="422"} 1.0' in page
    assert "headwater_state_users 0.0" in page


def test_every_request_is_answered_whole_by_one_version_while_versions_flip(
    serving: httpx.Client, worker: StandingWorker
) -> None:
    done = threading.Event()

    def ask(_: int) -> list[int]:
        seen = []
        with httpx.Client(base_url=serving.base_url) as own:
            while not done.is_set():
                answer = own.post("/v1/rank", json={"candidates": IDS, "session_items": ["item-2"], "ts": 1})
                assert answer.status_code == 200
                seen.append(json.loads(answer.content)["adapter_version"])
        return seen

    with ThreadPoolExecutor(3) as pool:
        asking = [pool.submit(ask, number) for number in range(3)]
        for version in range(8, 108):
            worker.flip(version)
            time.sleep(0.01)
        done.set()
        for seen in (future.result(30) for future in asking):
            assert seen == sorted(seen)
            assert len(set(seen)) > 5


def test_the_route_that_ranks_nothing_takes_the_same_bodies_and_gives_as_many_items(
    client: httpx.Client, worker: StandingWorker
) -> None:
    worker.flip(1)
    body = {"user_id": "u", "candidates": IDS[:5]}
    ranked, same = client.post("/v1/rank", json=body).json(), client.post("/v1/noop", json=body).json()
    assert [item["item_id"] for item in same["items"]] == IDS[:5]
    assert {*same, *same["items"][0]} <= {*ranked, *ranked["items"][0]}
    assert client.post("/v1/noop", json={"candidates": []}).status_code == 422
    assert "/v1/noop" not in client.get("/openapi.json").json()["paths"]


def test_longer_answers_are_made_a_few_at_a_time(worker: StandingWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    worker.flip(1)
    under_way, most, lock = 0, 0, threading.Lock()
    recommend = Recommender.best_items

    def counted(self: Recommender, request: RecommendRequest, model: ServedModel) -> RankedList:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        time.sleep(0.05)
        with lock:
            under_way -= 1
        return recommend(self, request, model)

    monkeypatch.setattr(Recommender, "best_items", counted)
    series = CollectorRegistry()
    settings = ScorerSettings(answer_threads=2)
    app = create_app(worker.service, settings, ScorerMetrics(series), series)
    with running(app) as url, ThreadPoolExecutor(8) as pool:
        asking = [pool.submit(httpx.post, f"{url}/v1/recommend", json={"diversity": 0.5}) for _ in range(8)]
        assert [future.result(30).status_code for future in asking] == [200] * 8
    assert most == 2


def test_bodies_may_be_gzip_and_must_be_json(serving: httpx.Client) -> None:
    body, packed = json.dumps({"candidates": IDS[:5]}).encode(), {"content-encoding": "gzip"}
    json_type = {"content-type": "application/json"}
    answer = serving.post("/v1/rank", content=gzip.compress(body), headers=json_type | packed)
    assert (answer.status_code, len(answer.json()["items"])) == (200, 5)
    assert serving.post("/v1/rank", content=gzip.compress(b" " * 2_049), headers=json_type | packed).status_code == 413
    assert serving.post("/v1/rank", content=body, headers={"content-type": "text/plain"}).status_code == 415
    assert serving.post("/v1/rank", content=body).status_code == 415


@pytest.mark.parametrize(
    "path", ["/healthz", "/readyz", "/metrics", "/openapi.json", "/docs", "/v1/items/item-1/similar"]
)
def test_head_answers_as_get_does(client: httpx.Client, worker: StandingWorker, path: str) -> None:
    assert client.head(path).status_code == client.get(path).status_code
    worker.flip(7)
    head = client.head(path)
    assert (head.status_code, head.content) == (200, b"")


def test_pages_of_the_origins_in_the_settings_may_call(worker: StandingWorker) -> None:
    series, settings = CollectorRegistry(), ScorerSettings(cors_origins=("https://shop.example",))
    app = create_app(worker.service, settings, ScorerMetrics(series), series)
    asked = {"Origin": "https://shop.example", "Access-Control-Request-Method": "POST"}
    with running(app) as url, httpx.Client(base_url=url) as client:
        assert client.options("/v1/recommend", headers=asked).status_code == 200
        refused = client.post("/v1/recommend", json={}, headers={"Origin": "https://shop.example"})
        assert refused.status_code == 503
        assert refused.headers["access-control-allow-origin"] == "https://shop.example"
