"""Scenario `pictures`: the gain in NDCG@20 from vectors of another modality, informative and random.

A generated catalogue: each item belongs to one of `GROUPS` groups, and a shopper's session mostly stays within one.
Titles are drawn from the same words for every group, so texts do not reveal it. The vectors:

- `image` point to the item's group, with as much noise: they are informative;
- `half` are the same, for every other item only;
- `noise` and `short_noise` (`SHORT` numbers) are random, and must cost nothing.

Half of the items appear only in the second half of the stream, so that there are always new items to rank. Every event
is judged before it is learnt. `data` and `data_noise` are the same on a shop's own first events.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.measure import Measurement, data_settings
from peft_adapters.learning.batches import Positive
from peft_adapters.ranking.modalities import CatalogueItem, item_vectors
from peft_adapters.settings import EncoderSettings, LearnerSettings
from services.lab.offline.inputs import new_learner, read_catalogue
from services.lab.offline.judging import Ranks, figures
from services.lab.offline.stream import read_stream

TARGET = 0.99  # of the NDCG@20 without vectors, for random vectors
SEEDS = 3
ITEMS, GROUPS, USERS = 600, 30, 400
EVENTS, BATCH_EVENTS, SESSION_EVENTS = 4_000, 128, 4
LENGTH, SHORT = 512, 16
STAY = 0.8  # probability that the next item of a session is of its group
_WORDS = (
    "amber arch bay birch bold brook calm cedar clay cliff coral crisp dale dawn deep dusk east elm fern field flint "
    "frost glade grand harbour hazel hill iron ivory jade lake leaf lime linen loft maple mist moss north oak ocean "
    "olive opal pearl pine plain plum quartz quiet rain reed ridge river rose rust sage sand shore silver sky slate "
    "snow south spruce star stone storm sun teal thorn tide timber vale velvet west wild willow wind wood"
)


class Event(NamedTuple):
    """An event as the learner sees it."""

    user_id: str
    session_id: str
    item_id: str
    ts: int
    weight: float = 1.0
    query: str | None = None


def run(data: Path) -> Measurement:
    """Measure on a generated catalogue and stream per seed, and on the first events of `data`."""
    torch.set_num_threads(1)
    encoder = EncoderSettings()
    rounds = []
    for seed in range(SEEDS):
        cases = [generated(seed), _from_data(data, seed)]
        rounds.append(
            {name: replayed(encoder, items, stream, seed) for stream, kinds in cases for name, items in kinds.items()}
        )
    pairs = (("noise", "without"), ("short_noise", "without"), ("data_noise", "data"), ("data_short_noise", "data"))
    return Measurement(
        unit="times the NDCG@20 without vectors, with noise, where it costs most",
        value=min(fmean(round_[noise] / round_[without] for round_ in rounds) for noise, without in pairs),
        target=TARGET,
        settings={
            **data_settings(data),
            "items": ITEMS,
            "groups": GROUPS,
            "events": EVENTS,
            "batch_events": BATCH_EVENTS,
            "vector_length": LENGTH,
            "short_vector_length": SHORT,
        },
        rounds=rounds,
    )


def generated(
    seed: int, *, events: int = EVENTS, items: int = ITEMS, groups: int = GROUPS
) -> tuple[Sequence[Positive], dict[str, Sequence[CatalogueItem]]]:
    """Return a generated stream, and its catalogue by the kind of vectors."""
    rng = np.random.default_rng(seed)
    group = rng.integers(groups, size=items)
    stream = _sessions(rng, group, events)
    titles = [(f"item-{row}", " ".join(rng.choice(_WORDS.split(), size=4))) for row in range(items)]
    directions = rng.standard_normal((groups, LENGTH))[group]
    image = _pictured(titles, directions + rng.standard_normal((items, LENGTH)))
    return stream, {
        "without": titles,
        "image": image,
        "half": [*image[::2], *titles[1::2]],
        "noise": _pictured(titles, rng.standard_normal((items, LENGTH))),
        "short_noise": _pictured(titles, rng.standard_normal((items, SHORT))),
    }


def _from_data(data: Path, seed: int) -> tuple[Sequence[Positive], dict[str, Sequence[CatalogueItem]]]:
    items = [item[:2] for item in read_catalogue(data / "items.csv.gz")]
    known = {item_id for item_id, _ in items}
    stream = read_stream(data / "events.csv.gz", known, max_events=EVENTS, click_window_seconds=600.0).examples
    rng = np.random.default_rng(seed)
    return stream, {
        "data": items,
        "data_noise": _pictured(items, rng.standard_normal((len(items), LENGTH))),
        "data_short_noise": _pictured(items, rng.standard_normal((len(items), SHORT))),
    }


def _sessions(rng: np.random.Generator, group: npt.NDArray[np.int64], events: int) -> list[Event]:
    """Return sessions that mostly stay within one group; half of the items appear only in the stream's second half."""
    stream: list[Event] = []
    of_group = [np.flatnonzero(group == number) for number in range(group.max() + 1)]
    while len(stream) < events:
        user, begin = rng.integers(USERS), len(stream)
        known = len(group) // 2 if begin < events / 2 else len(group)
        rows = of_group[rng.integers(len(of_group))]
        rows = rows[rows < known]
        for _ in range(SESSION_EVENTS):
            item = rng.choice(rows) if len(rows) and rng.random() < STAY else rng.integers(known)
            stream.append(Event(f"user-{user}", f"session-{begin}", f"item-{item}", 60_000 * len(stream)))
    return stream[:events]


def _pictured(items: Sequence[tuple[str, str]], vectors: npt.NDArray[np.float64]) -> list[CatalogueItem]:
    return [(*item, item_vectors({"image": vector.tolist()})) for item, vector in zip(items, vectors, strict=True)]


def replayed(
    encoder: EncoderSettings,
    items: Sequence[CatalogueItem],
    stream: Sequence[Positive],
    seed: int,
    *,
    batch_events: int = BATCH_EVENTS,
) -> float:
    """Return NDCG@20 over a stream."""
    learner = new_learner(encoder, LearnerSettings(seed=seed, judged_items=2**62))
    learner.add_items(items)
    ranks = Ranks()
    for start in range(0, len(stream), batch_events):
        batch = learner.observe(stream[start : start + batch_events])
        ranks.add(learner.judge(batch), batch.items, learner.ranker.counters.events > 0)
        learner.learn(batch)
    return figures(ranks)["ndcg20"]
