"""`headwater scorer` as a process of its own, with a real broker and a registry on disk."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from forked import ForkedCommand
from learnt_chain import Publications
from tiny_model import tiny_bert, titled

from peft_adapters.registry.bundle import Manifest, read_manifest
from peft_adapters.registry.manifest import manifest_bytes
from peft_adapters.registry.registry import AdapterRegistry
from services.operate.adapters.rollout_wait import wait_for_workers
from services.registry.app import create_app
from services.registry.changes import Pin
from services.registry.client import HttpClient
from services.web.server import running
from streams.connection import KafkaConnection
from streams.embedded_broker import EmbeddedBroker
from streams.events import Click, Item
from streams.producer import EventProducer
from streams.topics import Topics

ITEMS = titled(40)
IDS = [item_id for item_id, _ in ITEMS]
START_SECONDS = 60.0


class Scorer:
    """The process, and a client to it."""

    def __init__(self, process: ForkedCommand, url: str, log: Path) -> None:
        self.process, self.url, self._log = process, url, log
        self.client = httpx.Client(base_url=url)

    def log(self) -> str:
        return self._log.read_text()

    def version(self) -> int | None:
        answer = self.client.get("/readyz")
        return int(answer.json()["adapter_version"]) if answer.is_success else None

    def recommend(self, **request: Any) -> list[str]:
        answer = self.client.post("/v1/recommend", json=request).raise_for_status()
        return [item["item_id"] for item in answer.json()["items"]]

    def search(self, query: str, **request: Any) -> list[dict[str, Any]]:
        answer = self.client.post("/v1/search", json={"query": query, **request}).raise_for_status()
        items: list[dict[str, Any]] = answer.json()["items"]
        return items

    def found_by_words(self, query: str, **request: Any) -> list[str]:
        items = sorted(self.search(query, **request), key=lambda item: -item["words"])
        return [item["item_id"] for item in items if item["words"] > 0]

    def swaps(self, outcome: str) -> float:
        wanted = f'headwater_swaps_total{{outcome="{outcome}"}} '
        page = self.client.get("/metrics").text.splitlines()
        return next(float(line.removeprefix(wanted)) for line in page if line.startswith(wanted))


class Shop:
    """A broker with a catalogue, a registry, and an updater's publications."""

    def __init__(self, connection: KafkaConnection, topics: Topics, directory: Path) -> None:
        self.connection, self.topics, self.directory = connection, topics, directory
        self.producer = EventProducer(connection, topics)
        self.registry = AdapterRegistry(str(directory / "registry"))
        self.publications = Publications(directory / "made")
        self.publications.learner.add_items(ITEMS)
        for item_id, text in ITEMS:
            self.item(item_id, text)

    def item(self, item_id: str, text: str, status: str = "active") -> None:
        fields = {"event_id": f"{item_id}-{status}", "ts": 1, "kind": "product", "title": text, "status": status}
        self.producer.send(Item.model_validate({**fields, "item_id": item_id}))

    def publish(self, version: int, *, full: bool = False, announce: bool = True) -> Manifest:
        self.publications.learn(32)
        directory = self.publications.full(version) if full else self.publications.delta(version)
        manifest = read_manifest(directory)
        self.registry.publish(directory, manifest)
        if announce:
            self.announce(manifest)
        return manifest

    def announce(self, manifest: Manifest) -> None:
        self.producer.send_raw(self.topics.adapters, b"home", manifest_bytes(manifest))
        self.producer.flush()

    @contextmanager
    def scorer(self, *, registry_url: str | None = None, **environment: str) -> Iterator[Scorer]:
        names = {f"HEADWATER_TOPICS__{field.upper()}": str(name) for field, name in self.topics.model_dump().items()}
        settings = {
            "HEADWATER_ENCODER__MODEL": str(tiny_bert()),
            "HEADWATER_ENCODER__LORA_RANK": "4",
            "HEADWATER_BOOTSTRAP_SERVERS": self.connection.bootstrap_servers,
            "HEADWATER_SCORER__ITEMS_REFRESH_SECONDS": "0.1",
        }
        log = self.directory / "scorer.log"
        url = registry_url or self.registry.url
        options = ["--registry-url", url, "--port", "0", "--cache-dir", str(self.directory / "cache")]
        with log.open("w") as errors:
            process = ForkedCommand(
                ["scorer", *options],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=os.environ | names | settings | environment,
            )
        with process:
            try:
                assert process.stdout is not None
                line = process.stdout.readline().split()
                assert line[:1] == ["listening"], log.read_text()
                scorer = Scorer(process, f"http://{line[1]}:{line[2]}", log)
                with scorer.client:
                    yield scorer
            finally:
                process.kill()


@pytest.fixture
def shop(embedded_broker: EmbeddedBroker, make_topics: Callable[..., Topics], tmp_path: Path) -> Iterator[Shop]:
    connection = KafkaConnection(bootstrap_servers=embedded_broker.bootstrap_servers)
    shop = Shop(connection, make_topics(connection), tmp_path)
    yield shop
    shop.producer.close()


def until(holds: Callable[[], bool], *, timeout_seconds: float = START_SECONDS) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.02)


def test_swapping_under_load_fails_no_request_and_mixes_no_versions(shop: Shop) -> None:
    shop.publish(1, full=True)
    with shop.scorer() as scorer:
        until(lambda: scorer.version() == 1)
        done = threading.Event()

        def ask(number: int) -> list[tuple[int, int]]:
            answers = []
            with httpx.Client(base_url=scorer.url) as client:
                while not done.is_set():
                    route, body = ("rank", {"candidates": IDS}) if number % 2 else ("recommend", {"k": 20})
                    answer = client.post(f"/v1/{route}", json={**body, "session_items": ["item-2", "item-5"]})
                    answers.append((answer.status_code, answer.json()["adapter_version"]))
            return answers

        with ThreadPoolExecutor(4) as pool:
            asking = [pool.submit(ask, number) for number in range(4)]
            for version in range(2, 8):
                shop.publish(version, full=version == 5)
                until(lambda version=version: scorer.version() == version)  # type: ignore[misc]
            done.set()
            answers = [future.result(30) for future in asking]
        for seen in answers:
            assert {status for status, _ in seen} == {200}
            assert [version for _, version in seen] == sorted(version for _, version in seen)
            assert {version for _, version in seen} >= set(range(2, 7))
        assert scorer.swaps("swapped") == 7
        assert scorer.swaps("refused") == 0
        assert "Traceback" not in scorer.log()


def test_it_answers_as_the_model_says_from_what_shoppers_do(shop: Shop) -> None:
    shop.publish(1, full=True)
    with shop.scorer() as scorer:
        until(lambda: scorer.version() == 1)
        before = scorer.recommend(user_id="u", k=40, ts=10)
        assert sorted(before) == sorted(IDS)
        shop.producer.send(Click(event_id="c1", ts=9, user_id="u", item_id="item-7"))
        until(lambda: scorer.recommend(user_id="u", k=40, ts=10) != before)
        assert scorer.recommend(user_id="u", k=40, ts=10) == scorer.recommend(session_items=["item-7"], k=40)
        assert scorer.recommend(user_id="someone else", k=40, ts=10) == before
        shop.item(before[0], "a vase", status="blocked")
        until(lambda: before[0] not in scorer.recommend(k=40))
        shop.item("item-new", "a small oak bird")
        until(lambda: "item-new" in scorer.recommend(k=40))
        until(lambda: scorer.found_by_words("small oak bird", k=40)[:1] == ["item-new"])
        assert before[0] not in [item["item_id"] for item in scorer.search("small oak bird", k=40)]
        rank = scorer.client.post("/v1/rank", json={"candidates": ["item-new", before[0], "no-such"]}).json()
        assert [item["item_id"] for item in rank["items"]] == ["item-new"]
        assert rank["unknown_candidates"] == [before[0], "no-such"]
        assert "item-7" not in scorer.log()  # what shoppers do is in no log


def test_a_tampered_bundle_is_refused_and_the_old_adapter_goes_on(shop: Shop) -> None:
    shop.publish(1, full=True)
    with shop.scorer() as scorer:
        until(lambda: scorer.version() == 1)
        bad = shop.publish(2, announce=False)
        file = shop.directory / "registry" / "home" / "00000002" / "residuals.safetensors"
        file.write_bytes(file.read_bytes()[:-1] + b"\x7f")
        shop.announce(bad)
        until(lambda: scorer.swaps("refused") == 1)
        assert scorer.version() == 1
        assert len(scorer.recommend(k=20)) == 20
        assert "sha256" in scorer.log()
        shop.publish(3, full=True)
        until(lambda: scorer.version() == 3)


def test_it_reports_what_it_serves_to_the_registry_process(shop: Shop) -> None:
    shop.publish(1, full=True)
    shop.publish(2)
    with running(create_app(shop.registry)) as url, shop.scorer(registry_url=f"{url}/v1/files") as scorer:
        until(lambda: scorer.version() == 2)
        access = HttpClient(url, None)
        rollout = access.change("home", Pin(version=1))
        said: list[str] = []
        assert wait_for_workers(access, rollout, urls=[], wait_seconds=30, show=said.append), said
        assert said[0] == "1 of 1 visible workers follow revision 1"
        assert said[1].endswith("follows it, serves stable version 1")
        assert scorer.version() == 1
        fleet = access.fleet("home")
        assert fleet is not None
        assert [worker.worker for worker in fleet.workers] == [scorer.client.get("/readyz").json()["worker"]]


def test_started_again_it_has_items_adapter_and_shoppers_at_once(shop: Shop) -> None:
    shop.producer.send(Click(event_id="c1", ts=9, user_id="u", item_id="item-7"))
    shop.publish(1, full=True)
    shop.publish(2)
    answers = []
    for _ in range(2):
        with shop.scorer() as scorer:
            until(lambda: scorer.version() == 2)
            answers.append(scorer.recommend(user_id="u", k=40, ts=10))
            answers.append(scorer.recommend(session_items=["item-7"], k=40))
            scorer.process.send_signal(signal.SIGTERM)
            assert scorer.process.wait(20) == 0
            assert "Traceback" not in scorer.log()
    assert answers[0] == answers[1] == answers[2] == answers[3]


def test_with_kafka_and_registry_gone_it_goes_on_serving(make_topics: Callable[..., Topics], tmp_path: Path) -> None:
    with EmbeddedBroker(tmp_path / "broker") as broker:
        connection = KafkaConnection(bootstrap_servers=broker.bootstrap_servers)
        shop = Shop(connection, make_topics(connection), tmp_path)
        shop.publish(1, full=True)
        with shop.scorer() as scorer:
            until(lambda: scorer.version() == 1)
            before = scorer.recommend(k=40)
            shop.producer.close()
            broker.stop()
            (tmp_path / "registry").rename(tmp_path / "elsewhere")
            until(lambda: "kafka_lost" in scorer.log())
            assert scorer.recommend(k=40) == before
            assert scorer.client.get("/readyz").json()["staleness_seconds"] > 0
            scorer.process.send_signal(signal.SIGTERM)
            assert scorer.process.wait(20) == 0


def test_without_a_broker_it_is_alive_not_ready_and_ends_when_told(tmp_path: Path, shop: Shop) -> None:
    with shop.scorer(HEADWATER_BOOTSTRAP_SERVERS="127.0.0.1:1") as scorer:
        assert scorer.client.get("/healthz").status_code == 200
        answer = scorer.client.get("/readyz")
        assert answer.status_code == 503
        assert "is Kafka reachable" in answer.json()["detail"]
        until(lambda: "kafka_unreachable" in scorer.log())
        scorer.process.send_signal(signal.SIGINT)
        assert scorer.process.wait(20) == 0
        assert "Traceback" not in scorer.log()
