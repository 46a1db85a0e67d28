"""Scenario `rank-request`: processor time of `/v1/rank` with 100 candidates, and of its parts.

Requests go through the whole application of a scorer (limits, parsing, ranking, answer, metrics), one at
a time, in the process and without a socket. The model has learnt the first events of the data; candidates are random
items, and shoppers are those of the events that follow.

- `rank_us`: the whole request.
- `noop_us`: the same without ranking, `/v1/noop`, which parses the same body.
- `answer_us`: the ranking alone, from the parsed request to the list of items.
- `ratio`: `rank_us` over `noop_us`, which a machine that is not quiet slows down alike.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from benchmarks.measure import Measurement, data_settings
from benchmarks.search_latency import BATCH_EVENTS, served
from peft_adapters.learning.learner import Learner
from peft_adapters.settings import EncoderSettings, LearnerSettings
from services.lab.offline.inputs import new_learner, read_catalogue
from services.lab.offline.stream import read_stream
from services.metrics.scorer import ScorerMetrics
from services.scorer.app import create_app
from services.scorer.live_items import LiveItems
from services.scorer.recommender import Recommender
from services.scorer.requests import RankRequest
from services.scorer.service import ScoringService
from services.scorer.serving_table import ServingTable
from services.scorer.shopper_state import ShopperState
from services.settings.scorer import ScorerSettings
from streams.events import Item, Purchase
from streams.examples import Example

CANDIDATES = 100
ROUNDS = 5
SEED = 0

Timed = Callable[[], float]  # returns the processor seconds per request


def run(data: Path, *, events: int = 12_800, requests: int = 400) -> Measurement:
    """Measure requests over a model that has learnt from `data`.

    Args:
        data: a directory with items.csv.gz and events.csv.gz.
        events: the number of events learnt before the first request.
        requests: the number of requests of each kind in a round.
    """
    torch.set_num_threads(1)
    items = read_catalogue(data / "items.csv.gz")
    known = {item[0] for item in items}
    examples = read_stream(
        data / "events.csv.gz", known, max_events=events + requests, click_window_seconds=600
    ).examples
    learner = _learnt(items, examples[:events])
    live = LiveItems()
    for item_id, text in zip(learner.catalogue.ids, learner.catalogue.texts, strict=True):
        live.take_in(Item(event_id="e", ts=1, item_id=item_id, kind="product", title=text))
    shoppers = ShopperState(live.rows, max_shoppers=200_000, pseudonymise=str)
    for example in examples[:events]:
        shoppers.take_in(_purchase(example), publish_ts_ms=example.ts)
    table = ServingTable("home")
    model = served(learner)
    table.serve_model(model)
    recommender = Recommender(live, shoppers)
    app = _app(table, recommender, shoppers)
    rng = np.random.default_rng(SEED)
    bodies = [_body(learner, example, rng) for example in examples[events:]]
    parsed = [RankRequest.model_validate_json(body) for body in bodies]

    def answer() -> float:
        began = time.process_time()
        for request in parsed:
            recommender.answer(request, model)
        return (time.process_time() - began) / len(parsed)

    kinds: dict[str, Timed] = {
        "rank": lambda: _request_seconds(app, "/v1/rank", bodies),
        "noop": lambda: _request_seconds(app, "/v1/noop", bodies),
        "answer": answer,
    }
    for measure in kinds.values():
        measure()
    rounds = []
    for _ in range(ROUNDS):
        figures = {f"{name}_us": 1e6 * measure() for name, measure in kinds.items()}
        rounds.append(figures | {"ratio": figures["rank_us"] / figures["noop_us"]})
    return Measurement(
        unit="requests per second of processor time",
        value=1e6 / median(round_["rank_us"] for round_ in rounds),
        target=None,
        settings={
            **data_settings(data),
            "items": len(items),
            "events": events,
            "requests": requests,
            "candidates": CANDIDATES,
            "seed": SEED,
        },
        rounds=rounds,
    )


def _learnt(items: Any, examples: list[Example]) -> Learner:
    learner = new_learner(EncoderSettings(), LearnerSettings())
    learner.add_items(items)
    for start in range(0, len(examples), BATCH_EVENTS):
        learner.learn(learner.observe(examples[start : start + BATCH_EVENTS], whole=False), lora=False)
    return learner


def _purchase(example: Example) -> Purchase:
    return Purchase(
        event_id=example.event_id,
        ts=example.ts,
        user_id=example.user_id,
        session_id=example.session_id,
        item_id=example.item_id,
    )


def _app(table: ServingTable, recommender: Recommender, shoppers: ShopperState) -> FastAPI:
    series = CollectorRegistry()
    health: Any = SimpleNamespace(missing=lambda: None, problems=dict)
    scenarios: Any = SimpleNamespace(request=lambda _: True)
    service = ScoringService(
        table=table,
        scenarios=scenarios,
        recommender=recommender,
        shoppers=shoppers,
        health=health,
        pseudonymise=str,
    )
    return create_app(service, ScorerSettings(), ScorerMetrics(series), series)


def _body(learner: Learner, example: Example, rng: np.random.Generator) -> bytes:
    ids = learner.catalogue.ids
    candidates = [ids[row] for row in rng.choice(len(ids), size=CANDIDATES, replace=False)]
    session = {"user_id": example.user_id, "session_id": example.session_id, "ts": example.ts}
    return json.dumps({name: value for name, value in session.items() if value} | {"candidates": candidates}).encode()


def _request_seconds(app: FastAPI, path: str, bodies: list[bytes]) -> float:
    """Return the processor seconds of a request."""

    async def measure() -> float:
        began = time.process_time()
        for body in bodies:
            await _request(app, path, body)
        return (time.process_time() - began) / len(bodies)

    return asyncio.run(measure())


async def _request(app: FastAPI, path: str, body: bytes) -> None:
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    sent: list[Any] = []
    parts = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Any:
        return parts.pop() if parts else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    if sent[0]["status"] != 200:
        raise RuntimeError(f"{path} answered {sent[0]['status']}: {sent[1]['body'][:200]!r}")
