"""`headwater backtest` as its user runs it: the report, and ranks from which anyone can recompute its figures."""

import csv
import gzip
import hashlib
import json
import re
import subprocess
from collections import defaultdict
from math import log2
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from forked import run_command
from tiny_model import paired_stream, tiny_bert, titled

from services.lab.backtest.command import run
from services.settings import Settings, SettingsError

EVENTS, WARM_UP = 150, 2
POLICIES = ("live", "live:3", "popularity")

NOWHERE: dict[str, Any] = {
    "items": Path("nowhere.csv"),
    "events": Path("nowhere.csv"),
    "max_events": None,
    "seeds": 1,
    "json_path": None,
    "ranks_path": None,
    "warm_up": None,
    "batch_events": None,
    "click_window_seconds": 600.0,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("data")
    with (directory / "items.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("item_id", "title"), *titled(60)])
    with gzip.open(directory / "events.csv.gz", "wt", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("timestamp_ms", "user_id", "session_id", "event_type", "item_id"))
        for event in paired_stream(EVENTS + 50, items=60, seed=1):
            writer.writerow((event.ts + 10**12, event.user_id, event.session_id, "purchase", event.item_id))
    (directory / "history.csv").write_text("user_id,prior_items\nuser-1,item-1 item-2\n")
    return directory


def backtest(data: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    files = ["--items", str(data / "items.csv"), "--events", str(data / "events.csv.gz"), "--encoder", str(tiny_bert())]
    return run_command(["backtest", *files, *arguments], cwd=data, timeout=200)


@pytest.fixture(scope="module")
def done(data: Path) -> "subprocess.CompletedProcess[str]":
    outputs = ["--json", str(data / "out.json"), "--ranks", str(data / "ranks.csv.gz"), "--report", str(data / "study")]
    size = ["--max-events", str(EVENTS), "--seeds", "2", "--policies", ",".join(POLICIES), "--batch-events", "25"]
    return backtest(data, *size, *outputs, "--warm-up", str(data / "history.csv"))


@pytest.fixture
def report(done: "subprocess.CompletedProcess[str]", data: Path) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    parsed: dict[str, Any] = json.loads((data / "out.json").read_text(), parse_constant=pytest.fail)  # NaN is no JSON
    return parsed


@pytest.fixture
def ranks(report: dict[str, Any], data: Path) -> dict[tuple[str, str], list[dict[str, str]]]:
    rows = defaultdict(list)
    with gzip.open(data / "ranks.csv.gz", "rt", newline="") as file:
        for row in csv.DictReader(file):
            rows[row["policy"], row["seed"]].append(row)
    return rows


def test_ranks_recompute_the_figures(
    report: dict[str, Any], ranks: dict[tuple[str, str], list[dict[str, str]]]
) -> None:
    assert set(ranks) == {(policy, seed) for policy in POLICIES for seed in ("0", "1")}
    for (policy, seed), rows in ranks.items():
        place = [int(row["rank"]) for row in rows]
        first = [int(row["rank"]) for row in rows if row["is_first_event_of_item"] == "1"]
        expected = {
            "hr20": mean(rank <= 20 for rank in place),
            "ndcg20": mean(1 / log2(rank + 1) if rank <= 20 else 0.0 for rank in place),
            "mrr": mean(1 / rank for rank in place),
            "hr20_first_of_item": mean(rank <= 20 for rank in first),
            "events_first_of_item": len(first),
        }
        for name, value in expected.items():
            assert report["policies"][policy][name]["seeds"][int(seed)] == pytest.approx(value), (policy, name)


def test_every_event_has_one_row_and_the_warm_up_none(
    report: dict[str, Any], ranks: dict[tuple[str, str], list[dict[str, str]]]
) -> None:
    assert report["judged_events"] == EVENTS
    assert report["warm_up_events"] == WARM_UP
    assert report["catalogue"] == 60
    for rows in ranks.values():
        assert [int(row["event_index"]) for row in rows] == list(range(EVENTS))
        assert {row["candidates"] for row in rows} == {"60"}
        assert all(1 <= int(row["rank"]) <= 60 for row in rows)


def test_figures_name_the_data_encoder_and_settings_they_are_of(report: dict[str, Any], data: Path) -> None:
    source = report["provenance"]
    assert {role: file["file"] for role, file in source["data"].items()} == {
        "items": "items.csv",
        "events": "events.csv.gz",
        "warm_up": "history.csv",
    }
    for file in source["data"].values():
        assert file["sha256"] == hashlib.sha256((data / file["file"]).read_bytes()).hexdigest()
    assert len(source["encoder"]["base_digest"]) == 64
    assert source["options"]["batch_events"] == 25
    assert source["options"]["max_events"] == EVENTS
    assert set(source["headwater"]) == {"version", "commit", "dirty"}
    assert "encoder.cache_dir" not in source["changed_settings"], "no path of this machine"


def test_means_are_over_seeds(report: dict[str, Any]) -> None:
    for figure in report["policies"]["live"].values():
        assert figure["mean"] == pytest.approx(mean(figure["seeds"]))
        assert len(figure["seeds"]) == 2
        assert figure["ci95"] is not None


def test_the_table_shows_every_policy(done: "subprocess.CompletedProcess[str]") -> None:
    assert done.stdout == ""
    assert all(policy in done.stderr for policy in (*POLICIES, "ndcg20"))


def test_gains_are_over_each_other_policy_and_follow_from_the_ranks(
    report: dict[str, Any], ranks: dict[tuple[str, str], list[dict[str, str]]]
) -> None:
    def hits(policy: str) -> float:
        return mean(int(row["rank"]) <= 20 for seed in ("0", "1") for row in ranks[policy, seed])

    assert report["gains_of"] == "live"
    assert list(report["gains"]) == ["live:3", "popularity"]
    for policy, gain in report["gains"].items():
        hr20 = gain["hr20"]
        assert hr20["difference"] == pytest.approx(hits("live") - hits(policy))
        assert hr20["low"] <= hr20["difference"] <= hr20["high"]


def test_every_run_says_how_fast_it_learnt(report: dict[str, Any]) -> None:
    assert [(run["policy"], run["seed"]) for run in report["runs"]] == [
        (policy, seed) for policy in POLICIES for seed in (0, 1)
    ]
    for of_run in report["runs"]:
        assert of_run["events_learnt"] == EVENTS + WARM_UP
        assert of_run["learn_seconds"] > 0
        assert of_run["events_learnt_per_second"] == pytest.approx(of_run["events_learnt"] / of_run["learn_seconds"])
    publications = {of_run["policy"]: of_run["publications"] for of_run in report["runs"]}
    assert publications == {"live": 6, "live:3": 2, "popularity": 6}


def test_the_report_is_for_people_and_has_its_plots(report: dict[str, Any], data: Path) -> None:
    text = (data / "study" / "report.md").read_text()
    shown = [line.split(" | ")[0].removeprefix("| ") for line in text.splitlines() if line.startswith("| ")]
    assert set(POLICIES) < set(shown)
    assert f"{report['policies']['live']['auc_first3']['mean']:.4f}" in text
    plots = re.findall(r"!\[.+\]\((.+)\)", text)
    assert plots == ["quality-over-time.png", "quality-by-interval.png"]
    for plot in plots:
        assert (data / "study" / plot).read_bytes().startswith(b"\x89PNG")


def test_a_report_without_matplotlib_is_refused_before_anything_is_read(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.lab.backtest.report.find_spec", lambda name: None)
    with pytest.raises(
        SettingsError, match=r"`--report` draws plots with matplotlib.*pip install 'headwater\[report\]'"
    ):
        run(Settings(), **NOWHERE, policies=["live"], report_dir=data / "study")


def test_an_unknown_policy_is_named_before_anything_is_read() -> None:
    with pytest.raises(SettingsError, match=r"`--policies` must be among live, .*, got best, worst"):
        run(Settings(), **NOWHERE, policies=["live", "best", "worst"])
