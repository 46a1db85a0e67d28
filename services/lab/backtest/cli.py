"""Options of `headwater backtest`."""

from pathlib import Path
from typing import Annotated

import typer

from services.options import Config, EncoderName, Events, Items, LogLevel, MaxEvents, Strict, settings_from


def backtest(
    items: Items,
    events: Events,
    policies: Annotated[
        str,
        typer.Option(
            "--policies",
            metavar="A,B,...",
            help="What to compare: live, live:K (published every K micro-batches), live-without-lora, "
            "live-without-second-stage, live-without:NAME+NAME (features or groups of them), nightly, stale, "
            "stale:X (stops learning after X % of the events), frozen, popularity, cooccurrence, river, stan, "
            "lambdamart (extra `rivals`).",
        ),
    ] = "live,live-without-lora,frozen,popularity,cooccurrence",
    max_events: MaxEvents = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, metavar="N", help="Runs per policy.")] = 3,
    json_: Annotated[Path | None, typer.Option("--json", metavar="OUT", help="Write the figures there.")] = None,
    ranks: Annotated[
        Path | None, typer.Option("--ranks", metavar="OUT.csv.gz", help="Write one row per judged event there.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="DIR", help="Write report.md with plots there (extra `report`).")
    ] = None,
    warm_up: Annotated[
        Path | None, typer.Option("--warm-up", metavar="FILE", help="Earlier items of users, learnt and never judged.")
    ] = None,
    batch_events: Annotated[
        int | None, typer.Option("--batch-events", min=1, metavar="N", help="Events per micro-batch.")
    ] = None,
    click_window_seconds: Annotated[
        float, typer.Option("--click-window-seconds", min=0.001, metavar="S", help="When a shown list is learnt.")
    ] = 600.0,
    label_delay_seconds: Annotated[
        float,
        typer.Option(
            "--label-delay-seconds", min=0.0, max=1e9, metavar="S", help="Learn an event S s of event time later."
        ),
    ] = 0.0,
    judge_after: Annotated[
        float,
        typer.Option(
            "--judge-after", min=0.0, max=0.999, metavar="FRACTION", help="Replay all, judge what comes after that."
        ),
    ] = 0.0,
    judge_queries: Annotated[
        Path | None,
        typer.Option(
            "--judge-queries",
            metavar="FILE",
            help="Judge these searches at the end, never learnt: query, item_id, relevance.",
        ),
    ] = None,
    judge_queries_every: Annotated[
        int | None,
        typer.Option("--judge-queries-every", min=1, metavar="N", help="Judge them every N events too."),
    ] = None,
    start_from: Annotated[
        Path | None,
        typer.Option("--start-from", metavar="DIR", help="Begin from a fit; what it has learnt is not judged."),
    ] = None,
    encoder: EncoderName = None,
    strict: Strict = False,
    config: Config = None,
    log_level: LogLevel = None,
) -> None:
    """Judge policies on the events of a data set.

    The data set is replayed without Kafka, and every event is judged before it is learnt.

    Example: headwater backtest --items items.csv.gz --events events.csv.gz --max-events 20000 --json figures.json

    A study: headwater backtest --items items.csv.gz --events events.csv.gz --policies live,live:50,nightly,river
    --report study
    """
    settings = settings_from(config, None, log_level, encoder={"model": encoder})
    from services.lab.backtest.command import run
    from services.lab.backtest.fitted_start import backtest_start

    if start_from is not None and max_events is not None:
        raise typer.BadParameter("--start-from and --max-events exclude each other; give one")
    if judge_queries_every is not None and judge_queries is None:
        raise typer.BadParameter("--judge-queries-every needs --judge-queries; give a file of judged queries")
    start = backtest_start(settings, start_from, events) if start_from is not None else None
    run(
        settings,
        items=items,
        events=events,
        policies=[policy.strip() for policy in policies.split(",")],
        max_events=max_events,
        seeds=seeds,
        json_path=json_,
        ranks_path=ranks,
        report_dir=report,
        warm_up=warm_up,
        batch_events=batch_events,
        click_window_seconds=click_window_seconds,
        label_delay_seconds=label_delay_seconds,
        judge_after=max(judge_after, start.learnt if start else 0.0),
        judge_queries=judge_queries,
        judge_queries_every=judge_queries_every,
        start=start,
        strict=strict,
    )
