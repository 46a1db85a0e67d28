"""Scenario `search-learning`: what LoRA is worth for search queries that were never seen.

The data are judgments without users, times or clicks. A share of the queries becomes a stream: each product judged
relevant is one click after a search, by a shopper of whom nothing is known, in seeded random order. The other queries
are never learnt; at the end they are judged by the whole score. A pair is clicked once, so popularity says the less
about a product the more it was clicked, as it would not in a shop: compare policies that share it.
"""

from __future__ import annotations

import csv
import gzip
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import Measurement
from peft_adapters.settings import EncoderSettings, LearnerSettings
from services.data.digests import digests
from services.lab.backtest.command import RunAll, compare
from services.lab.backtest.policies import parse_policies
from services.lab.backtest.summary import QUERY_FIGURES
from services.lab.backtest.workers import run_all
from services.settings import load_settings

DATA_FILES = ("items.csv.gz", "judgments.csv.gz")  # item_id, title; query, item_id, relevance
POLICIES = ("live", "live-without-lora", "frozen")
TARGET = 0.05  # least gain of `live` over `live-without-lora` in NDCG@20, relative
_JUDGE_AFTER = 0.95  # of the stream: ranking every click among the catalogue takes longer than learning it

Judgments = dict[str, list[tuple[str, float]]]  # by query, items and their relevance


def run(
    data: Path,
    *,
    queries: int = 0,
    seeds: int = 3,
    clicked_share: float = 0.7,
    relevant_from: float = 2.5,
    lora_layers: int = EncoderSettings().lora_layers,
    processes: RunAll = run_all,
) -> Measurement:
    """Replay judgments as clicks after searches, and judge queries that were held out.

    Args:
        data: a directory with items.csv.gz (item_id, title) and judgments.csv.gz (query, item_id, relevance).
        queries: number of queries used, with the items judged for them as the catalogue; 0 uses all of both.
        seeds: runs per policy.
        clicked_share: share of the queries that are searched in the stream; the rest is held out.
        relevant_from: least relevance of a product that is clicked, or that a held-out query is to find.
        lora_layers: number of last layers with LoRA.
        processes: carries out the runs.
    """
    judgments = _judgments(data / "judgments.csv.gz")
    generator = np.random.default_rng(0)
    names = generator.permutation(sorted(judgments)).tolist()
    used = names[:queries] if queries else names
    searched, held_out = used[: int(len(used) * clicked_share)], used[int(len(used) * clicked_share) :]
    judged_items = {item for query in used for item, _ in judgments[query]} if queries else None
    settings = load_settings(encoder={"lora_layers": lora_layers})
    with tempfile.TemporaryDirectory() as directory:
        items, events, judged = (Path(directory) / name for name in ("items.csv", "events.csv", "held-out.csv"))
        _write_items(items, data / "items.csv.gz", judged_items)
        clicks = _relevant(judgments, searched, relevant_from)
        clicks = [clicks[place] for place in generator.permutation(len(clicks))]
        _write(
            events,
            ("seq", "user_id", "event_type", "item_id", "query"),
            ((number, f"shopper-{number}", "click", item, query) for number, (query, item, _) in enumerate(clicks)),
        )
        _write(judged, ("query", "item_id", "relevance"), _relevant(judgments, held_out, relevant_from))
        report, _ = compare(
            settings,
            items=items,
            events=events,
            policies=parse_policies(POLICIES),
            seeds=seeds,
            judge_after=_JUDGE_AFTER,
            judge_queries=judged,
            run=processes,
        )
    return _measurement(report, data, {"queries": queries, "relevant_from": relevant_from, "lora_layers": lora_layers})


def _measurement(report: dict[str, Any], data: Path, options: dict[str, Any]) -> Measurement:
    held_out = report["judged_queries"]["all"]
    gains = {
        f"{figure}_gain_over_{policy.replace('-', '_')}{suffix}": gain[figure][key]
        for policy, gain in held_out["gains"].items()
        for figure in QUERY_FIGURES
        for suffix, key in (("", "difference"), ("_low", "low"), ("_high", "high"), ("_relative", "relative"))
    }
    speeds = {
        f"learnt_per_second_{run['policy']}".replace("-", "_"): run["events_learnt_per_second"]
        for run in report["runs"]
        if run["seed"] == 0
    }
    rounds = [
        {
            f"{figure}_{policy}".replace("-", "_"): values[figure]["seeds"][seed]
            for policy, values in held_out["policies"].items()
            for figure in QUERY_FIGURES
        }
        | gains
        | speeds
        for seed in range(len(held_out["policies"]["live"]["ndcg20"]["seeds"]))
    ]
    return Measurement(
        unit="relative gain in NDCG@20 of live over live without LoRA, queries never seen",
        value=gains["ndcg20_gain_over_live_without_lora_relative"],
        target=TARGET,
        settings={
            "data": data.name,
            "data_sha256": digests(data / name for name in DATA_FILES),
            "items": report["catalogue"],
            "clicks": report["replayed_events"],
            "held_out_queries": held_out["queries"],
            "learner": LearnerSettings().model_dump(mode="json"),
            **options,
        },
        rounds=rounds,
    )


def _judgments(path: Path) -> Judgments:
    judgments: Judgments = {}
    for row in _rows(path):
        judgments.setdefault(" ".join(row["query"].split()), []).append((row["item_id"], float(row["relevance"])))
    return judgments


def _relevant(judgments: Judgments, queries: Sequence[str], relevant_from: float) -> list[tuple[str, str, float]]:
    """Return query, item and relevance of the relevant items of some queries."""
    pairs = ((query, item, relevance) for query in queries for item, relevance in judgments[query])
    return [pair for pair in pairs if pair[2] >= relevant_from]


def _write_items(path: Path, source: Path, kept: set[str] | None) -> None:
    rows = ((row["item_id"], row["title"]) for row in _rows(source) if kept is None or row["item_id"] in kept)
    _write(path, ("item_id", "title"), rows)


def _rows(path: Path) -> Iterable[dict[str, str]]:
    with gzip.open(path, "rt", encoding="utf-8", newline="") as text:
        yield from csv.DictReader(text)


def _write(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as text:
        writer = csv.writer(text)
        writer.writerow(header)
        writer.writerows(rows)
