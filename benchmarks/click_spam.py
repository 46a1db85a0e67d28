"""Scenario `click-spam`: the effect of click spam on an item's rank that the guard keeps out, and the guard's cost.

A real stream is replayed through the learner as in a backtest. In its second half, clicks for one item are mixed in, a
twentieth of the honest events there:

- `few`: from three users, in the first fifth of it;
- `many`: from as many users as clicks, in the first fifth of it;
- `spread`: from fifty users, all the time.

The item has many, some or few events so far, another one with each seed. The effect is the change of its mean rank in
the whole catalogue, over the contexts of the honest events from then on, against the replay without spam. Micro-batches
are cut by honest events, and spam is added on top: other cuts would change what is learnt, and ranks with it.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean

import numpy as np
import torch

from benchmarks.measure import Measurement, data_settings
from peft_adapters.ranking.modalities import CatalogueItem
from peft_adapters.settings import EncoderSettings, LearnerSettings
from services.lab.offline.inputs import new_learner, read_catalogue
from services.lab.offline.judging import CUTOFF
from services.lab.offline.stream import read_stream
from streams.examples import Example
from streams.guard import Guard
from streams.guard_settings import GuardSettings

TARGET = 0.5
SEEDS = 3
EVENTS = 4_000
BATCH_EVENTS = 256
SPAM_SHARE = 0.05
KINDS = ("few", "many", "spread")
POPULARITY = (0.1, 0.5, 0.9)  # relative places of the spammed items among the items sold so far, most popular first
_USERS = {"few": 3, "spread": 50}
_SPAM = "spam-"

Catalogue = Sequence[CatalogueItem]


@dataclass(slots=True)
class Replayed:
    """The result of a replay.

    Attributes:
        rank: rank of the item of each honest event, by event id.
        watched: ranks of the watched items in the contexts of the honest events of the second half.
        downweighted: number of events that counted less or not at all.
    """

    rank: dict[str, int] = field(default_factory=dict)
    watched: dict[str, list[int]] = field(default_factory=dict)
    downweighted: int = 0


def run(data: Path) -> Measurement:
    """Replay the events of `data` for each seed and kind of spam, with and without spam, with and without the guard."""
    torch.set_num_threads(1)
    items = read_catalogue(data / "items.csv.gz")
    known = {item[0] for item in items}
    stream = read_stream(data / "events.csv.gz", known, max_events=EVENTS, click_window_seconds=600.0)
    rounds = [_round(items, stream.examples, seed) for seed in range(SEEDS)]
    return Measurement(
        unit="of what spam moves an item's mean rank is kept out, at worst",
        value=min(round_[f"{kind}_kept_out"] for round_ in rounds for kind in KINDS),
        target=TARGET,
        settings={
            "guard": GuardSettings().model_dump(),
            "learner": LearnerSettings().model_dump(mode="json"),
            "batch_events": BATCH_EVENTS,
            "events": len(stream.examples),
            "spam_share": SPAM_SHARE,
            **data_settings(data),
        },
        rounds=rounds,
    )


def _round(items: Catalogue, examples: Sequence[Example], seed: int) -> dict[str, float]:
    half = len(examples) // 2
    sold = [item_id for item_id, _ in Counter(example.item_id for example in examples[:half]).most_common()]
    target = {
        kind: sold[int(POPULARITY[(seed + place) % len(POPULARITY)] * len(sold))] for place, kind in enumerate(KINDS)
    }
    watched = list(target.values())
    plain = _replay(items, examples, seed, watched, guard=None)
    guarded = _replay(items, examples, seed, watched, guard=Guard(GuardSettings()))
    figures = {"seed": float(seed)} | _cost(plain, guarded)
    for kind, item_id in target.items():
        spammed = with_spam(examples, item_id, kind, seed)
        clean = mean(plain.watched[item_id])
        alone = mean(_replay(items, spammed, seed, [item_id], guard=None).watched[item_id])
        guarded_rank = mean(_replay(items, spammed, seed, [item_id], guard=Guard(GuardSettings())).watched[item_id])
        figures |= {
            f"{kind}_rank_without_spam": clean,
            f"{kind}_rank_unguarded": alone,
            f"{kind}_rank_guarded": guarded_rank,
            f"{kind}_kept_out": kept_out(clean, alone, guarded_rank),
        }
    return figures


def kept_out(clean: float, unguarded: float, guarded: float) -> float:
    """Return the share of the spam's effect on a mean rank that the guard keeps out.

    >>> kept_out(100.0, 20.0, 80.0)
    0.75
    """
    if unguarded == clean:
        return float(guarded == clean)
    return 1 - abs(guarded - clean) / abs(unguarded - clean)


def with_spam(examples: Sequence[Example], item_id: str, kind: str, seed: int) -> list[Example]:
    """Return the stream with clicks for one item mixed in, each at the time of the honest event after it."""
    chance = random.Random(f"{kind}/{item_id}/{seed}")  # noqa: S311 (no secret)
    half = len(examples) // 2
    count = round(SPAM_SHARE * (len(examples) - half))
    last = len(examples) if kind == "spread" else half + (len(examples) - half) // 5
    places = Counter(chance.randrange(half, last) for _ in range(count))
    users = _USERS.get(kind, count)
    mixed: list[Example] = []
    number = 0
    for place, example in enumerate(examples):
        for _ in range(places[place]):
            user = f"{_SPAM}{number % users}"
            click = replace(example, event_id=f"{_SPAM}{number}", item_id=item_id, kind="click")
            mixed.append(replace(click, user_id=user, session_id=user))
            number += 1
        mixed.append(example)
    return mixed


def _replay(
    items: Catalogue, examples: Sequence[Example], seed: int, watched: Sequence[str], *, guard: Guard | None
) -> Replayed:
    """Judge and learn micro-batch by micro-batch, each judged before it is learnt."""
    model = new_learner(EncoderSettings(lora_seed=seed), LearnerSettings(seed=seed, judged_items=2**62))
    model.add_items(items)
    replayed = Replayed(watched={item_id: [] for item_id in watched})
    batches = batches_of(examples)
    for number, taken in enumerate(batches):
        if guard is not None:
            taken = [example for example in guard.weigh(taken) if example.weight > 0]
        batch = model.observe(taken)
        honest = [row for row, example in enumerate(taken) if not _is_spam(example)]
        scores = model.judge(batch)[honest]
        target = scores.gather(1, torch.from_numpy(batch.items[honest])[:, None])
        ranks = (scores.shape[1] - (scores < target).sum(dim=1)).tolist()
        replayed.rank |= {taken[row].event_id: rank for row, rank in zip(honest, ranks, strict=True)}
        if number >= len(batches) // 2:
            for item_id in watched:
                target = scores[:, model.catalogue.rows[item_id], None]
                replayed.watched[item_id] += ((scores > target).sum(dim=1) + 1).tolist()
        model.learn(batch)
    if guard is not None:
        replayed.downweighted = sum(guard.downweighted.values())
    return replayed


def batches_of(examples: Sequence[Example]) -> list[list[Example]]:
    """Return micro-batches of `BATCH_EVENTS` honest events each, with the spam between them."""
    batches: list[list[Example]] = []
    honest = 0
    for example in examples:
        if honest % BATCH_EVENTS == 0 and not _is_spam(example):
            batches.append([])
        honest += not _is_spam(example)
        batches[-1].append(example)
    return batches


def _is_spam(example: Example) -> bool:
    return example.event_id.startswith(_SPAM)


def _cost(plain: Replayed, guarded: Replayed) -> dict[str, float]:
    """Return the quality on honest events with and without the guard, over the events that both judged."""
    figures = {"honest_events_downweighted": float(guarded.downweighted)}
    both = plain.rank.keys() & guarded.rank.keys()
    for name, replayed in (("unguarded", plain), ("guarded", guarded)):
        rank = np.array([replayed.rank[event_id] for event_id in both])
        hit = rank <= CUTOFF
        figures[f"hr20_{name}"] = float(hit.mean())
        figures[f"ndcg20_{name}"] = float(np.where(hit, 1 / np.log2(rank + 1), 0.0).mean())
    return figures
