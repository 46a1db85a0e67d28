"""Scenario `search-latency`: the time of a search with a new query, and of the same query again.

One search at a time, in the process, over a model that has learnt the first events of the data. A query is made of
words of a random title and a number, so that no query was seen before. Wall time includes other load on the machine;
processor time is measured beside it.
"""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from benchmarks.measure import Measurement, data_settings
from peft_adapters.encoder.query_encoder import QueryEncoder
from peft_adapters.learning.learner import Learner
from peft_adapters.ranking.words import words
from peft_adapters.registry.bundle import read_bundle, write_bundle
from peft_adapters.serving.model_builder import build_model
from peft_adapters.serving.served_model import ServedModel
from peft_adapters.settings import EncoderSettings, LearnerSettings
from services.lab.offline.inputs import new_learner, read_catalogue
from services.lab.offline.stream import read_stream
from services.scorer.live_items import LiveItems
from services.scorer.recommender import Recommender
from services.scorer.search import Search
from services.scorer.search_requests import SearchRequest
from services.scorer.serving_table import ServingTable
from services.scorer.shopper_state import ShopperState
from services.settings.search import SearchSettings
from streams.events import Item

BATCH_EVENTS = 128


def run(data: Path, *, events: int = 2_000, queries: int = 1_000) -> Measurement:
    """Search for generated queries with exact and with int8 query encoding.

    Args:
        data: a directory with items.csv.gz and events.csv.gz.
        events: the number of events learnt before the first search.
        queries: the number of queries.
    """
    torch.set_num_threads(1)
    learner = _learnt(data, events)
    model = served(learner)
    figures: dict[str, float] = {}
    for encoding, int8 in (("exact", False), ("int8", True)):
        for name, value in _timed(learner, model, queries, int8=int8).items():
            figures[f"{encoding}_{name}"] = value
    return Measurement(
        unit="searches with new queries a second, of the median wall time, exact query encoding",
        value=1_000 / figures["exact_new_wall_p50_ms"],
        target=None,
        settings={**data_settings(data), "items": len(model), "events": events, "queries": queries},
        rounds=[figures],
    )


def _learnt(data: Path, events: int) -> Learner:
    items = read_catalogue(data / "items.csv.gz")
    known = {item[0] for item in items}
    stream = read_stream(data / "events.csv.gz", known, max_events=events, click_window_seconds=600).examples
    learner = new_learner(EncoderSettings(), LearnerSettings())
    learner.add_items(items)
    for start in range(0, len(stream), BATCH_EVENTS):
        learner.learn(learner.observe(stream[start : start + BATCH_EVENTS]))
    return learner


def served(learner: Learner) -> ServedModel:
    """Return the model that scorers build from a full bundle of a learner."""
    encoder = learner.encoder
    with TemporaryDirectory() as directory:
        write_bundle(
            Path(directory) / "bundle",
            groups=learner.bundle_groups(full=True),
            adapter_config=encoder.adapter_config(),
            item_ids=learner.catalogue.ids,
            scenario="home",
            version=1,
            kind="full",
            parent=None,
            snapshot=1,
            offsets={},
            base_digest=encoder.base_digest,
            watermark_ms=1,
            published_at_ms=1,
            events_learned=1,
        )
        bundle = read_bundle(Path(directory) / "bundle", base_digest=encoder.base_digest)
    return build_model([bundle], previous=None, catalogue=learner.catalogue, encoder=encoder)


def _timed(learner: Learner, model: ServedModel, queries: int, *, int8: bool) -> dict[str, float]:
    """Return the milliseconds of searches with new queries, and of the same queries again."""
    items = LiveItems()
    for item_id, text in zip(learner.catalogue.ids, learner.catalogue.texts, strict=True):
        items.take_in(Item(event_id="e", ts=1, item_id=item_id, kind="product", title=text))
    recommender = Recommender(items, ShopperState(items.rows, max_shoppers=10, pseudonymise=str))
    table = ServingTable("home")
    table.serve_model(model)
    search = Search(QueryEncoder(learner.encoder, int8=int8), recommender, table, SearchSettings())
    search.lexicon.refresh()
    rng = np.random.default_rng(0)
    requests = [_request(learner, rng, number) for number in range(queries)]
    search.search(SearchRequest(query="warm"), model)
    figures: dict[str, float] = {}
    for repeat in ("new", "known"):
        for name, value in _milliseconds(search, requests, model).items():
            figures[f"{repeat}_{name}"] = value
    return figures


def _request(learner: Learner, rng: np.random.Generator, number: int) -> SearchRequest:
    texts, ids = learner.catalogue.texts, learner.catalogue.ids
    title = words(texts[rng.integers(len(texts))].split(". ")[0])
    query = " ".join([*rng.permutation(title)[:3].tolist(), str(number)])
    return SearchRequest(query=query, session_items=tuple(ids[row] for row in rng.integers(len(ids), size=5)))


def _milliseconds(search: Search, requests: list[SearchRequest], model: ServedModel) -> dict[str, float]:
    walls, busy = [], []
    for request in requests:
        wall, processor = time.perf_counter(), time.thread_time()
        search.search(request, model)
        walls.append(time.perf_counter() - wall)
        busy.append(time.thread_time() - processor)
    return {
        f"{name}_p{quantile}_ms": round(1_000 * float(np.percentile(times, quantile)), 2)
        for name, times in (("wall", walls), ("processor", busy))
        for quantile in (50, 99)
    }
