"""Whatever bytes are on the topics: nothing is raised, each record is accounted for, and learning goes on sanely.

`--fuzzed 200000` is the long form.
"""

import json
import random
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch
from foreign_events import EXAMPLES
from foreign_events import TOPICS as FOREIGN
from tiny_model import tiny_learner

from peft_adapters.settings import LearnerSettings
from services.settings import Settings
from services.updater.intake import Intake
from streams.events import Click, Event, Impression, Item, Purchase, ShownItem
from streams.join_store import JoinStore
from streams.privacy import Pseudonymiser
from streams.record import Record

SLICE = 400
NOW_MS = 1_770_000_000_000
ITEMS = 30
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, "", "(not set)", "12,50", "\0", "é" * 300, "x" * 5_000, "2026-01-01T00:00:00Z", "NaN", "\ud800"),
    *(0, -1, 2**31, 2**63, 10**400, 1.5, 1e308, -0.0, float("nan"), float("inf")),
    *([], {}, [[]], [None], {"a": {"b": {"c": []}}}, ["i1", "i2"]),
)


def real_events(rng: random.Random) -> Iterator[Event]:
    number = 0
    while True:
        number += 1
        common = {"event_id": f"e{number}", "ts": NOW_MS + 1_000 * number, "user_id": f"u{rng.randrange(20)}"}
        item_id, request_id = f"i{rng.randrange(ITEMS)}", f"r{number - rng.randrange(30)}"
        shown = tuple(
            ShownItem(item_id=f"i{rng.randrange(ITEMS)}", position=place) for place in range(rng.randint(1, 5))
        )
        yield Impression(**common, request_id=f"r{number}", scenario="home", items=shown)
        yield Click(**common, item_id=item_id, request_id=request_id, position=rng.randrange(5))
        yield Purchase(**common, item_id=item_id, quantity=rng.randint(1, 5), price=1.5)
        yield Item(event_id=f"item-{number}", ts=NOW_MS, item_id=item_id, kind="product", title="red mug")


def mutated(rng: random.Random, value: bytes) -> bytes:
    how = rng.randrange(5)
    if how == 0:  # bytes
        data = bytearray(value)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        return bytes(data)
    if how == 1:  # cut short, or doubled
        return value[: rng.randrange(len(value))] if rng.random() < 0.7 else value + value
    fields = json.loads(value)
    for _ in range(rng.randint(1, 3)):
        at, key = rng.choice(list(places(fields)))
        if how == 2:
            at[key] = deepcopy(rng.choice(ODD_VALUES))
        elif how == 3 and isinstance(at, dict) and len(at) > 1:
            at.pop(key)
        elif isinstance(at, dict):
            at[rng.choice(["ts", "user_id", "items", "odd", "schema_version"])] = deepcopy(rng.choice(ODD_VALUES))
    return json.dumps(fields).encode(errors="surrogatepass")


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container and key within a JSON value."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield value, key
        yield from places(inner)


def records(rng: random.Random, count: int) -> Iterator[Record]:
    real = real_events(rng)
    foreign = [
        (f"of.{name}", json.dumps(payload).encode()) for name, payloads in EXAMPLES.items() for payload in payloads
    ]
    for offset in range(count):
        if rng.random() < 0.25:
            topic, value = rng.choice(foreign)
            key = b"any"
        else:
            event = next(real)
            topic, value = FOREIGN.of_kind(event.KIND), event.model_dump_json(exclude_none=True).encode()
            key = event.key().encode()
        if rng.random() < 0.6:
            value = mutated(rng, value)
        if rng.random() < 0.02:
            key = rng.choice([b"", b"\xff", b"another"])
        yield Record(topic, rng.randrange(2), offset, key, value, NOW_MS + 50 * offset)


@pytest.mark.timeout(3_000)
def test_fuzzed_records_are_each_learnt_or_refused_with_a_reason(fuzzed: int) -> None:
    rng = random.Random(11)  # noqa: S311
    learner = tiny_learner(LearnerSettings(lora=False), items=ITEMS)
    settings = Settings(topics=FOREIGN)
    intake = Intake(learner, settings, store=JoinStore(None), pseudonymise=Pseudonymiser(b"only for tests"))
    letters = taken_in = 0
    batch: list[Record] = []
    for record in [*records(rng, fuzzed), None]:
        if record is not None:
            batch.append(record)
        if len(batch) < SLICE and record is not None:
            continue
        taken = intake.ingest(batch, now_ms=NOW_MS + 50 * fuzzed, topic_ids={})
        assert all(letter.reason and letter.error for letter in taken.letters)
        letters, taken_in, batch = letters + len(taken.letters), taken_in + len(batch), []
        if taken.examples:
            learner.learn(learner.observe(taken.examples))
        if taken.lists:
            learner.learn_lists(learner.observe_lists(taken.lists))
        for topic, counts in intake.accounts.totals().items():
            assert counts["in"] == sum(count for name, count in counts.items() if name != "in"), topic
    assert taken_in == fuzzed
    refused = sum(counts["dead_letter"] for counts in intake.accounts.totals().values())
    assert letters == refused
    assert 0.1 < refused / fuzzed < 0.7
    assert sum(counts["in"] for counts in intake.accounts.totals().values()) >= fuzzed
    assert learner.events_learned > fuzzed / 10
    assert torch.isfinite(learner.ranker.heads).all()
    assert all(torch.isfinite(rows).all() for rows in learner.ranker.residuals.values())
