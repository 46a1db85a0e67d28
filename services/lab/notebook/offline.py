"""Learning and backtesting in process, from files or data frames: what a notebook needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_adapters.learning.learner import Learner
from peft_adapters.settings import EncoderSettings, LearnerSettings
from services.client.arguments import require_count, require_type
from services.lab.backtest.command import DEFAULT_BATCH_EVENTS, compare
from services.lab.backtest.policies import parse_policies
from services.lab.backtest.replay import Outcome
from services.lab.backtest.run import run_policy
from services.lab.backtest.workers import Job, Run, run_all
from services.lab.fit import passes
from services.lab.notebook.tables import Table, as_file
from services.lab.offline.inputs import new_learner, read_catalogue
from services.lab.offline.stream import read_stream
from services.settings import Settings, load_settings

if TYPE_CHECKING:
    import pandas as pd

DEFAULT_POLICIES = ("live", "live-without-lora", "frozen", "popularity", "cooccurrence")
CLICK_WINDOW_SECONDS = 600.0


def learn(
    items: Table,
    events: Table,
    *,
    learner: Learner | None = None,
    encoder: EncoderSettings | None = None,
    settings: LearnerSettings | None = None,
    max_events: int | None = None,
    batch_events: int = DEFAULT_BATCH_EVENTS,
) -> Learner:
    """Learn a stream of events in time order, micro-batch by micro-batch, and return the learner.

    Args:
        items: the catalogue, a file or a data frame with `item_id`, `title` and, where there, `description`,
            `category`, `brand`, `price`.
        events: clicks, purchases and impressions, a file or a data frame with `user_id`, `event_type`, `item_id` and a
            time (`timestamp`, `ts` or `seq`).
        learner: a learner to continue with; None makes a new one.
        encoder: settings of the encoder of a new learner; None takes the environment's (`HEADWATER_ENCODER__...`).
        settings: settings of a new learner; None takes the environment's (`HEADWATER_LEARNER__...`).
        max_events: number of clicks and purchases after which the stream ends; None learns all.
        batch_events: number of records per micro-batch.

    Raises:
        TypeError: an argument is of another class.
        ValueError: a number is below 1.
        InputError: a table cannot be read, or a row is invalid.

    >>> learner = learn("items.csv", "events.csv")  # doctest: +SKIP
    """
    if learner is not None:
        require_type("learner", learner, Learner, remedy="leave it out for a new one")
    if encoder is not None:
        require_type("encoder", encoder, EncoderSettings, remedy="write headwater.EncoderSettings(model=...)")
    if settings is not None:
        require_type("settings", settings, LearnerSettings, remedy="write headwater.LearnerSettings(...)")
    if max_events is not None:
        require_count("max_events", max_events, remedy="leave it out to learn all events")
    require_count("batch_events", batch_events, remedy=f"leave it out for {DEFAULT_BATCH_EVENTS}")
    with as_file(items, "items") as item_path, as_file(events, "events") as event_path:
        catalogue = read_catalogue(item_path)
        known = {item[0] for item in catalogue}
        stream = read_stream(event_path, known, max_events=max_events, click_window_seconds=CLICK_WINDOW_SECONDS)
    if learner is None:
        defaults = load_settings()
        learner = new_learner(encoder or defaults.encoder, settings or defaults.learner)
    learner.add_items(catalogue)
    passes.learn(learner, stream, batch_events=batch_events, step=lambda events: None)
    return learner


def backtest(
    items: Table,
    events: Table,
    *,
    policies: Sequence[str] = DEFAULT_POLICIES,
    seeds: int = 3,
    max_events: int | None = None,
    settings: Settings | None = None,
    processes: int = 1,
    batch_events: int = DEFAULT_BATCH_EVENTS,
    warm_up: Path | None = None,
    click_window_seconds: float = CLICK_WINDOW_SECONDS,
    label_delay_seconds: float = 0.0,
    judge_after: float = 0.0,
    judge_queries: Path | None = None,
    judge_queries_every: int | None = None,
    strict: bool = False,
) -> pd.DataFrame:
    """Judge every event before it is learnt, for several policies, and return one row per policy.

    Columns are the figures of `headwater backtest` (`hr20`, `ndcg20`, `mrr`, `auc` ...) and, with two seeds or more,
    the half-width of each one's 95 % interval (`hr20_ci95` ...). The whole report is in `frame.attrs["report"]`.

    Args:
        items: the catalogue, a file or a data frame; columns as for `learn`.
        events: the stream of events, a file or a data frame; columns as for `learn`.
        policies: names of the policies to compare, as `headwater backtest --policies` takes them.
        seeds: number of runs per policy.
        max_events: number of clicks and purchases after which the stream ends; None reads it all.
        settings: settings of encoder and learner; None takes the environment's (`HEADWATER_...`).
        processes: 1 runs in this process; more starts worker processes, one per core at most.
        batch_events: number of records per micro-batch.
        warm_up: file of users' earlier items, learnt and never judged.
        click_window_seconds: event time after which a shown list is learnt.
        label_delay_seconds: event time between an event and when it may be learnt.
        judge_after: share of the stream before the first judged event.
        judge_queries: file of queries with graded items, never learnt and judged at the end.
        judge_queries_every: number of events between two judgements of these queries; None judges at the end alone.
        strict: whether an invalid row is an error; otherwise such rows are named on standard error and skipped.

    Raises:
        TypeError: an argument is of another class.
        ValueError: a number is below 1, or no policy is named.
        SettingsError: a policy is not known.
        InputError: a table cannot be read or, with `strict`, a row is invalid.
        ImportError: pandas is not installed.
    """
    import pandas as pd

    if isinstance(policies, str):
        raise TypeError(f"`policies` must be a list of names, got the string {policies!r}; write [{policies!r}]")
    if not policies:
        raise ValueError(f"`policies` must name a policy, got none; leave it out for {', '.join(DEFAULT_POLICIES)}")
    if settings is not None:
        require_type("settings", settings, Settings, remedy="write headwater.load_settings(learner={...})")
    if max_events is not None:
        require_count("max_events", max_events, remedy="leave it out to read all events")
    require_count("seeds", seeds, remedy="leave it out for 3")
    require_count("processes", processes, remedy="leave it out to run in this process")
    require_count("batch_events", batch_events, remedy=f"leave it out for {DEFAULT_BATCH_EVENTS}")
    parsed = parse_policies(policies)
    with as_file(items, "items") as item_path, as_file(events, "events") as event_path:
        report, _ = compare(
            settings or load_settings(),
            items=item_path,
            events=event_path,
            policies=parsed,
            seeds=seeds,
            max_events=max_events,
            warm_up=warm_up,
            batch_events=batch_events,
            click_window_seconds=click_window_seconds,
            label_delay_seconds=label_delay_seconds,
            judge_after=judge_after,
            judge_queries=judge_queries,
            judge_queries_every=judge_queries_every,
            strict=strict,
            run=_run_here if processes == 1 else run_all,
        )
    frame = pd.DataFrame.from_dict(
        {policy: _columns(figures) for policy, figures in report["policies"].items()}, orient="index"
    )
    frame.index.name, frame.attrs["report"] = "policy", report
    return frame


def _run_here(job: Job, runs: Sequence[Run]) -> Mapping[Run, Outcome]:
    """Carry out the runs one after the other in this process."""
    return {
        run: run_policy(
            run.policy,
            job.data,
            encoder=job.encoder,
            learner=job.learner.model_copy(update={"seed": run.seed}),
            start=job.start,
            progress=lambda events: None,
        )
        for run in runs
    }


def _columns(figures: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    means = {name: values["mean"] for name, values in figures.items()}
    intervals = {f"{name}_ci95": values["ci95"] for name, values in figures.items() if values["ci95"] is not None}
    return means | intervals
