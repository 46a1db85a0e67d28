"""`python -m benchmarks.drift DATA`: how many events it takes to recover from a swap of buyers, handled and not.

At the middle of a stream, or after `--swap-after` events, every item of one half of the catalogue changes places with
one of the other half: who bought the one buys the other from then on. Texts stay, so that nothing of what was learnt of
sequences, of shoppers and of popularity holds any more. The halves are the two largest categories, where items have
any; else the catalogue is cut in two, by popularity so that pairs are bought about as often.

NDCG@20 of each event is judged before it is learnt. What was lost is its mean over the last `WINDOW` events before the
swap less that over the first `WINDOW` after it; recovered is when a mean over `WINDOW` events has regained 90 % of it.
The same stream without the swap says how far that mean moves by itself: it is taken off first.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.provenance import code, machine
from peft_adapters.learning.drift import DriftMonitor
from peft_adapters.learning.evaluation import PrequentialEvaluator
from peft_adapters.ranking.modalities import CatalogueItem
from peft_adapters.settings import DriftSettings, EncoderSettings, LearnerSettings
from services.lab.offline.inputs import new_learner, read_catalogue
from services.lab.offline.judging import CUTOFF, Ranks
from services.lab.offline.stream import read_stream
from streams.examples import Example

REGAINED = 0.9
WINDOW = 1_000

Floats = npt.NDArray[np.float64]


def main(arguments: list[str]) -> int:
    """Replay DATA's events with the swap and without, drift handled and not; print figures as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.drift", description=__doc__)
    parser.add_argument("data", type=Path, help="directory with items.csv.gz and events.csv.gz")
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--swap-after", type=int, metavar="N", help="events before the swap; half of all if not given")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--batch-events", type=int, default=128)
    parser.add_argument("--without-lora", action="store_true", help="leave the adapter off, which is faster")
    parser.add_argument("--rate-factor", type=float, default=DriftSettings().rate_factor)
    parser.add_argument("--raised-batches", type=int, default=DriftSettings().raised_batches)
    parser.add_argument("--forget-halvings", type=int, default=DriftSettings().forget_halvings)
    parser.add_argument("--json", type=Path, metavar="OUT", help="write figures there too")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    items = read_catalogue(options.data / "items.csv.gz")
    stream = read_stream(
        options.data / "events.csv.gz",
        {item[0] for item in items},
        max_events=options.events,
        click_window_seconds=600.0,
    ).examples
    handled = DriftSettings(
        rate_factor=options.rate_factor,
        raised_batches=options.raised_batches,
        forget_halvings=options.forget_halvings,
    )
    result: dict[str, Any] = {
        "data": options.data.name,
        "events": len(stream),
        "batch_events": options.batch_events,
        "lora": not options.without_lora,
        "handled": handled.model_dump(),
        "seeds": [_of_seed(items, stream, seed, handled, options) for seed in range(options.seeds)],
        "machine": machine(),
        "code": code(),
    }
    text = json.dumps(result, indent=2)
    sys.stdout.write(text + "\n")
    if options.json:
        options.json.write_text(text + "\n")
    return 0


def _of_seed(
    items: Sequence[CatalogueItem], stream: Sequence[Example], seed: int, handled: DriftSettings, options: Any
) -> dict[str, Any]:
    middle = options.swap_after or len(stream) // 2
    swapped = swap_buyers(stream, middle, seed)
    learner = LearnerSettings(seed=seed, judged_items=2**62, lora=not options.without_lora)
    ndcg = {
        name: _replayed(items, events, learner, settings, options.batch_events)
        for name, events, settings in (
            ("undisturbed", stream, handled.model_copy(update={"enabled": False})),
            ("off", swapped, handled.model_copy(update={"enabled": False})),
            ("on", swapped, handled),
        )
    }
    undisturbed, alarms = ndcg.pop("undisturbed")[0], ndcg["on"][1]
    return {"seed": seed, "alarms_after_events": [alarm - middle for alarm in alarms]} | {
        name: recovery(own, undisturbed, middle) for name, (own, _) in ndcg.items()
    }


def swap_buyers(stream: Sequence[Example], middle: int, seed: int) -> list[Example]:
    """The stream, with items of two halves of the catalogue in each other's places from `middle` on."""
    bought = [item for item, _ in Counter(example.item_id for example in stream).most_common()]
    rng = np.random.default_rng(seed)
    places: dict[str, str] = {}
    for one, other in zip(bought[::2], bought[1::2], strict=False):  # neighbours in popularity
        places |= {one: other, other: one}
    # One swap of neighbours leaves each half what it was in all but name: go on from there to a partner near by.
    halves = [[pair[rng.integers(2)] for pair in zip(bought[::2], bought[1::2], strict=False)]]
    halves.append([places[item] for item in halves[0]])
    rolled = halves[1][1:] + halves[1][:1]
    places = dict(zip(halves[0], rolled, strict=True)) | dict(zip(rolled, halves[0], strict=True))
    return [
        replace(example, item_id=places.get(example.item_id, example.item_id)) if index >= middle else example
        for index, example in enumerate(stream)
    ]


def _replayed(
    items: Sequence[CatalogueItem],
    stream: Sequence[Example],
    settings: LearnerSettings,
    drift: DriftSettings,
    batch_events: int,
) -> tuple[Floats, list[int]]:
    """NDCG@20 of each event, and after how many events there were alarms."""
    learner, watch, prequential = new_learner(EncoderSettings(), settings), DriftMonitor(drift), PrequentialEvaluator()
    learner.add_items(items)
    ranks, alarms = Ranks(), []
    for start in range(0, len(stream), batch_events):
        batch = learner.observe(stream[start : start + batch_events])
        scores = learner.judge(batch)
        ranks.add(scores, batch.items, learner.ranker.counters.events > 0)
        seen = watch.update(prequential.update(batch, scores))
        if seen.alarms:
            alarms.append(start + len(batch))
        learner.adapt_to_drift(watch.rate_factor, halvings=seen.halvings)
        learner.learn(batch)
    rank = np.array(ranks.rank)
    return np.where(rank <= CUTOFF, 1 / np.log2(rank + 1), 0.0), alarms


def recovery(ndcg: Floats, undisturbed: Floats, middle: int) -> dict[str, float | None]:
    """NDCG@20 before the swap and right after it, and the events until 90 % of the difference is regained.

    Args:
        ndcg: of each event, with the swap.
        undisturbed: the same without.
        middle: events before the swap.
    """
    gap = np.convolve(undisturbed - ndcg, np.full(WINDOW, 1 / WINDOW), mode="valid")  # mean over each WINDOW events
    lost = float(gap[middle])
    after = gap[middle:]
    back = np.flatnonzero(after <= (1 - REGAINED) * lost)
    return {
        "before": float(ndcg[middle - WINDOW : middle].mean()),
        "right_after": float(ndcg[middle : middle + WINDOW].mean()),
        "lost": lost,
        "left_at_the_end": float(after[-1]),
        "recovered_after_events": int(back[0]) + WINDOW if len(back) else None,
        "mean_after": float(ndcg[middle:].mean()),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
