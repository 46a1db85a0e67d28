"""An intake with what stands around it in tests, and short ways to make its events."""

import json
from functools import cache
from itertools import count
from typing import Any

from prometheus_client import CollectorRegistry
from tiny_model import tiny_encoder

from peft_adapters.encoder.encoder import Encoder
from peft_adapters.encoder.prefix_cache import PrefixCache
from peft_adapters.learning.learner import Learner
from peft_adapters.ranking.catalogue import Catalogue
from peft_adapters.settings import LearnerSettings
from services.metrics.intake import EVENT_OUTCOMES
from services.metrics.updater import UpdaterMetrics
from services.settings import Settings
from services.settings.updater import UpdaterSettings
from services.updater.intake import Intake
from streams.dead_letters import DeadLetter
from streams.events import Click, Event, Impression, Item, ShownItem
from streams.examples import Example, ShownList
from streams.join_store import JoinStore
from streams.privacy import Pseudonymiser
from streams.record import Record
from streams.topics import Topics

TOPICS = Topics()
READ = (TOPICS.items, TOPICS.impressions, TOPICS.clicks, TOPICS.purchases)
HOUR_MS = 3_600_000
NOW_MS = 1_770_000_000_000
NOTHING = dict.fromkeys((*EVENT_OUTCOMES, "pending"), 0)


@cache
def encoder() -> Encoder:
    return tiny_encoder()


def new_learner() -> Learner:
    return Learner(encoder(), Catalogue(PrefixCache(encoder(), None)), LearnerSettings())


class Box:
    """An intake with what stands around it: the offsets of a log, examples that wait, letters, a metrics page."""

    def __init__(self, **updater: Any) -> None:
        self.learner = new_learner()
        self._settings = Settings(updater=UpdaterSettings(**updater))
        self._store = JoinStore(None)
        self.learnt: list[Example] = []
        self.lists: list[ShownList] = []
        self.letters: list[DeadLetter] = []
        self._offset = count()
        self.now_ms = 2 * NOW_MS  # the reader's clock
        self._start()

    def _start(self) -> None:
        self.intake = Intake(
            self.learner, self._settings, store=self._store, pseudonymise=Pseudonymiser(b"only for tests")
        )
        self.registry = CollectorRegistry()
        self.metrics = UpdaterMetrics(self.registry, topics=TOPICS)

    def take(self, topic: str, key: bytes | None, value: bytes | None, *, published_ms: int = NOW_MS) -> None:
        """One slice of one record."""
        self.take_slice(Record(topic, 0, next(self._offset), key, value, published_ms))

    def take_slice(self, *records: Record) -> None:
        taken = self.intake.ingest(records, now_ms=self.now_ms, topic_ids={})
        self.letters += taken.letters
        self.learnt += taken.examples
        self.lists += taken.lists

    def send(self, event: Event, **record: Any) -> None:
        topic = TOPICS.of_kind(event.KIND)
        self.take(topic, event.key().encode(), event.model_dump_json(exclude_none=True).encode(), **record)

    def restart(self) -> None:
        """As from a checkpoint."""
        state = json.loads(json.dumps(self.intake.state()))
        self._start()
        self.intake.restore(state)

    def exported(self, topic: str) -> dict[str, int]:
        self.intake.accounts.export(self.metrics.intake)
        outcomes = {
            outcome: self.registry.get_sample_value("headwater_events_total", {"topic": topic, "outcome": outcome})
            for outcome in EVENT_OUTCOMES
        }
        pending = self.registry.get_sample_value("headwater_events_pending", {"topic": topic})
        return {name: int(value or 0) for name, value in (outcomes | {"pending": pending}).items()}

    def check_identity(self) -> None:
        for topic, counts in self.intake.accounts.totals().items():
            assert counts["in"] == sum(counts[outcome] for outcome in (*EVENT_OUTCOMES[1:], "pending")), topic
            assert all(value >= 0 for value in counts.values())
            assert self.exported(topic) == counts
        dead = sum(self._dead(reason) for reason in {letter.reason for letter in self.letters})
        assert dead == len(self.letters)

    def _dead(self, reason: str) -> int:
        return int(self.registry.get_sample_value("headwater_dead_letters_total", {"reason": str(reason)}) or 0)


def click(number: int = 0, *, item: str = "i0", ts: int = NOW_MS, user: str = "u") -> Click:
    return Click(event_id=f"e{number}", ts=ts, user_id=user, item_id=item)


def impression(number: int = 0, *names: str, ts: int = NOW_MS, user: str = "u") -> Impression:
    shown = tuple(ShownItem(item_id=name, position=place) for place, name in enumerate(names or ("i0",)))
    return Impression(event_id=f"e{number}", ts=ts, user_id=user, request_id=f"r{number}", scenario="home", items=shown)


def item(name: str = "i0", title: str = "red mug", **fields: Any) -> Item:
    return Item(event_id=f"item-{name}", ts=NOW_MS, item_id=name, kind="product", title=title, **fields)


def record_of(event: Event, offset: int, *, partition: int = 0, published_ms: int = NOW_MS + HOUR_MS) -> Record:
    value = event.model_dump_json(exclude_none=True).encode()
    return Record(TOPICS.of_kind(event.KIND), partition, offset, event.key().encode(), value, published_ms)
