"""Judgments as a stream of clicks: what is searched, what is held out, and the figures."""

import csv
import gzip
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from benchmarks import search_learning
from services.lab.backtest.replay import Outcome
from services.lab.backtest.workers import Job, Run
from services.lab.offline.judged_queries import QueryRanks
from services.lab.offline.judging import Ranks

QUERIES = [f"query {n}" for n in range(10)]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    with gzip.open(tmp_path / "items.csv.gz", "wt", newline="") as text:
        csv.writer(text).writerows([("item_id", "title"), *((f"i{n}", f"mug {n}") for n in range(12))])
    with gzip.open(tmp_path / "judgments.csv.gz", "wt", newline="") as text:
        rows = [(query, f"i{n + step}", 3 - step) for n, query in enumerate(QUERIES) for step in (0, 1)]
        csv.writer(text).writerows([("query", "item_id", "relevance"), *rows])
    return tmp_path


def test_held_out_queries_are_judged_and_not_in_the_stream(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWATER_ENCODER__CACHE_DIR", str(data / "cache"))
    jobs: list[Job] = []

    def carried_out(job: Job, runs: Sequence[Run]) -> Mapping[Run, Outcome]:
        jobs.append(job)
        return {run: _outcome(job, better=run.policy.name == "live") for run in runs}

    measured = search_learning.run(data, seeds=2, processes=carried_out)
    stream, held_out = jobs[0].data.stream.examples, jobs[0].data.judged_queries
    assert len(stream) == 7  # of each query the item with relevance 3, and not the one with 2
    assert len({example.user_id for example in stream}) == 7
    assert {example.query for example in stream} | {query.query for query in held_out} == set(QUERIES)
    assert not {example.query for example in stream} & {query.query for query in held_out}
    assert measured.value == pytest.approx(1.0)
    assert measured.settings["held_out_queries"] == 3
    assert measured.rounds[1]["ndcg20_live"] == pytest.approx(0.5)
    assert measured.rounds[0]["ndcg20_gain_over_frozen_low"] == pytest.approx(0.25)


def _outcome(job: Job, *, better: bool) -> Outcome:
    count = len(job.data.stream.examples) - job.data.first_judged
    ranks, queries = Ranks(candidates=12), QueryRanks(7)
    ranks.rank.extend([1] * count)
    ranks.auc.extend([0.5] * count)
    ranks.first_of_item, ranks.new_user = [True] * count, [True] * count
    queries.ndcg.extend([0.5 if better else 0.25] * len(job.data.judged_queries))
    queries.recall.extend([1.0] * len(job.data.judged_queries))
    return Outcome(ranks, events_learnt=7, learn_seconds=1, seconds=1, publications=1, queries=[queries])
