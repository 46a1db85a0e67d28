"""`python -m benchmarks.search_latency DATA`: how long a search takes that was never asked before, and where it goes.

One shopper at a time, in the process, over a model that has learnt the first events of DATA: words of a title drawn at
random and a number make a query that nobody asked before. Wall time is that of a busy machine where it is busy; time on
the processor is told beside it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from benchmarks.provenance import code, machine
from peft_adapters.encoder.query_encoder import QueryEncoder
from peft_adapters.learning.learner import Learner
from peft_adapters.lifecycle.publishing import bundle_groups
from peft_adapters.ranking.lexical import words
from peft_adapters.registry.bundle import read_bundle, write_bundle
from peft_adapters.serving.model_builder import build_model
from peft_adapters.serving.served_model import ServedModel
from peft_adapters.settings import EncoderSettings, LearnerSettings
from services.lab.offline.inputs import new_learner, read_catalogue
from services.lab.offline.stream import read_stream
from services.scorer.answers import Answers
from services.scorer.live_items import LiveItems
from services.scorer.search import Search
from services.scorer.search_requests import SearchRequest
from services.scorer.shopper_state import ShopperState
from services.settings.search import SearchSettings
from streams.events import Item

BATCH_EVENTS = 128


def main(arguments: list[str]) -> int:
    """Search for made queries, print figures as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search_latency", description=__doc__)
    parser.add_argument("data", type=Path, help="directory with items.csv.gz and events.csv.gz")
    parser.add_argument("--events", type=int, default=2_000, help="learnt before")
    parser.add_argument("--queries", type=int, default=1_000)
    parser.add_argument("--cache-dir", type=Path, default=Path(".headwater/cache"))
    parser.add_argument("--json", type=Path, metavar="OUT", help="write figures there too")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    learner = _learnt(options.data, options.events, options.cache_dir)
    model = _served(learner)
    result = {
        "data": options.data.name,
        "items": len(model),
        "queries": options.queries,
        "exact": _timed(learner, model, options.queries, int8=False),
        "int8": _timed(learner, model, options.queries, int8=True),
        "machine": machine(),
        "code": code(),
    }
    text = json.dumps(result, indent=2)
    sys.stdout.write(text + "\n")
    if options.json:
        options.json.write_text(text + "\n")
    return 0


def _learnt(data: Path, events: int, cache_dir: Path) -> Learner:
    items = read_catalogue(data / "items.csv.gz")
    known = {item[0] for item in items}
    stream = read_stream(data / "events.csv.gz", known, max_events=events, click_window_seconds=600).examples
    learner = new_learner(EncoderSettings(cache_dir=cache_dir), LearnerSettings())
    learner.add_items(items)
    for start in range(0, len(stream), BATCH_EVENTS):
        learner.learn(learner.observe(stream[start : start + BATCH_EVENTS]))
    return learner


def _served(learner: Learner) -> ServedModel:
    encoder = learner.encoder
    with TemporaryDirectory() as directory:
        write_bundle(
            Path(directory) / "bundle",
            groups=bundle_groups(learner, full=True),
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


def _timed(learner: Learner, model: ServedModel, queries: int, *, int8: bool) -> dict[str, Any]:
    """Milliseconds of searches nobody asked before, and of the same ones asked again."""
    items = LiveItems()
    for item_id, text in zip(learner.catalogue.ids, learner.catalogue.texts, strict=True):
        items.take_in(Item(event_id="e", ts=1, item_id=item_id, kind="product", title=text))
    answers = Answers(items, ShopperState(items.rows, max_shoppers=10, pseudonymise=str))
    answers.model = model
    search = Search(QueryEncoder(learner.encoder, int8=int8), answers, SearchSettings())
    search.lexicon.refresh()
    rng = np.random.default_rng(0)
    requests = [_request(learner, rng, number) for number in range(queries)]
    search.search(SearchRequest(query="warm"), model)
    return {name: _milliseconds(search, requests, model) for name in ("new", "known")}


def _request(learner: Learner, rng: np.random.Generator, number: int) -> SearchRequest:
    texts, ids = learner.catalogue.texts, learner.catalogue.ids
    title = words(texts[rng.integers(len(texts))].split(". ")[0])
    query = " ".join([*rng.permutation(title)[:3].tolist(), str(number)])
    return SearchRequest(query=query, session_items=tuple(ids[row] for row in rng.integers(len(ids), size=5)))


def _milliseconds(search: Search, requests: list[SearchRequest], model: ServedModel) -> dict[str, float]:
    walls, busy = [], []
    for request in requests:
        wall, own = time.perf_counter(), time.thread_time()
        search.search(request, model)
        walls.append(time.perf_counter() - wall)
        busy.append(time.thread_time() - own)
    return {
        f"{name}_p{quantile}_ms": round(1_000 * float(np.percentile(times, quantile)), 2)
        for name, times in (("wall", walls), ("processor", busy))
        for quantile in (50, 99)
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
