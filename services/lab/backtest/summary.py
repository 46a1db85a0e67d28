"""Summary of a backtest as JSON values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from services.lab.backtest.replay import Data, Outcome
from services.lab.backtest.significance import differences
from services.lab.offline.judging import Flags, figures, interval
from services.lab.offline.slices import DESCRIPTIONS, slice_figures, slices
from services.settings import Settings

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
        "runs": [
            {"policy": policy, "seed": seed} | _speed(outcome, replayed)
            for policy, runs in outcomes.items()
            for seed, outcome in enumerate(runs)
        ],
    }


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
