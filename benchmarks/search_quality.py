"""Scenario `search-quality`: rank of the next purchase in searches by generated queries.

The data have no queries, so they are generated: random words of the title of the bought item, in any order. That
favours words over meaning, since real shoppers misspell and paraphrase. A learner learns the stream; from its middle
on, each event's item is searched for by its query before the event is learnt, in each order that `/v1/search` offers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measure import Measurement, data_settings
from peft_adapters.encoder.encoder import MergedSuffix
from peft_adapters.encoder.query_encoder import QueryEncoder
from peft_adapters.learning.learner import Learner
from peft_adapters.ranking.arrays import FloatArray
from peft_adapters.ranking.lexical import LexicalIndex
from peft_adapters.ranking.retrieval import reciprocal_rank_fusion, top_k
from peft_adapters.ranking.words import words
from peft_adapters.settings import EncoderSettings, LearnerSettings
from services.lab.offline.inputs import new_learner, read_catalogue
from services.lab.offline.stream import read_stream
from services.scorer.search import FUSION_WEIGHTS

CANDIDATES = 200  # the default of SearchSettings
CUTOFF = 10
PERSONAL_WEIGHTS = (0.25, 0.5, 1.0, 2.0)

Ranks = dict[str, list[float]]  # by order, 1 / rank of the bought item within the cutoff, or 0


def run(data: Path, *, events: int = 4_000, query_words: int = 2, batch_events: int = 128) -> Measurement:
    """Replay the events of `data` and search for generated queries.

    Args:
        data: a directory with items.csv.gz and events.csv.gz.
        events: the number of events replayed.
        query_words: the number of words of a query.
        batch_events: the events of a micro-batch.
    """
    torch.set_num_threads(1)
    items = read_catalogue(data / "items.csv.gz")
    known = {item[0] for item in items}
    stream = read_stream(data / "events.csv.gz", known, max_events=events, click_window_seconds=600).examples
    learner = new_learner(EncoderSettings(), LearnerSettings())
    learner.add_items(items)
    ranks, cosines = _replayed(learner, stream, query_words, batch_events)
    figures = {f"mrr{CUTOFF}_{name}": float(np.mean(values)) for name, values in ranks.items()}
    figures |= {f"hit{CUTOFF}_{name}": float(np.mean(np.array(values) > 0)) for name, values in ranks.items()}
    figures |= {"int8_cosine_mean": float(np.mean(cosines)), "int8_cosine_least": float(np.min(cosines))}
    return Measurement(
        unit=f"MRR@{CUTOFF} of words and meaning fused, the shopper's order at a quarter",
        value=figures[f"mrr{CUTOFF}_fused_personal_0.25"],
        target=None,
        settings={
            **data_settings(data),
            "items": len(items),
            "events": len(stream),
            "query_words": query_words,
            "queries": len(ranks["words"]),
            "batch_events": batch_events,
        },
        rounds=[figures],
    )


def _replayed(learner: Learner, stream: Any, query_words: int, batch_events: int) -> tuple[Ranks, list[float]]:
    """Return 1 / rank by order, and the cosines of int8 and exact query vectors."""
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
                meaning, meaning_int8 = ((learner.ranker.text @ vector).numpy() for vector in vectors)
                for name, scores in _orders(meaning, meaning_int8, index.scores(query), personal).items():
                    places = np.flatnonzero(top_k(scores, CUTOFF) == row)
                    ranks.setdefault(name, []).append(1 / (1 + float(places[0])) if len(places) else 0.0)
        learner.learn(batch)
    return ranks, cosines


def _orders(
    meaning: FloatArray, meaning_int8: FloatArray, lexical: FloatArray, personal: FloatArray
) -> Mapping[str, FloatArray]:
    """Return the scores of every item by each order."""
    matching = np.where(lexical > 0, lexical, -np.inf)
    by_words = top_k(matching, CANDIDATES)
    orders: dict[str, FloatArray] = {"words": matching, "meaning": meaning, "meaning_int8": meaning_int8}
    for name, scores in (("", meaning), ("_int8", meaning_int8)):
        both = [top_k(scores, CANDIDATES), by_words]
        orders[f"fused{name}"] = reciprocal_rank_fusion(both, FUSION_WEIGHTS, len(meaning))
        rows = np.sort(top_k(orders[f"fused{name}"], CANDIDATES))
        by_shopper = rows[np.argsort(-personal[rows], kind="stable")]
        for weight in PERSONAL_WEIGHTS:
            orders[f"fused_personal_{weight:g}{name}"] = reciprocal_rank_fusion(
                [*both, by_shopper], (*FUSION_WEIGHTS, weight), len(meaning)
            )
    return orders
