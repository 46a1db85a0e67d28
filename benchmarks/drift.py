"""Scenario `drift`: the events it takes to recover from a swap of buyers, with drift handling on and off.

In the middle of a stream, or after `swap_after` events, every item of one half of the catalogue changes places with an
item of the other half: shoppers who bought the first buy the second from then on. Texts stay, so everything learnt of
sequences, shoppers and popularity is wrong. Items are paired with neighbours in popularity, so that both items of a
pair are bought about as often.

NDCG@20 of each event is judged before it is learnt. The loss is its mean over the last `WINDOW` events before the swap
minus its mean over the first `WINDOW` after it. The stream has recovered when a mean over `WINDOW` events has regained
90 % of the loss. The same stream without the swap shows how far that mean moves by itself, which is subtracted first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.measure import Measurement, data_settings
from peft_adapters.learning.drift import DriftMonitor, respond_to_drift
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


def run(
    data: Path,
    *,
    events: int = 20_000,
    swap_after: int = 0,
    seeds: int = 1,
    batch_events: int = 128,
    lora: bool = True,
    rate_factor: float = DriftSettings().rate_factor,
    raised_batches: int = DriftSettings().raised_batches,
    forget_halvings: int = DriftSettings().forget_halvings,
) -> Measurement:
    """Replay the events of `data` with the swap and without, drift handling on and off.

    Args:
        data: a directory with items.csv.gz and events.csv.gz.
        events: the number of events replayed.
        swap_after: the number of events before the swap; 0 is half of all.
        seeds: the number of runs, each with another swap.
        batch_events: the events of a micro-batch.
        lora: whether LoRA learns; without it the scenario is several times faster.
        rate_factor: the setting `drift.rate_factor`.
        raised_batches: the setting `drift.raised_batches`.
        forget_halvings: the setting `drift.forget_halvings`.
    """
    torch.set_num_threads(1)
    items = read_catalogue(data / "items.csv.gz")
    known = {item[0] for item in items}
    stream = read_stream(data / "events.csv.gz", known, max_events=events, click_window_seconds=600.0).examples
    handling = DriftSettings(rate_factor=rate_factor, raised_batches=raised_batches, forget_halvings=forget_halvings)
    replay = partial(_replay, items, handling=handling, lora=lora, batch_events=batch_events)
    rounds = [_round(stream, seed, swap_after or len(stream) // 2, replay) for seed in range(seeds)]
    return Measurement(
        unit="times the mean NDCG@20 after the swap without drift handling",
        value=fmean(float(round_["ratio_mean_ndcg20_after"] or 0.0) for round_ in rounds),
        target=None,
        settings={
            **data_settings(data),
            "events": len(stream),
            "swap_after": swap_after or len(stream) // 2,
            "batch_events": batch_events,
            "lora": lora,
            "drift": handling.model_dump(),
            "seeds": seeds,
        },
        rounds=rounds,
    )


def _round(
    stream: Sequence[Example], seed: int, middle: int, replay: Callable[..., tuple[Floats, list[int]]]
) -> dict[str, float | None]:
    swapped = swap_buyers(stream, middle, seed)
    undisturbed, _ = replay(stream, seed=seed, handled=False)
    off, _ = replay(swapped, seed=seed, handled=False)
    on, alarms = replay(swapped, seed=seed, handled=True)
    figures: dict[str, float | None] = {"seed": seed}
    for name, ndcg in (("off", off), ("on", on)):
        figures |= {f"{name}_{figure}": value for figure, value in recovery(ndcg, undisturbed, middle).items()}
    after = [alarm - middle for alarm in alarms if alarm > middle]
    figures["first_alarm_after_events"] = after[0] if after else None
    figures["ratio_mean_ndcg20_after"] = float(on[middle:].mean() / off[middle:].mean())
    return figures


def swap_buyers(stream: Sequence[Example], middle: int, seed: int) -> list[Example]:
    """Return the stream with the items of two halves of the catalogue exchanged from event `middle` on."""
    bought = [item for item, _ in Counter(example.item_id for example in stream).most_common()]
    rng = np.random.default_rng(seed)
    places: dict[str, str] = {}
    for item, neighbour in zip(bought[::2], bought[1::2], strict=False):  # neighbours in popularity
        places |= {item: neighbour, neighbour: item}
    # Exchanging neighbours alone would only rename the halves: move on by one pair, to a partner of similar popularity.
    halves = [[pair[rng.integers(2)] for pair in zip(bought[::2], bought[1::2], strict=False)]]
    halves.append([places[item] for item in halves[0]])
    rolled = halves[1][1:] + halves[1][:1]
    places = dict(zip(halves[0], rolled, strict=True)) | dict(zip(rolled, halves[0], strict=True))
    return [
        replace(example, item_id=places.get(example.item_id, example.item_id)) if index >= middle else example
        for index, example in enumerate(stream)
    ]


def _replay(
    items: Sequence[CatalogueItem],
    stream: Sequence[Example],
    *,
    seed: int,
    handled: bool,
    handling: DriftSettings,
    lora: bool,
    batch_events: int,
) -> tuple[Floats, list[int]]:
    """Return NDCG@20 of each event, and the numbers of events after which a drift alarm was raised."""
    learner = new_learner(EncoderSettings(), LearnerSettings(seed=seed, judged_items=2**62, lora=lora))
    learner.add_items(items)
    monitor = DriftMonitor(handling.model_copy(update={"enabled": handled}))
    prequential, ranks, alarms = PrequentialEvaluator(), Ranks(), []
    for start in range(0, len(stream), batch_events):
        batch = learner.observe(stream[start : start + batch_events])
        scores = learner.judge(batch)
        ranks.add(scores, batch.items, learner.ranker.counters.events > 0)
        drift = respond_to_drift(learner, monitor, batch, prequential.update(batch, scores))
        if drift.alarms:
            alarms.append(start + len(batch))
        learner.learn(batch)
    rank = np.array(ranks.rank)
    return np.where(rank <= CUTOFF, 1 / np.log2(rank + 1), 0.0), alarms


def recovery(ndcg: Floats, undisturbed: Floats, middle: int) -> dict[str, float | None]:
    """Return NDCG@20 before and after the swap, and the events until 90 % of the difference is regained.

    Args:
        ndcg: NDCG@20 of each event, with the swap.
        undisturbed: NDCG@20 of each event, without the swap.
        middle: the number of events before the swap.
    """
    gap = np.convolve(undisturbed - ndcg, np.full(WINDOW, 1 / WINDOW), mode="valid")  # mean over each WINDOW events
    lost = float(gap[middle])
    after = gap[middle:]
    back = np.flatnonzero(after <= (1 - REGAINED) * lost)
    return {
        "ndcg20_before": float(ndcg[middle - WINDOW : middle].mean()),
        "ndcg20_right_after": float(ndcg[middle : middle + WINDOW].mean()),
        "lost": lost,
        "left_at_the_end": float(after[-1]),
        "recovered_after_events": int(back[0]) + WINDOW if len(back) else None,
        "mean_ndcg20_after": float(ndcg[middle:].mean()),
    }
