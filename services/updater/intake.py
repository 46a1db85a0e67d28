"""Intake: every record becomes items, examples, lists, dead letters, or waits; and each is counted."""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

import structlog

from peft_adapters.learning.learner import Learner
from services.items import catalogue_item
from services.metrics.intake import EVENT_OUTCOMES, LATENESS_SECONDS
from services.metrics.updater import UpdaterMetrics
from services.settings import Settings
from streams.clocks import ReaderClock, decode_bounded
from streams.control import MAX_REPORTED, Capped, Forget, GuardReport, Released, parse_control
from streams.dead_letters import DeadLetter, Reason
from streams.decode import ItemRemoved, reject
from streams.events import SHOPPER_EVENTS, Click, Event, Impression, Item, Purchase
from streams.examples import Example, ShownList
from streams.guard import Guard
from streams.guard_accounts import HOUR_MS
from streams.item_times import ItemTimes
from streams.join_store import JoinStore
from streams.joiner import Joiner
from streams.offsets import Offsets
from streams.privacy import Pseudonymiser
from streams.record import Record
from streams.watermarks import Watermarks

Weighed = TypeVar("Weighed", Example, ShownList)

log = structlog.get_logger(__name__)

LISTS_A_SLICE = 4  # batches of lists at most: after a silence very many windows close at once


@dataclass(slots=True)
class Taken:
    """What a slice of the log gave.

    Attributes:
        examples: positives, in order, to be learnt at once.
        lists: impressions whose window has closed, and corrections of earlier ones.
        letters: what was refused.
    """

    examples: list[Example] = field(default_factory=list)
    lists: list[ShownList] = field(default_factory=list)
    letters: list[DeadLetter] = field(default_factory=list)


class Intake:
    """Turn slices of the log into what is learnt, and changes of the catalogue.

    Args:
        learner: takes in the items; knows which there are.
        settings: of topics, windows and limits.
        store: where the joiner keeps what waits.
        pseudonymise: what becomes of ids of users and sessions.

    Attributes:
        guard: what a user or an item may weigh.
        watermarks: of the partitions, and of the stream.
    """

    def __init__(self, learner: Learner, settings: Settings, *, store: JoinStore, pseudonymise: Pseudonymiser) -> None:
        own = settings.updater
        self._learner, self._topics, self._clock_settings = learner, settings.topics, settings.clock
        self._max_lists = LISTS_A_SLICE * own.batch_events
        self._joiner = Joiner(
            is_known=learner.catalogue.__contains__,
            store=store,
            pseudonymise=pseudonymise,
            click_window_seconds=own.click_window_seconds,
            purchase_window_seconds=own.purchase_window_seconds,
            hold_seconds=own.hold_seconds,
            max_impressions=own.max_impressions,
            dedupe_horizon=own.dedupe_horizon,
        )
        self.guard = Guard(settings.guard)
        self.watermarks = Watermarks(idle_seconds=own.idle_seconds)
        self._item_times = ItemTimes()
        self._clamped: Counter[str] = Counter()  # by topic
        self._outcomes: Counter[tuple[str, str]] = Counter()  # (topic, outcome), of what the joiner does not count
        self._reasons: Counter[tuple[str, str]] = Counter()  # (topic, reason) of dead letters
        self._late: Counter[tuple[str, str]] = Counter()  # (topic, by how much)
        self._exported: Counter[tuple[str, ...]] = Counter()

    @property
    def topics(self) -> list[str]:
        """What is read, in the order in which records of one millisecond are taken: an item before its events."""
        own = self._topics
        return [own.items, own.control, own.impressions, own.clicks, own.purchases, *own.dialects]

    @property
    def counted(self) -> list[str]:
        """Topics whose records fill a micro-batch: what is learnt at once."""
        return [self._topics.clicks, self._topics.purchases, *self._topics.dialects]

    def miss(self, missed: Offsets) -> None:
        """Count records that were deleted before they were read.

        Args:
            missed: how many, by partition.
        """
        for (topic, _), records in missed.items():
            self._outcomes[topic, "in"] += records
            self._outcomes[topic, "missed"] += records

    def take(self, records: Sequence[Record], *, now_ms: int) -> Taken:
        """Take the records of a slice in: its items first, together, then its other events in their order.

        Args:
            records: the slice.
            now_ms: the reader's clock when the slice was cut, epoch milliseconds; no time counts as much later.
        """
        clock = ReaderClock.from_records(records, self._clock_settings, now_ms=now_ms)
        self._bound(clock)
        taken, items = Taken(), list[Item]()
        events: list[tuple[Record, Impression | Click | Purchase | Forget | Released]] = []
        for record in records:
            if record.topic == self._topics.control:
                events += [(record, command) for command in self._command(record)]
                continue
            record, decoded = self._decoded(record, clock)  # with its time bounded
            if not isinstance(decoded, list):
                self._refuse(decoded, taken)
                continue
            if not decoded:
                self._count(record.topic, "ignored")
            for event in decoded:
                if isinstance(event, SHOPPER_EVENTS):
                    events.append((record, event))
                    continue
                if isinstance(event, DeadLetter):
                    self._refuse(event, taken)
                    continue
                # The row of a removed item stays: events and counts may name it. Scorers stop showing it themselves.
                is_newest = self._item_times.update(event, latest_ms=clock.latest_ms)
                self._count(record.topic, "learnt" if is_newest else "ignored")
                if isinstance(event, Item) and is_newest:
                    items.append(event)
        taken.examples += self._take_items(items)
        for record, one in events:
            if isinstance(one, Forget):
                taken.examples = self._forget(one.user, taken.examples)
            else:
                taken.examples += self._take_event(record, one, clock)
        lists = self._joiner.advance(self.watermarks.advance(), max_lists=self._max_lists)
        taken.examples = self._counting(self.guard.weigh(taken.examples))
        taken.lists = self._counting(self.guard.weigh_lists(lists))
        self._log_capped()
        return taken

    def _bound(self, clock: ReaderClock) -> None:
        """Take back kept times that the reader's clock has not reached, before a slice is taken in.

        There are some where the clock was set back, or where an earlier release wrote the checkpoint. No impression is
        later than its partition's watermark, so all that wait are only looked through where one was taken back.
        """
        self.guard.bound(clock.now_ms)
        self._joiner.bound_held(clock.latest_ms)
        if self.watermarks.bound(clock.now_ms):
            self._joiner.bound(clock.now_ms)

    def _decoded(
        self, record: Record, clock: ReaderClock
    ) -> tuple[Record, list[Event | ItemRemoved | DeadLetter] | DeadLetter]:
        """What a record gives; an item whose vectors do not fit those before it is refused, and stays what it was."""
        record, decoded, clamped = decode_bounded(record, self._topics, clock)
        self._clamped[record.topic] += clamped
        for event in decoded if isinstance(decoded, list) else ():
            if isinstance(event, Item) and event.vectors:
                problem = self._learner.projections.register({name: len(one) for name, one in event.vectors.items()})
                if problem is not None:
                    return record, reject(record, Reason.WRONG_VECTOR, problem)
        return record, decoded

    def _take_items(self, items: Sequence[Item]) -> list[Example]:
        self._learner.add_items([catalogue_item(item) for item in items])
        return [example for item in items for example in self._joiner.item_arrived(item.item_id)]

    def _take_event(
        self, record: Record, event: Impression | Click | Purchase | Released, clock: ReaderClock
    ) -> list[Example]:
        if isinstance(event, Released):
            self.guard.release(event.key)
            return []
        late_ms = self.watermarks.stream_ms - event.ts
        if late_ms > 0:
            self._late[record.topic, _lateness(late_ms)] += 1
        publish_ts_ms = clock.publish_ts_ms(record)
        self.watermarks.observe((record.topic, record.partition), event_ms=event.ts, log_ms=publish_ts_ms)
        return self._joiner.offer(event, publish_ts_ms=publish_ts_ms, topic=record.topic)

    def _command(self, record: Record) -> list[Forget | Released]:
        self._count(record.topic, "learnt")
        command = parse_control(record)
        return [command] if isinstance(command, Forget | Released) else []

    def _forget(self, user: str, examples: Sequence[Example]) -> list[Example]:
        """Forget a user; the examples of the slice so far that stay, for these are yet to be learnt."""
        self._joiner.forget(user)
        self._learner.forget(user)
        self.guard.forget(user)
        for example in examples:
            self._outcomes[example.topic, "forgotten"] += example.user_id == user
        return [example for example in examples if example.user_id != user]

    def _counting(self, weighed: list[Weighed]) -> list[Weighed]:
        """Return what counts; what the guard left out is counted under its outcome."""
        for positive in weighed:
            if positive.left_out and not (isinstance(positive, ShownList) and positive.is_correction):
                self._outcomes[positive.topic, positive.left_out] += 1
        return [positive for positive in weighed if not positive.left_out]

    def _log_capped(self) -> None:
        """Log each item of which something was left out, once an hour of event time. Users stay out of the logs."""
        for cap in self.guard.newly_capped():
            kind, _, name = cap.key.partition("/")
            if kind == "item":
                log.warning(
                    "item_capped",
                    item=name,
                    rule=cap.rule,
                    left_out_so_far=cap.left_out,
                    hour=datetime.fromtimestamp(cap.hour * HOUR_MS / 1_000, UTC).isoformat(timespec="minutes"),
                    see="headwater guard list",
                )

    def guard_report(self, scenario: str) -> GuardReport:
        """Return what the guard leaves out or weighs down at present."""
        caps = self.guard.caps
        return GuardReport(
            event_id=str(uuid.uuid4()),
            ts=time.time_ns() // 1_000_000,
            scenario=scenario,
            caps=tuple(
                Capped(
                    key=cap.key,
                    rule=cap.rule,
                    hour_ms=cap.hour * HOUR_MS,
                    left_out=cap.left_out,
                    weighed_down=cap.weighed_down,
                )
                for cap in caps[:MAX_REPORTED]
            ),
            others=max(0, len(caps) - MAX_REPORTED),
        )

    def _refuse(self, letter: DeadLetter, taken: Taken) -> None:
        """Count a dead letter: of a record as a whole, or of one line of it beside those that were taken."""
        taken.letters.append(letter)
        self._outcomes[letter.topic, "in"] += 1
        self._outcomes[letter.topic, "dead_letter"] += 1
        self._reasons[letter.topic, letter.reason.value] += 1

    def _count(self, topic: str, outcome: str) -> None:
        self._outcomes[topic, "in"] += 1
        self._outcomes[topic, outcome] += 1

    # ---- the identity: in = the sum of what became of it + pending, by topic

    def counts(self) -> dict[str, dict[str, int]]:
        """By topic, what came in and what became of it. An item is learnt as it comes, a list with its batch."""
        counts = {}
        for topic in self.topics:
            own = {outcome: self._outcomes[topic, outcome] for outcome in EVENT_OUTCOMES}
            joined = self._joiner.counts(topic)
            joined["learnt"] -= own["quarantined"] + own["capped"] + own["forgotten"]
            counts[topic] = {name: own.get(name, 0) + joined.get(name, 0) for name in (*EVENT_OUTCOMES, "pending")}
        return counts

    def export(self, metrics: UpdaterMetrics) -> None:
        """Raise the metrics to the counts as they stand."""
        for topic, counts in self.counts().items():
            metrics.events_pending.labels(topic).set(counts["pending"])
            for outcome in EVENT_OUTCOMES:
                self._raise(metrics.events.labels(topic, outcome), (topic, outcome), counts[outcome])
        for (topic, reason), count in self._reasons.items():
            self._raise(metrics.dead_letters.labels(reason), (topic, reason, "dead"), count)
        for (topic, lateness), count in self._late.items():
            self._raise(metrics.late_events.labels(topic, lateness), (topic, lateness, "late"), count)
        for topic, count in self._clamped.items():
            self._raise(metrics.clamped_times.labels(topic), (topic, "clamped"), count)
        self._export_guard(metrics)
        metrics.event_watermark_timestamp_seconds.set(self.watermarks.latest_ms / 1_000)
        for (topic, partition), event_ms in self.watermarks.partitions.items():
            metrics.partition_watermark_timestamp_seconds.labels(topic, str(partition)).set(event_ms / 1_000)

    def _export_guard(self, metrics: UpdaterMetrics) -> None:
        for rule, count in self.guard.downweighted.items():
            self._raise(metrics.downweighted.labels(rule), (rule, "downweighted"), count)
        for kind, count in self.guard.quarantines.items():
            self._raise(metrics.quarantined.labels(kind), (kind, "quarantined"), count)
        for kind, keys in self.guard.in_quarantine.items():
            metrics.in_quarantine.labels(kind).set(keys)

    def _raise(self, counter: Any, key: tuple[str, ...], count: int) -> None:
        counter.inc(count - self._exported[key])
        self._exported[key] = count

    # ---- what a checkpoint keeps

    def state(self) -> dict[str, Any]:
        """All of it beside the joiner's store, as JSON can hold it."""
        return {
            "outcomes": _rows(self._outcomes),
            "reasons": _rows(self._reasons),
            "late": _rows(self._late),
            "joiner": self._joiner.state(),
            "guard": self.guard.state(),
            "watermarks": self.watermarks.state(),
            "clamped": dict(self._clamped),
            "item_times": self._item_times.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Put back what `state` gave."""
        self._outcomes, self._reasons, self._late = (_counter(state[name]) for name in ("outcomes", "reasons", "late"))
        self._joiner.restore(state["joiner"])
        self.guard.restore(state["guard"])
        self.watermarks.restore(state["watermarks"])
        # A checkpoint of an earlier release has none of these.
        self._clamped = Counter(state.get("clamped", {}))
        self._item_times.restore(state.get("item_times", {}))


def _lateness(late_ms: int) -> str:
    """The shortest of the bounds that an event is late by, "more" beyond the last."""
    return next((f"{bound}s" for bound in LATENESS_SECONDS if late_ms <= 1_000 * bound), "more")


def _rows(counter: Counter[tuple[str, str]]) -> list[list[Any]]:
    return [[*key, count] for key, count in counter.items()]


def _counter(rows: list[list[Any]]) -> Counter[tuple[str, str]]:
    return Counter({(first, second): count for first, second, count in rows})
