"""Intake: every record becomes an item, an example, a dead letter, a duplicate, or waits; and each is counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from peft_adapters.catalogue import item_text
from peft_adapters.learner import Learner
from services.metrics import EVENT_OUTCOMES, UpdaterMetrics
from services.updater.settings import UpdaterSettings
from streams.consumer import Record
from streams.dead_letters import DeadLetter
from streams.decode import ItemRemoved, decode
from streams.events import Click, Item, Purchase
from streams.joiner import Example, Joiner
from streams.topics import Topics


class Intake:
    """Turns records of the log into examples and catalogue changes.

    Attributes:
        watermark_ms: latest event time taken in.
    """

    def __init__(self, learner: Learner, topics: Topics, settings: UpdaterSettings) -> None:
        self._learner, self._topics = learner, topics
        # One joiner a topic, so that the identity of counts holds for each topic.
        self._joiners = {
            topic: Joiner(
                is_known=learner.catalogue.__contains__,
                hold_seconds=settings.hold_seconds,
                dedupe_horizon=settings.dedupe_horizon,
            )
            for topic in (topics.clicks, topics.purchases)
        }
        self._read: Counter[str] = Counter()
        self._learnt: Counter[str] = Counter()
        self._dead: Counter[tuple[str, str]] = Counter()  # (topic, reason)
        self._exported: Counter[tuple[str, ...]] = Counter()
        self.watermark_ms = 0

    @property
    def topics(self) -> list[str]:
        """What is read, items first: within a poll they come before events that may need them."""
        return [self._topics.items, *self._joiners]

    def take(self, record: Record) -> Iterator[tuple[Example, int] | DeadLetter]:
        """Take one record in.

        Yields:
            Examples with their size in bytes, or the dead letter it became.
        """
        self._read[record.topic] += 1
        event = decode(record, self._topics)
        match event:
            case DeadLetter():
                self._dead[record.topic, event.reason.value] += 1
                yield event
            case Click() | Purchase():
                # No event happens after it is published: one that says so must not give up those that wait.
                self.watermark_ms = max(self.watermark_ms, min(event.ts, record.timestamp_ms))
                joiner = self._joiners[record.topic]
                for example in joiner.offer(event, publish_ts_ms=record.timestamp_ms):
                    yield example, len(record.value or b"")
                joiner.advance(self.watermark_ms)
            case Item():
                yield from self._take_items([event])
            case ItemRemoved():
                pass  # its row stays: events and counts may still name it, and scorers stop showing it by themselves
            case _:
                raise AssertionError(f"no reader for {record.topic}")

    def take_catalogue(self, records: Iterable[Record]) -> Iterator[DeadLetter]:
        """Take many item records in at once: texts are encoded together, before there is any event to hold.

        Yields:
            The dead letters among them.
        """
        items: list[Item] = []
        for record in records:
            self._read[record.topic] += 1
            event = decode(record, self._topics)
            if isinstance(event, DeadLetter):
                self._dead[record.topic, event.reason.value] += 1
                yield event
            elif isinstance(event, Item):
                items.append(event)
        for _ in self._take_items(items):
            raise AssertionError("no event can wait for an item before events are read")

    def _take_items(self, items: list[Item]) -> Iterator[tuple[Example, int]]:
        texts = [
            (i.item_id, item_text(title=i.title, brand=i.brand, category=i.category, description=i.description))
            for i in items
        ]
        self._learner.add_items(texts)
        for item in items:
            for joiner in self._joiners.values():
                for example in joiner.item_arrived(item.item_id):
                    yield example, 0  # its bytes were counted when it came

    def learnt(self, examples: Iterable[Example]) -> None:
        """Note that examples were learnt."""
        topic_of = {"click": self._topics.clicks, "purchase": self._topics.purchases}
        for example in examples:
            self._learnt[topic_of[example.kind]] += 1

    # ---- the identity: in = learnt + dead letters + duplicates + expired + pending

    def counts(self) -> dict[str, dict[str, int]]:
        """By topic, what came in and what became of it. An item is learnt as it comes."""
        items = self._topics.items
        refused = self._refused(items)
        counts = {items: {"in": self._read[items], "learnt": self._read[items] - refused, "dead_letter": refused}}
        counts[items] |= {"duplicate": 0, "expired": 0, "pending": 0}
        for topic, joiner in self._joiners.items():
            joined = joiner.counts
            counts[topic] = {
                "in": self._read[topic],
                "learnt": self._learnt[topic],
                "dead_letter": self._refused(topic),
                "duplicate": joined.duplicates,
                "expired": joined.expired,
                "pending": joined.pending + joined.emitted - self._learnt[topic],
            }
        return counts

    def _refused(self, topic: str) -> int:
        return sum(count for (where, _), count in self._dead.items() if where == topic)

    def export(self, metrics: UpdaterMetrics) -> None:
        """Raise the metrics to the counts as they stand."""
        for topic, counts in self.counts().items():
            metrics.events_pending.labels(topic).set(counts["pending"])
            for outcome in EVENT_OUTCOMES:
                self._raise(metrics.events.labels(topic, outcome), (topic, outcome), counts[outcome])
        for (topic, reason), count in self._dead.items():
            self._raise(metrics.dead_letters.labels(reason), (topic, reason, "dead"), count)
        metrics.event_watermark_timestamp_seconds.set(self.watermark_ms / 1_000)

    def _raise(self, counter: Any, key: tuple[str, ...], count: int) -> None:
        counter.inc(count - self._exported[key])
        self._exported[key] = count

    # ---- what a checkpoint keeps

    def state(self) -> dict[str, Any]:
        """All of it, as JSON can hold it."""
        return {
            "read": dict(self._read),
            "learnt": dict(self._learnt),
            "dead": [[topic, reason, count] for (topic, reason), count in self._dead.items()],
            "joiners": {topic: joiner.state() for topic, joiner in self._joiners.items()},
            "watermark_ms": self.watermark_ms,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Put back what `state` gave."""
        self._read, self._learnt = Counter(state["read"]), Counter(state["learnt"])
        self._dead = Counter({(topic, reason): count for topic, reason, count in state["dead"]})
        for topic, joined in state["joiners"].items():
            self._joiners[topic].restore(joined)
        self.watermark_ms = state["watermark_ms"]
