"""Significance of the difference between two policies: a paired bootstrap over events (Efron 1979)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np

from services.lab.offline.judging import Flags, Floats, Ranks, hits, ndcg, ranks_of

RESAMPLES = 2_000
_SEED = 20


class Difference(TypedDict):
    """The difference between two policies in one figure, on the same events.

    `relative` is the difference over the other policy's figure, None where that is 0; `low` and `high` bound the 95 %
    interval.
    """

    difference: float
    low: float
    high: float
    relative: float | None


def differences(
    results: Mapping[str, Sequence[Ranks]],
    reference: str,
    *,
    where: Flags | None = None,
    resamples: int = RESAMPLES,
) -> dict[str, dict[str, Difference]]:
    """Return by other policy how much better the reference is in NDCG@20 and HR@20.

    Args:
        results: ranks by policy, one run per seed, all of the same events.
        reference: the policy that the others are compared with.
        where: [events] whether each event is compared; None compares all.
        resamples: number of resamples of the bootstrap.
    """
    kept = slice(None) if where is None else where
    return paired_differences(
        {name: _per_event(runs)[:, kept] for name, runs in results.items()},
        reference,
        figures=("ndcg20", "hr20"),
        resamples=resamples,
    )


def paired_differences(
    results: Mapping[str, Floats], reference: str, *, figures: Sequence[str], resamples: int = RESAMPLES
) -> dict[str, dict[str, Difference]]:
    """Return by other policy how much better the reference is in each figure.

    Args:
        results: [figures, events] figures of the same events, by policy.
        reference: the policy that the others are compared with.
        figures: names of the rows.
        resamples: number of resamples of the bootstrap.
    """
    others = {name: values for name, values in results.items() if name != reference}
    if not others:
        return {}
    pairs = np.concatenate([results[reference] - other for other in others.values()])  # [figures of each other, events]
    low, high = paired_interval(pairs, resamples=resamples)
    compared: dict[str, dict[str, Difference]] = {}
    for place, (name, other) in enumerate(others.items()):
        compared[name] = {}
        for row, figure in enumerate(figures):
            column, mean = len(figures) * place + row, float(other[row].mean())
            gain = float(pairs[column].mean())
            compared[name][figure] = Difference(
                difference=gain,
                low=float(low[column]),
                high=float(high[column]),
                relative=gain / mean if mean > 0 else None,
            )
    return compared


def paired_interval(pairs: Floats, *, resamples: int = RESAMPLES) -> tuple[Floats, Floats]:
    """Return both ends of the 95 % percentile intervals of the means of rows [figures, events].

    A resample draws the same events for every row; a second call draws the same resamples.
    """
    generator = np.random.default_rng(_SEED)
    events = pairs.shape[1]
    means = np.empty((resamples, len(pairs)))
    for resample in range(resamples):
        drawn = np.bincount(generator.integers(events, size=events), minlength=events)
        means[resample] = pairs @ drawn / events
    low, high = np.quantile(means, (0.025, 0.975), axis=0)
    return low, high


def _per_event(runs: Sequence[Ranks]) -> Floats:
    """Return NDCG@20 and HR@20 of each event, averaged over seeds, [2, events]."""
    per_seed = [np.stack([ndcg(rank), hits(rank)]) for rank in map(ranks_of, runs)]
    return np.mean(per_seed, axis=0)  # type: ignore[no-any-return]
