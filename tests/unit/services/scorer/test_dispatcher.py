"""Dispatch of requests: arms by shopper, scenarios by request, and a shadow that is compared and never answers."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from learnt_chain import Publications, catalogue_of
from prometheus_client import CollectorRegistry
from standing_service import standing_service
from tiny_model import tiny_encoder, titled

from peft_adapters.registry.rollout import Canary, Rollout, Shadow
from peft_adapters.serving.model_builder import build_model
from peft_adapters.serving.served_model import ServedModel
from services.metrics.scorer import ScorerMetrics
from services.scorer.app import create_app
from services.scorer.deployment import Deployment, in_canary
from services.scorer.live_items import LiveItems
from services.scorer.recommender import RankedList, Recommender
from services.scorer.serving_table import ServingTable
from services.scorer.shadowing import mean_difference, overlap
from services.scorer.shopper_state import ShopperState
from services.settings.scorer import ScorerSettings
from services.web.server import running
from streams.events import Item

ITEMS = titled(12)
IDS = [item_id for item_id, _ in ITEMS]
CANARY = Rollout(scenario="home", revision=1, stable_version=1, canary=Canary(version=2, percent=50))


class Place:
    """An application over standing models."""

    def __init__(self, directory: Path) -> None:
        items = LiveItems()
        for item_id, text in ITEMS:
            items.take_in(Item(event_id="e", ts=1, item_id=item_id, kind="product", title=text))
        self.shoppers = ShopperState(items.rows, max_shoppers=10, pseudonymise=str)
        self.recommender, self.table = Recommender(items, self.shoppers), ServingTable("home")
        self.published: Callable[[str], bool] = lambda _: True
        self.series = CollectorRegistry()
        publications, encoder = Publications(directory), tiny_encoder()
        publications.learner.add_items(ITEMS)
        self.models = []
        for version in (1, 2):
            publications.learn(64)
            bundle = publications.read(publications.full(version))
            self.models.append(
                build_model([bundle], previous=None, catalogue=catalogue_of(encoder, ITEMS), encoder=encoder)
            )

    def show(self, rollout: Rollout, **arms: ServedModel) -> None:
        self.table.serve(Deployment(rollout, **arms))

    def value(self, name: str, **labels: str) -> float:
        return self.series.get_sample_value(name, {"scenario": "home", **labels}) or 0.0


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("place"))


@pytest.fixture
def place(models: Place) -> Place:
    models.table = ServingTable("home")
    models.published = lambda _: True
    models.series = CollectorRegistry()
    return models


@pytest.fixture
def client(place: Place) -> Iterator[httpx.Client]:
    service = standing_service(
        place.table, place.recommender, place.shoppers, is_published=lambda name: place.published(name)
    )
    app = create_app(service, ScorerSettings(), ScorerMetrics(place.series), place.series)
    with running(app) as url, httpx.Client(base_url=url) as client:
        yield client


def asked(client: httpx.Client, route: str = "rank", **fields: Any) -> Any:
    body = {"candidates": IDS} if route in ("rank", "explain") else {}
    return client.post(f"/v1/{route}", json={**body, **fields}).raise_for_status().json()


def test_every_call_answers_a_shopper_from_the_same_arm(place: Place, client: httpx.Client) -> None:
    place.show(CANARY, stable=place.models[0], canary=place.models[1])
    shoppers = [f"u{number}" for number in range(12)]
    drawn = {shopper: 2 if in_canary(shopper, CANARY) else 1 for shopper in shoppers}
    assert set(drawn.values()) == {1, 2}
    for shopper, version in drawn.items():
        for route in ("rank", "recommend", "explain"):
            assert asked(client, route, user_id=shopper)["adapter_version"] == version
        both = [{"call": "rank", "candidates": IDS, "user_id": shopper}, {"call": "recommend", "session_id": shopper}]
        answers = client.post("/v1/batch", json={"requests": both}).json()["answers"]
        assert [answer["adapter_version"] for answer in answers] == [version, version]
    assert asked(client)["adapter_version"] == 1  # nobody knows who it is
    assert client.get("/v1/items/item-1/similar").json()["adapter_version"] == 1
    assert client.get("/readyz").json()["arms"] == {"stable": 1, "canary": 2}
    in_it = sum(version == 2 for version in drawn.values())
    # Of each shopper rank, recommend and two of a batch; an explanation is not timed. And the two of nobody.
    assert place.value("headwater_arm_answer_seconds_count", arm="canary") == 4 * in_it
    assert place.value("headwater_arm_answer_seconds_count", arm="stable") == 4 * (len(drawn) - in_it) + 2


def test_a_scenario_has_its_own_model_and_one_that_is_not_there_says_so(place: Place, client: httpx.Client) -> None:
    place.show(Rollout(scenario="home"), stable=place.models[0])
    other = place.models[1]
    other = replace(other, manifest=other.manifest.model_copy(update={"scenario": "search", "version": 9}))
    place.show(Rollout(scenario="search"), stable=other)
    answer = asked(client, "recommend", scenario="search")
    assert (answer["adapter_version"], answer["scenario"]) == (9, "search")
    assert client.get("/v1/items/item-1/similar", params={"scenario": "search"}).json()["scenario"] == "search"
    assert asked(client, "explain", scenario="search")["scenario"] == "search"
    loading = client.post("/v1/recommend", json={"scenario": "ads"})
    assert loading.status_code == 503
    assert loading.headers["retry-after"] == "1"
    assert "being loaded" in loading.json()["detail"]
    place.published = lambda name: name == "home"
    unknown = client.post("/v1/rank", json={"scenario": "no-such", "candidates": ["a"]})
    assert unknown.status_code == 404
    assert "no adapter of scenario 'no-such'" in unknown.json()["detail"]


def test_a_shadow_is_compared_and_never_answers(place: Place, client: httpx.Client) -> None:
    shadowed = Rollout(scenario="home", revision=1, stable_version=1, shadow=Shadow(version=2))
    place.show(shadowed, stable=place.models[0], shadow=place.models[1])
    for number in range(5):
        assert asked(client, user_id=f"u{number}")["adapter_version"] == 1
        assert asked(client, "recommend", user_id=f"u{number}")["adapter_version"] == 1
    deadline = time.monotonic() + 20
    while place.value("headwater_shadow_answers_total", outcome="compared") < 10:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert 0 < place.value("headwater_shadow_overlap_ratio") <= 1
    assert place.value("headwater_shadow_score_difference") > 0
    assert place.value("headwater_arm_answer_seconds_count", arm="shadow") == 10


def test_the_shadow_s_fault_is_its_own(place: Place, client: httpx.Client) -> None:
    broken = replace(place.models[1], scorer=None)  # type: ignore[arg-type]
    place.show(Rollout(scenario="home"), stable=place.models[0], shadow=broken)
    for failed in (1, 2):  # it goes on after the first; the count comes after the line in the log
        assert asked(client)["adapter_version"] == 1
        deadline = time.monotonic() + 20
        while place.value("headwater_shadow_answers_total", outcome="failed") < failed:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_how_two_answers_differ() -> None:
    answer = RankedList(1, ["a", "b", "c"], [3.0, 2.0, 1.0], [])
    assert overlap(answer, answer) == 1
    assert mean_difference(answer, RankedList(2, ["a", "b", "c"], [13.0, 12.0, 11.0], [])) == 0
    assert mean_difference(answer, RankedList(2, ["b", "a"], [2.0, 1.0], [])) == 1
    assert overlap(answer, RankedList(2, ["b", "x"], [2.0, 1.0], [])) == pytest.approx(1 / 3)
    nothing = RankedList(2, [], [], [])
    assert (overlap(nothing, nothing), mean_difference(answer, nothing)) == (1, 0)
