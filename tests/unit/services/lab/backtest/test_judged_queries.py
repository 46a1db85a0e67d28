"""Judged queries: reading, figures, and that they are judged and never learnt."""

from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from tiny_model import tiny_bert, titled

from peft_adapters.settings import EncoderSettings, LearnerSettings
from services.data.files import InputError
from services.data.rows import RefusedRows
from services.lab.backtest.policies import parse_policies
from services.lab.backtest.replay import Data, Outcome
from services.lab.backtest.run import run_policy
from services.lab.backtest.summary import summary
from services.lab.backtest.tables import query_rows, query_tables
from services.lab.offline.judged_queries import JudgedQuery, QueryRanks, read_judged_queries
from services.lab.offline.judging import Ranks
from services.lab.offline.stream import Stream
from services.settings import Settings
from streams.examples import Example

ITEMS = titled(12)
ENCODER = EncoderSettings(model=str(tiny_bert()), lora_rank=4, cache_dir=None)


def written(tmp_path: Path, rows: str) -> Path:
    path = tmp_path / "judged.csv"
    path.write_text(f"query,item_id,relevance\n{rows}")
    return path


def searches(count: int, query: str | None = "red mug") -> list[Example]:
    return [
        Example(f"e-{n}", f"u-{n}", None, f"item-{n % 12}", 1_000 * n, "click", "search", None, 0, query=query)
        for n in range(count)
    ]


def run(stream: Sequence[Example], judged: Sequence[JudgedQuery] = (), *, every: int | None = None) -> Outcome:
    (policy,) = parse_policies(["live"])
    data = Data(ITEMS, [], Stream(list(stream), []), 20, judged_queries=judged, judge_queries_every=every)
    settings = LearnerSettings(negatives=20)
    return run_policy(policy, data, encoder=ENCODER, learner=settings, progress=lambda events: None)


def test_queries_are_read_with_their_relevant_items(tmp_path: Path) -> None:
    path = written(tmp_path, 'a,item-1,2\n"red  mug",item-2,1.5\na,item-3,0\na,item-2,1\nnone,item-1,0\n')
    assert read_judged_queries(path, {"item-1", "item-2", "item-3"}) == [
        JudgedQuery("a", {"item-1": 2, "item-2": 1}),
        JudgedQuery("red mug", {"item-2": 1.5}),
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a,other,1", "item 'other' is not in the catalogue; add it"),
        ("a,item-1,high", "`relevance` must be a number, 0 or more, got 'high'"),
        ("a,item-1,-1", "`relevance` must be a number, 0 or more, got '-1'"),
        (" ,item-1,1", "`query` must not be empty"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, row: str, message: str) -> None:
    path, refused = written(tmp_path, f"a,item-1,1\n{row}\n"), RefusedRows(strict=False)
    assert len(read_judged_queries(path, {"item-1"}, refused=refused)) == 1
    assert f"row 2: {message}" in refused.named[0]


def test_a_file_without_a_relevant_item_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected queries with an item of relevance above 0"):
        read_judged_queries(written(tmp_path, "a,item-1,0\n"), {"item-1"})


def test_figures_by_hand() -> None:
    ranks = QueryRanks(0)
    scores = torch.arange(40).flip(0).repeat(3, 1).float()  # row 0 is the best
    relevance = [([0, 1], [3.0, 1.0]), ([1, 39], [1.0, 1.0]), ([30], [2.0])]
    ranks.add(scores, relevance)
    second = np.log(2) / np.log(3)
    assert ranks.figures()[0] == pytest.approx([1, second / (1 + second), 0])
    assert ranks.figures()[1] == pytest.approx([1, 0.5, 0])


def test_ties_and_scores_that_are_no_numbers_count_against_the_item() -> None:
    ranks = QueryRanks(0)
    ranks.add(torch.tensor([[0.0] * 30, [float("nan")] * 30]), [([3], [1.0]), ([3], [1.0])])
    assert not ranks.figures().any()


def test_judged_queries_are_never_learnt() -> None:
    """Judging them changes no rank, and they are judged as often as asked, the end last."""
    judged = [JudgedQuery("blue plate", {"item-3": 1.0}), JudgedQuery("mug", {"item-2": 2.0, "item-1": 1.0})]
    with_queries = run(searches(110), judged, every=50)
    assert with_queries.ranks.rank == run(searches(110)).ranks.rank
    assert [ranks.events for ranks in with_queries.queries] == [60, 100, 110]
    assert with_queries.queries[0].figures().shape == (2, 2)


def test_a_query_without_an_impression_ranks_the_catalogue() -> None:
    """The text of the query decides before anything is learnt."""
    assert run(searches(12)).ranks.rank != run(searches(12, query=None)).ranks.rank


@pytest.fixture
def report() -> dict[str, Any]:
    judged = [JudgedQuery(query, {"item-1": 1.0}) for query in ("Red mug", "lamp", "rug")]
    data = Data(ITEMS, [], Stream(searches(3), []), 10, judged_queries=judged)

    def outcome(ndcg: list[float]) -> Outcome:
        ranks = QueryRanks(3)
        ranks.ndcg.extend(ndcg)
        ranks.recall.extend([1.0, 0.5, 0.5])
        judged = Ranks(candidates=12)
        judged.rank.extend([1, 2, 3])
        judged.auc.extend([0.5] * 3)
        judged.first_of_item, judged.new_user = [True] * 3, [True] * 3
        return Outcome(judged, events_learnt=3, learn_seconds=1, seconds=1, publications=1, queries=[ranks])

    outcomes = {"live": [outcome([1, 0.5, 1])], "frozen": [outcome([1, 0.25, 0.5])]}
    return {"events": "events.csv"} | summary(Settings(), data, outcomes)


def test_queries_of_the_stream_are_reported_apart(report: dict[str, Any]) -> None:
    judged = report["judged_queries"]
    assert {name: judged[name]["queries"] for name in ("all", "unseen", "in_stream")} == {
        "all": 3,
        "unseen": 2,
        "in_stream": 1,
    }
    over = judged["unseen"]["gains"]["frozen"]
    assert over["ndcg20"]["difference"] == pytest.approx(0.375)
    assert over["ndcg20"]["relative"] == pytest.approx(1.0)
    assert (over["recall20"]["low"], over["recall20"]["high"]) == (0, 0)
    assert judged["over_time"][-1]["policies"]["live"]["recall20"] == pytest.approx(2 / 3)
    assert query_rows(report, "unseen")[1][:2] == ["frozen", "0.3750"]


def test_tables_fit_a_terminal(report: dict[str, Any]) -> None:
    out = StringIO()
    for table in query_tables(report):
        Console(file=out, width=80).print(table)
    assert "…" not in out.getvalue()
    assert "not in the stream, 2" in out.getvalue()
