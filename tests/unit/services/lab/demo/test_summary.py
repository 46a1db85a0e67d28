"""The summary's figures and claims: every claim can be false, and a false one is seen."""

import dataclasses
import io
import json
from typing import Any

import pytest
from rich.console import Console

from peft_adapters.ranking.shoppers import History
from services.lab.demo.accounts import Accounts, parse_accounts
from services.lab.demo.quality import Judgement, Quality
from services.lab.demo.storefront import ScorerTraffic, Traffic
from services.lab.demo.summary import Claim, Pace, Summary, claims, print_summary, summarise
from services.metrics.intake import EVENT_OUTCOMES
from services.metrics.updater import UpdaterMetrics
from streams.topics import Topics

KEYS = """events_replayed, events_learned, dead_letters, adapters_published, adapters_served_by_each_scorer, hr20_live,
    hr20_never_updated, ndcg20_live, ndcg20_never_updated, freshness_p50_seconds, freshness_p95_seconds, requests_total,
    requests_failed, rank_p50_ms, rank_p99_ms"""

GOOD_ACCOUNTS = Accounts(taken_in=20_000, learnt=20_000, adapters_published=9)
GOOD = Summary(
    events_replayed=20_000,
    events_learned=20_000,
    dead_letters=0,
    adapters_published=9,
    adapters_served_by_each_scorer=[9, 8],
    hr20_live=0.33,
    hr20_never_updated=0.30,
    ndcg20_live=0.2,
    ndcg20_never_updated=0.1,
    freshness_p50_seconds=1.0,
    freshness_p95_seconds=2.0,
    requests_total=300,
    requests_failed=0,
    rank_p50_ms=4.0,
    rank_p99_ms=9.0,
)
KEPT = Pace(requested=330.0, achieved=329.6, waited_seconds=0.3)


def found(
    summary: Summary = GOOD,
    *,
    accounts: Accounts = GOOD_ACCOUNTS,
    uncovered: int = 0,
    lift: float | None = 1.1,
    failure: str = "",
) -> list[Claim]:
    return claims(summary, accounts=accounts, uncovered=uncovered, lift=lift, failure=failure)


def test_the_json_has_the_promised_keys_and_no_other() -> None:
    assert list(GOOD.as_json()) == [key.strip() for key in KEYS.split(",")]
    json.dumps(GOOD.as_json())


def test_figures_come_from_where_they_were_counted() -> None:
    quality = Quality(lambda contexts, bought: [21 for _ in contexts])
    quality.add(Judgement(1, History([], [], []), 0))
    quality.judge_waiting()
    traffic = Traffic(
        [ScorerTraffic(answered=6, version=3, versions={1, 3}), ScorerTraffic(answered=5, version=3, versions={3})],
        failed=2,
        rank_seconds=[0.004] * 98 + [0.020] * 2,
    )
    summary = summarise(
        replayed=10,
        accounts=Accounts(taken_in=12, learnt=9, dead_letters=2, adapters_published=3),
        traffic=traffic,
        quality=quality,
        freshness_seconds=[1.0] * 94 + [9.0] * 6,
    )
    assert (summary.events_replayed, summary.events_learned, summary.dead_letters) == (10, 9, 2)
    assert (summary.adapters_published, summary.adapters_served_by_each_scorer) == (3, [2, 1])
    assert (summary.requests_total, summary.requests_failed) == (13, 2)
    assert (summary.freshness_p50_seconds, summary.freshness_p95_seconds) == (1.0, 9.0)
    assert (summary.rank_p50_ms, summary.rank_p99_ms) == (4.0, 20.0)
    assert (summary.hr20_live, summary.hr20_never_updated) == (1.0, 0.0)


def test_a_good_run_keeps_every_claim() -> None:
    assert [claim.holds for claim in found()] == [True] * 6


BAD: list[tuple[int, dict[str, Any]]] = [
    (0, {"accounts": dataclasses.replace(GOOD_ACCOUNTS, taken_in=19_999)}),
    (0, {"accounts": dataclasses.replace(GOOD_ACCOUNTS, taken_in=20_001, duplicates=1)}),
    (0, {"accounts": dataclasses.replace(GOOD_ACCOUNTS, dead_letters=1)}),
    (0, {"accounts": dataclasses.replace(GOOD_ACCOUNTS, pending=1)}),
    (0, {"accounts": dataclasses.replace(GOOD_ACCOUNTS, expired=1)}),
    (0, {"accounts": dataclasses.replace(GOOD_ACCOUNTS, balanced=False)}),
    (0, {"summary": dataclasses.replace(GOOD, events_learned=19_999)}),
    (0, {"summary": dataclasses.replace(GOOD, events_learned=20_001)}),
    (1, {"uncovered": 1}),
    (2, {"summary": dataclasses.replace(GOOD, freshness_p95_seconds=5.1)}),
    (3, {"summary": dataclasses.replace(GOOD, requests_failed=1)}),
    (3, {"summary": dataclasses.replace(GOOD, requests_total=0)}),
    (4, {"summary": dataclasses.replace(GOOD, adapters_served_by_each_scorer=[9, 1])}),
    (5, {"lift": 1.09}),
    (5, {"lift": None}),
]


@pytest.mark.parametrize(("number", "change"), BAD)
def test_what_is_not_true_is_not_claimed(number: int, change: dict[str, Any]) -> None:
    broken = [index for index, claim in enumerate(found(**change)) if claim.holds is not True]
    assert broken == [number]


def test_the_first_failure_is_told() -> None:
    failed = found(dataclasses.replace(GOOD, requests_failed=1), failure="scorer 2 /v1/rank: ReadTimeout")[3]
    assert "scorer 2 /v1/rank: ReadTimeout" in failed.text


def test_few_events_prove_nothing_about_freshness_and_learning() -> None:
    few = dataclasses.replace(GOOD, events_replayed=19_999, events_learned=19_999, freshness_p95_seconds=9.0)
    accounts = dataclasses.replace(GOOD_ACCOUNTS, taken_in=19_999, learnt=19_999)
    assert [claim.holds for claim in found(few, accounts=accounts, lift=0.5)] == [True, True, None, True, True, None]


def test_a_person_is_told_of_each_claim_with_its_mark() -> None:
    console = Console(file=io.StringIO(), width=400)
    print_summary(console, GOOD, found(uncovered=3), pace=KEPT, judged=77)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert text.count("✓") == 5
    assert text.count("✗") == 1
    assert "33.0%" in text
    assert "77 times" in text


def test_a_pace_that_was_not_kept_says_why() -> None:
    assert str(KEPT) == "330 a second"
    assert str(Pace(requested=330.0, achieved=210.4, waited_seconds=80.2)) == (
        "210 a second (330 were asked for; the shop waited 80 s for the updater)"
    )


def test_a_run_without_a_judged_request_can_be_told() -> None:
    nothing = dataclasses.replace(GOOD, hr20_live=None, hr20_never_updated=None, rank_p50_ms=None, ndcg20_live=None)
    print_summary(Console(file=io.StringIO()), nothing, found(nothing, lift=None), pace=KEPT, judged=0)


def test_accounts_are_read_from_the_page_that_the_updater_serves() -> None:
    from prometheus_client import CollectorRegistry, generate_latest

    registry, topics = CollectorRegistry(), Topics()
    metrics = UpdaterMetrics(registry, topics=topics)
    nothing = dict.fromkeys((*EVENT_OUTCOMES, "pending"), 0)
    events = {
        topics.purchases: nothing
        | {"in": 10, "learnt": 5, "dead_letter": 1, "duplicate": 1, "expired": 1, "pending": 2},
        topics.clicks: nothing | {"in": 2, "learnt": 2},
        topics.items: nothing | {"in": 7, "learnt": 7},
    }
    metrics.intake.show_events(events)
    for _ in range(4):
        metrics.gate.adapter_published()
    metrics.gate.adapter_refused()
    accounts = parse_accounts(generate_latest(registry).decode(), topics)
    assert accounts == Accounts(
        taken_in=12, learnt=7, dead_letters=1, duplicates=1, expired=1, pending=2, adapters_published=4, balanced=True
    )
    metrics.intake.show_events(events | {topics.clicks: events[topics.clicks] | {"in": 3}})
    assert not parse_accounts(generate_latest(registry).decode(), topics).balanced
