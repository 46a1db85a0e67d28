"""The Markdown of a study, from outcomes made by hand."""

from array import array
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from tiny_model import titled

from services.lab.backtest.policies import parse_policies
from services.lab.backtest.replay import Data, Outcome
from services.lab.backtest.report import rolling_mean, write_report
from services.lab.backtest.summary import summary
from services.lab.backtest.tables import figures_table
from services.lab.offline.judging import Ranks
from services.lab.offline.stream import Stream
from services.settings import Settings
from streams.examples import Example

EVENTS = 60
PROVENANCE = {
    "headwater": {"version": "1.2.3", "commit": "abc", "dirty": True},
    "encoder": {"model": "default", "base_digest": "d16e57"},
    "data": {"items": {"file": "items.csv", "sha256": "1" * 64}, "events": {"file": "events.csv", "sha256": "2" * 64}},
    "options": {"seeds": 1, "max_events": None, "batch_events": 10},
    "changed_settings": {"learner.lora": False},
}


def outcome(rank: int, *, publications: int = 3) -> Outcome:
    ranks = Ranks(
        rank=array("i", [rank] * EVENTS),
        auc=array("f", [0.5] * EVENTS),
        first_of_item=[False] * EVENTS,
        new_user=[False] * EVENTS,
        first_index=20,
        candidates=100,
    )
    return Outcome(ranks, events_learnt=80, learn_seconds=0.5, seconds=4.0, publications=publications)


def written(directory: Path, ranks: dict[str, int], *, delay: float = 0.0) -> str:
    examples = [Example(f"e-{i}", "ann", None, "item-1", i, "click", "home", None, 0) for i in range(80)]
    data = Data(titled(100), [], Stream(examples, []), 10, label_delay_seconds=delay, judge_after=0.25)
    outcomes = {policy: [outcome(rank, publications=0 if policy == "nightly" else 3)] for policy, rank in ranks.items()}
    report = {"items": "items.csv", "events": "events.csv", "provenance": PROVENANCE} | summary(
        Settings(), data, outcomes
    )
    write_report(directory / "new" / "study", report, parse_policies(list(ranks)), outcomes)
    return (directory / "new" / "study" / "report.md").read_text()


def test_quality_against_the_publish_interval_in_order_of_the_interval(tmp_path: Path) -> None:
    text = written(tmp_path, {"live:50": 3, "live": 1, "frozen": 7})
    assert "| 1 | 10 | 1.0000 | 1.0000 | 0.0% |\n| 50 | 500 | 0.5000 | 1.0000 | 50.0% |" in text
    assert "## Gains of live over the other policies" in text
    assert "| live:50 | +0.5000 | +0.5000 to +0.5000 | +100.0% | +0.0000 | +0.0000 to +0.0000 |" in text
    assert "| live, seed 0 | 80 | 160 | 20 | 3 |" in text


def test_one_interval_is_nothing_to_compare(tmp_path: Path) -> None:
    text = written(tmp_path, {"live": 1})
    assert "publish interval" not in text
    assert "## Gains of" not in text
    assert sorted(path.name for path in (tmp_path / "new" / "study").iterdir()) == [
        "quality-over-time.png",
        "report.md",
    ]


def test_it_says_how_it_was_measured(tmp_path: Path) -> None:
    text = written(tmp_path, {"live": 1}, delay=90.0)
    assert "80 events of 100 items in micro-batches of 10, 1 seed." in text
    assert "All are replayed, the last 60 are judged." in text
    assert "An event is learnt 90 s of event time after it happened." in text


def test_it_says_who_never_published(tmp_path: Path) -> None:
    assert "nightly published nothing that it learnt" in written(tmp_path, {"live": 1, "nightly": 2})
    assert "published nothing" not in written(tmp_path, {"live": 1})


def test_it_names_version_commit_encoder_data_and_settings(tmp_path: Path) -> None:
    text = written(tmp_path, {"live": 1})
    for row in (
        "| Headwater | 1.2.3 |",
        "| commit | abc, with uncommitted changes |",
        "| encoder | default |",
        "| encoder digest | d16e57 |",
        f"| items: items.csv | sha256 {'1' * 64} |",
        f"| events: events.csv | sha256 {'2' * 64} |",
        "| batch_events | 10 |",
        "| learner.lora | False |",
    ):
        assert row in text
    assert "max_events" not in text, "it was not given"


def test_a_rolling_mean_begins_when_its_window_is_full() -> None:
    values = np.array([1.0, 0.0, 0.0, 1.0, 1.0])
    assert rolling_mean(values, 3) == pytest.approx([1 / 3, 1 / 3, 2 / 3])
    assert rolling_mean(values, 1) == pytest.approx(values)


def test_all_figures_of_the_table_fit_into_80_columns() -> None:
    figure = {"mean": 0.12345, "ci95": 0.00123}
    names = ("hr20", "ndcg20", "mrr", "auc", "auc_first3", "hr20_first_of_item", "hr20_new_user")
    policies = {policy: dict.fromkeys(names, figure) for policy in ("live", "live-without-lora")}
    counts = {"events": "events.csv.gz", "judged_events": 5_000, "catalogue": 1_865, "shown_lists": 0, "slices": {}}
    console = Console(width=80, file=StringIO())
    with console.capture() as shown:
        console.print(figures_table({**counts, "policies": policies}))
    assert shown.get().count("0.1235") == shown.get().count("±0.0012") == 14
