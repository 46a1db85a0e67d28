"""The command `headwater backtest`: run policies with several seeds, print figures, write reports and ranks."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from services.data.dataset import read_items
from services.data.rows import refused_rows
from services.items import catalogue_item
from services.lab.backtest.policies import Policy, parse_policies, require_installed
from services.lab.backtest.provenance import provenance
from services.lab.backtest.replay import Data, Outcome
from services.lab.backtest.report import require_plots, write_report
from services.lab.backtest.run import Start
from services.lab.backtest.summary import summary
from services.lab.backtest.tables import figures_table, gains_table, notes, query_tables, slice_tables
from services.lab.backtest.workers import Job, Run, console, run_all
from services.lab.offline.inputs import new_learner, read_warm_up
from services.lab.offline.judged_queries import read_judged_queries
from services.lab.offline.stream import read_stream
from services.outputs import require_writable_directories, require_writable_files
from services.settings import Settings

DEFAULT_BATCH_EVENTS = 128

RunAll = Callable[[Job, Sequence[Run]], Mapping[Run, Outcome]]


def run(
    settings: Settings,
    *,
    items: Path,
    events: Path,
    policies: Sequence[str],
    max_events: int | None,
    seeds: int,
    json_path: Path | None,
    ranks_path: Path | None,
    warm_up: Path | None,
    batch_events: int | None,
    click_window_seconds: float,
    label_delay_seconds: float = 0.0,
    judge_after: float = 0.0,
    judge_queries: Path | None = None,
    judge_queries_every: int | None = None,
    report_dir: Path | None = None,
    start: Start | None = None,
    strict: bool = False,
) -> dict[str, Any]:
    """Run every policy with every seed, print tables, write the files named, and return the report.

    Args:
        settings: settings of the encoder and the learner.
        items: file of the catalogue.
        events: file of the stream.
        policies: policies in the form that `parse_policies` reads.
        max_events: number of clicks and purchases after which the stream ends; None reads it all.
        seeds: number of runs per policy.
        json_path: file for the figures, or None.
        ranks_path: file for one row per judged event, or None.
        warm_up: file of users' earlier items, learnt and never judged.
        batch_events: records per micro-batch; None is the default.
        click_window_seconds: event time after which a shown list is learnt.
        label_delay_seconds: event time between an event and when it may be learnt.
        judge_after: share of the stream before the first judged event.
        judge_queries: file of queries with graded items, never learnt and judged at the end; or None.
        judge_queries_every: number of events between two judgements of these queries; None judges at the end alone.
        report_dir: directory for a report with plots, or None.
        start: the state that learners start from; None starts with nothing learnt.
        strict: whether to stop at the first bad row instead of skipping it.

    Raises:
        SettingsError: a policy is not known, plots cannot be drawn, or an output cannot be written.
        InputError: the data cannot be read.
    """
    require_writable_files({"--json": json_path, "--ranks": ranks_path})
    require_writable_directories({"--report": report_dir})
    parsed = parse_policies(policies)
    if report_dir:
        require_plots()
    report, by_policy = compare(
        settings,
        items=items,
        events=events,
        policies=parsed,
        max_events=max_events,
        seeds=seeds,
        warm_up=warm_up,
        batch_events=batch_events,
        click_window_seconds=click_window_seconds,
        label_delay_seconds=label_delay_seconds,
        judge_after=judge_after,
        judge_queries=judge_queries,
        judge_queries_every=judge_queries_every,
        start=start,
        strict=strict,
    )
    _write(report, parsed, by_policy, json_path=json_path, ranks_path=ranks_path, report_dir=report_dir)
    return report


def compare(
    settings: Settings,
    *,
    items: Path,
    events: Path,
    policies: Sequence[Policy],
    seeds: int,
    max_events: int | None = None,
    warm_up: Path | None = None,
    batch_events: int | None = None,
    click_window_seconds: float = 600.0,
    label_delay_seconds: float = 0.0,
    judge_after: float = 0.0,
    judge_queries: Path | None = None,
    judge_queries_every: int | None = None,
    start: Start | None = None,
    strict: bool = False,
    run: RunAll = run_all,
) -> tuple[dict[str, Any], Mapping[str, Sequence[Outcome]]]:
    """Read the data, run every policy with every seed, and return the report and the outcomes by policy.

    Arguments that `run` above has too mean the same here.

    Args:
        settings: settings of the encoder and the learner.
        items: file of the catalogue.
        events: file of the stream.
        policies: the policies to compare.
        seeds: number of runs per policy.
        max_events: number of clicks and purchases after which the stream ends; None reads it all.
        warm_up: file of users' earlier items, learnt and never judged.
        batch_events: records per micro-batch.
        click_window_seconds: event time after which a shown list is learnt.
        label_delay_seconds: event time between an event and when it may be learnt.
        judge_after: share of the stream before the first judged event.
        judge_queries: file of queries with graded items, never learnt and judged at the end; or None.
        judge_queries_every: number of events between two judgements of these queries; None judges at the end alone.
        start: the state that learners start from; None starts with nothing learnt.
        strict: whether to stop at the first bad row instead of skipping it.
        run: carries out the runs, in processes of their own or in this one.

    Raises:
        SettingsError: a policy needs a package that is not installed.
        InputError: the data cannot be read.
    """
    require_installed(policies)
    with refused_rows(strict=strict) as refused:
        listed = list(read_items(items, refused=refused))
        catalogue = [catalogue_item(item) for item in listed]
        known = {item[0] for item in catalogue}
        stream = read_stream(
            events, known, max_events=max_events, click_window_seconds=click_window_seconds, refused=refused
        )
        queries = read_judged_queries(judge_queries, known, refused=refused) if judge_queries else []
    earlier = read_warm_up(warm_up, known, stream.examples[0].ts) if warm_up else []
    data = Data(
        catalogue,
        earlier,
        stream,
        batch_events or DEFAULT_BATCH_EVENTS,
        label_delay_seconds=label_delay_seconds,
        judge_after=judge_after,
        judged_queries=queries,
        judge_queries_every=judge_queries_every,
        prices={item.item_id: item.price for item in listed if item.price is not None},
    )
    events_read = f"{len(stream.examples):,} events and {len(stream.lists):,} lists of {len(catalogue):,} items"
    console.print(f"{events_read}; encoding the texts that are not in the cache")
    learner = new_learner(settings.encoder, settings.learner)
    learner.catalogue.upsert(data.items)  # fills the cache for all runs
    source = provenance(
        settings,
        learner.encoder,
        {"items": items, "events": events, "warm_up": warm_up, "judge_queries": judge_queries},
        {
            "seeds": seeds,
            "max_events": max_events,
            "batch_events": data.batch_events,
            "click_window_seconds": click_window_seconds,
            "label_delay_seconds": label_delay_seconds,
            "judge_after": judge_after,
            "judge_queries_every": judge_queries_every,
            "learnt_by_fit": start.learnt if start else None,
        },
    )
    runs = [Run(policy, seed) for seed in range(seeds) for policy in policies]
    outcomes = run(Job(data, settings.encoder, settings.learner, start), runs)
    by_policy = {policy.name: [outcomes[Run(policy, seed)] for seed in range(seeds)] for policy in policies}
    report = {"items": items.name, "events": events.name, "provenance": source} | summary(settings, data, by_policy)
    return report, by_policy


def _write(
    report: dict[str, Any],
    policies: Sequence[Policy],
    by_policy: Mapping[str, Sequence[Outcome]],
    *,
    json_path: Path | None,
    ranks_path: Path | None,
    report_dir: Path | None,
) -> None:
    console.print(figures_table(report))
    if report["gains"]:
        console.print(gains_table(report))
    for table in (*slice_tables(report), *query_tables(report)):
        console.print(table)
    for note in notes(report):
        console.print(note)
    if json_path:
        json_path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if ranks_path:
        _write_ranks(ranks_path, by_policy)
    if report_dir:
        write_report(report_dir, report, policies, by_policy)
        console.print(f"report: {report_dir / 'report.md'}")


def _write_ranks(path: Path, by_policy: Mapping[str, Sequence[Outcome]]) -> None:
    with gzip.open(path, "wt", newline="", encoding="utf-8") as lines:
        writer = csv.writer(lines)
        writer.writerow(["event_index", "policy", "seed", "rank", "candidates", "is_first_event_of_item"])
        for policy, outcomes in by_policy.items():
            for seed, outcome in enumerate(outcomes):
                ranks = outcome.ranks
                rows = zip(ranks.rank, ranks.first_of_item, strict=True)
                for index, (rank, first) in enumerate(rows, start=ranks.first_index):
                    writer.writerow([index, policy, seed, rank, ranks.candidates, int(first)])
