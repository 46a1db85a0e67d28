"""`python -m benchmarks.search_quality DATA`: how well queries in words find what shoppers went on to buy.

The data have no queries, so they are made: words of the title of what was bought, drawn at random, in any order. That
is kind to words over meaning, for nobody misspells or paraphrases. A learner learns the stream; from its middle on, the
place of what was bought is looked up for its query before the event is learnt, in each order that `/v1/search` knows.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.provenance import code, machine
from peft_adapters.encoder.encoder import MergedSuffix
from peft_adapters.encoder.query_encoder import QueryEncoder
from peft_adapters.learning.learner import Learner
from peft_adapters.ranking.counters import FloatArray
from peft_adapters.ranking.lexical import LexicalIndex, words
from peft_adapters.ranking.retrieval import reciprocal_rank_fusion, top_k
from peft_adapters.settings import EncoderSettings, LearnerSettings
from services.lab.offline.inputs import new_learner, read_catalogue
from services.lab.offline.stream import read_stream

CANDIDATES = 200  # as SearchSettings has it
CUTOFF = 10
PERSONAL_WEIGHTS = (0.25, 0.5, 1.0, 2.0)

Ranks = dict[str, list[float]]  # by order, 1 / place of what was bought within the cutoff, or 0


def main(arguments: list[str]) -> int:
    """Replay DATA's events, look up made queries on the way, print figures as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search_quality", description=__doc__)
    parser.add_argument("data", type=Path, help="directory with items.csv.gz and events.csv.gz")
    parser.add_argument("--events", type=int, default=4_000)
    parser.add_argument("--query-words", type=int, default=2)
    parser.add_argument("--batch-events", type=int, default=128)
    parser.add_argument("--cache-dir", type=Path, default=Path(".headwater/cache"))
    parser.add_argument("--json", type=Path, metavar="OUT", help="write figures there too")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    items = read_catalogue(options.data / "items.csv.gz")
    stream = read_stream(
        options.data / "events.csv.gz", {item[0] for item in items}, max_events=options.events, click_window_seconds=600
    ).examples
    learner = new_learner(EncoderSettings(cache_dir=options.cache_dir), LearnerSettings())
    learner.add_items(items)
    ranks, cosines = _replayed(learner, stream, options.query_words, options.batch_events)
    result = {
        "data": options.data.name,
        "items": len(items),
        "events": len(stream),
        "query_words": options.query_words,
        "queries": len(ranks["words"]),
        f"mrr_at_{CUTOFF}": {name: round(float(np.mean(own)), 4) for name, own in ranks.items()},
        f"hit_at_{CUTOFF}": {name: round(float(np.mean(np.array(own) > 0)), 4) for name, own in ranks.items()},
        "int8_cosine": {"mean": round(float(np.mean(cosines)), 4), "least": round(float(np.min(cosines)), 4)},
        "machine": machine(),
        "code": code(),
    }
    text = json.dumps(result, indent=2)
    sys.stdout.write(text + "\n")
    if options.json:
        options.json.write_text(text + "\n")
    return 0


def _replayed(learner: Learner, stream: Any, query_words: int, batch_events: int) -> tuple[Ranks, list[float]]:
    """1 / place by order, and the cosines of quantised and exact queries."""
    rng = np.random.default_rng(0)
    index = LexicalIndex(learner.catalogue.texts)
    exact, int8 = QueryEncoder(learner.encoder), QueryEncoder(learner.encoder, int8=True)
    ranks: Ranks = {}
    cosines: list[float] = []
    for start in range(0, len(stream), batch_events):
        batch = learner.observe(stream[start : start + batch_events])
        if start >= len(stream) // 2:
            suffix: MergedSuffix = learner.lora_steps.served_suffix
            for row, personal in zip(batch.items.tolist(), learner.judge(batch).numpy(), strict=True):
                title = words(learner.catalogue.texts[row].split(". ")[0])
                query = " ".join(rng.permutation(title)[:query_words].tolist())
                vectors = exact(query, suffix), int8(query, suffix)
                cosines.append(float(vectors[0] @ vectors[1]))
                meaning, near = ((learner.ranker.text @ vector).numpy() for vector in vectors)
                for name, scores in _orders(meaning, near, index.scores(query), personal).items():
                    places = np.flatnonzero(top_k(scores, CUTOFF) == row)
                    ranks.setdefault(name, []).append(1 / (1 + float(places[0])) if len(places) else 0.0)
        learner.learn(batch)
    return ranks, cosines


def _orders(meaning: FloatArray, near: FloatArray, found: FloatArray, personal: FloatArray) -> Mapping[str, FloatArray]:
    """Scores of every item by each order; `near` is the meaning of quantised queries."""
    by_words = top_k(np.where(found > 0, found, -np.inf), CANDIDATES)
    orders: dict[str, FloatArray] = {"words": np.where(found > 0, found, -np.inf), "meaning": meaning}
    orders["meaning, int8"] = near
    for name, scores in (("", meaning), (", int8", near)):
        both = [top_k(scores, CANDIDATES), by_words]
        orders[f"fused{name}"] = reciprocal_rank_fusion(both, (1.0, 1.0), len(meaning))
        rows = np.sort(top_k(orders[f"fused{name}"], CANDIDATES))
        own = rows[np.argsort(-personal[rows], kind="stable")]
        for weight in PERSONAL_WEIGHTS:
            orders[f"fused, personal {weight:g}{name}"] = reciprocal_rank_fusion(
                [*both, own], (1.0, 1.0, weight), len(meaning)
            )
    return orders


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
