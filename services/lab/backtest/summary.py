"""Summary of a backtest as JSON values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from services.lab.backtest.replay import Data, Outcome
from services.lab.backtest.significance import differences, paired_differences
from services.lab.offline.judging import Flags, figures, interval
from services.lab.offline.slices import DESCRIPTIONS, slice_figures, slices
from services.settings import Settings

QUERY_FIGURES = ("ndcg20", "recall20")
Outcomes = Mapping[str, Sequence[Outcome]]  # by policy, one per seed


def summary(settings: Settings, data: Data, outcomes: Outcomes) -> dict[str, Any]:
    """Return figures by policy, gains of `live` (or the first policy) over the others, both by slice, and speeds."""
    reference = "live" if "live" in outcomes else next(iter(outcomes))
    ranks = {policy: [outcome.ranks for outcome in runs] for policy, runs in outcomes.items()}
    replayed = len(data.stream.examples)
    parts = {name: flags[data.first_judged :] for name, flags in slices(data.stream, data.warm_up).items()}
    parts = {name: flags for name, flags in parts.items() if flags.any()}
    return {
        "replayed_events": replayed,
        "judged_events": replayed - data.first_judged,
        "first_judged_event": data.first_judged,
        "shown_lists": len(data.stream.lists),
        "warm_up_events": len(data.warm_up),
        "catalogue": len(data.items),
        "batch_events": data.batch_events,
        "label_delay_seconds": data.label_delay_seconds,
        "encoder": settings.encoder.model_dump(mode="json", exclude={"cache_dir", "cache_max_bytes"}),
        "learner": settings.learner.model_dump(mode="json"),
        "policies": {policy: _figures(runs, parts) for policy, runs in outcomes.items()},
        "slices": {name: {"events": int(flags.sum()), "about": DESCRIPTIONS[name]} for name, flags in parts.items()},
        "gains_of": reference,
        "gains": differences(ranks, reference),
        "gains_by_slice": {name: differences(ranks, reference, where=flags) for name, flags in parts.items()},
        "judged_queries": _judged_queries(data, outcomes, reference),
        "runs": [
            {"policy": policy, "seed": seed} | _speed(outcome, replayed)
            for policy, runs in outcomes.items()
            for seed, outcome in enumerate(runs)
        ],
    }


def _judged_queries(data: Data, outcomes: Outcomes, reference: str) -> dict[str, Any] | None:
    """Return figures of the judged queries and gains of the reference, all and those not in the stream; or None."""
    if not data.judged_queries:
        return None
    searched = {(example.query or "").casefold() for example in data.stream.examples}
    unseen = np.array([query.query.casefold() not in searched for query in data.judged_queries])
    groups = {"all": np.ones_like(unseen), "unseen": unseen, "in_stream": ~unseen}
    per_query = {  # [figures, queries] at the end of the stream, mean over seeds
        policy: np.mean([outcome.queries[-1].figures() for outcome in runs], axis=0)
        for policy, runs in outcomes.items()
    }
    return {
        name: {
            "queries": int(flags.sum()),
            "policies": {policy: _query_figures(runs, flags) for policy, runs in outcomes.items()},
            "gains": paired_differences(
                {policy: values[:, flags] for policy, values in per_query.items()}, reference, figures=QUERY_FIGURES
            ),
        }
        for name, flags in groups.items()
        if flags.any() and (name == "all" or not flags.all())
    } | {"over_time": _queries_over_time(outcomes)}


def _query_figures(outcomes: Sequence[Outcome], flags: Flags) -> dict[str, Any]:
    means = [outcome.queries[-1].figures()[:, flags].mean(axis=1).tolist() for outcome in outcomes]
    return {
        figure: interval([values[place] for values in means]) | {"seeds": [values[place] for values in means]}
        for place, figure in enumerate(QUERY_FIGURES)
    }


def _queries_over_time(outcomes: Outcomes) -> list[dict[str, Any]]:
    """Return, for each time that all queries were judged, the events before and each policy's means over seeds."""
    first = next(iter(outcomes.values()))[0]
    times = []
    for place, ranks in enumerate(first.queries):
        means = {
            policy: np.mean([outcome.queries[place].figures().mean(axis=1) for outcome in runs], axis=0).tolist()
            for policy, runs in outcomes.items()
        }
        named = {policy: dict(zip(QUERY_FIGURES, values, strict=True)) for policy, values in means.items()}
        times.append({"events": ranks.events, "policies": named})
    return times


def _figures(outcomes: Sequence[Outcome], parts: Mapping[str, Flags]) -> dict[str, Any]:
    per_seed = [figures(outcome.ranks) | slice_figures(outcome.ranks, parts) for outcome in outcomes]
    return {
        name: interval([values[name] for values in per_seed]) | {"seeds": [values[name] for values in per_seed]}
        for name in per_seed[0]
    }


def _speed(outcome: Outcome, replayed: int) -> dict[str, float | int | None]:
    """Return the speed of a run; its process had one thread, and may have shared the machine with other runs."""
    learning = outcome.learn_seconds
    return {
        "events_learnt": outcome.events_learnt,
        "learn_seconds": learning,
        "events_learnt_per_second": outcome.events_learnt / learning if learning > 0 else None,
        "seconds": outcome.seconds,
        "events_per_second": replayed / outcome.seconds,
        "publications": outcome.publications,
    }
