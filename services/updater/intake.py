"""The intake: turns records of the log into items, examples, lists and dead letters."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, TypeVar

import structlog

from peft_adapters.learning.learner import Learner
from services.items import catalogue_item
from services.settings import Settings
from services.updater.accounting import IntakeAccounts
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
from streams.privacy import Pseudonymiser
from streams.record import Record
from streams.watermarks import Watermarks

Weighed = TypeVar("Weighed", Example, ShownList)
ShopperEvent = Impression | Click | Purchase
Command = Forget | Released

log = structlog.get_logger(__name__)

MAX_LIST_BATCHES = 4  # micro-batches of lists from one slice: after a silence very many windows close at once


@dataclass(slots=True)
class IntakeResult:
    """The learning material of a slice.

    Attributes:
        examples: positives, in order, to be learnt at once.
        lists: impressions whose window has closed, and corrections of earlier ones.
        letters: the rejected records and lines.
    """

    examples: list[Example] = field(default_factory=list)
    lists: list[ShownList] = field(default_factory=list)
    letters: list[DeadLetter] = field(default_factory=list)


class Intake:
    """Decoder of slices of the log into learning material and changes of the catalogue.

    Args:
        learner: the learner whose catalogue is kept up to date.
        settings: the settings of topics, windows, clocks and limits.
        store: the join state.
        pseudonymise: the function that hides ids of users and sessions.

    Attributes:
        guard: the guard against abuse, which bounds the weight of a user or an item.
        watermarks: the watermarks of the partitions and of the stream.
        accounts: the number of events by topic and outcome.
    """

    def __init__(self, learner: Learner, settings: Settings, *, store: JoinStore, pseudonymise: Pseudonymiser) -> None:
        updater = settings.updater
        self._learner, self._topics, self._clock_settings = learner, settings.topics, settings.clock
        self._max_lists = MAX_LIST_BATCHES * updater.batch_events
        self._joiner = Joiner(
            is_known=learner.catalogue.__contains__,
            store=store,
            pseudonymise=pseudonymise,
            click_window_seconds=updater.click_window_seconds,
            purchase_window_seconds=updater.purchase_window_seconds,
            hold_seconds=updater.hold_seconds,
            max_impressions=updater.max_impressions,
            dedupe_horizon=updater.dedupe_horizon,
        )
        self.guard = Guard(settings.guard)
        self.watermarks = Watermarks(idle_seconds=updater.idle_seconds)
        self._item_times = ItemTimes()
        self._pseudonymise = pseudonymise
        self._forgotten: dict[str, Forget] = {}  # by pseudonym, until the ends of the logs are passed
        self.accounts = IntakeAccounts(self.topics, self._joiner, self.guard, self.watermarks)

    @property
    def topics(self) -> list[str]:
        """The consumed topics, in the order of records of the same millisecond: items come before their events."""
        names = self._topics
        return [names.items, names.control, names.impressions, names.clicks, names.purchases, *names.dialects]

    @property
    def counted(self) -> list[str]:
        """The topics whose records count towards the size of a micro-batch."""
        return [self._topics.clicks, self._topics.purchases, *self._topics.dialects]

    def ingest(self, records: Sequence[Record], *, now_ms: int, topic_ids: Mapping[str, str]) -> IntakeResult:
        """Process the records of a slice: first all items, then the other events in their order.

        Args:
            records: the records of the slice.
            now_ms: the reader's clock when the slice was cut, epoch milliseconds; it bounds all times.
            topic_ids: the ids of the logs that the records were read from.
        """
        clock = ReaderClock.from_records(records, self._clock_settings, now_ms=now_ms)
        self._bound(clock)
        result = IntakeResult()
        items, events = self._decode_all(records, clock, result)
        result.examples += self._add_items(items)
        for record, event in events:
            if isinstance(event, Forget):
                result.examples = self._forget(event.user, result.examples)
                self._forgotten[event.user] = event
            elif self._is_forgotten(record, event, topic_ids):
                self._joiner.count_forgotten(record.topic)
            else:
                result.examples += self._process_event(record, event, clock)
        lists = self._joiner.advance(self.watermarks.advance(), max_lists=self._max_lists)
        result.examples = self._drop_left_out(self.guard.weigh(result.examples))
        result.lists = self._drop_left_out(self.guard.weigh_lists(lists))
        self._log_capped()
        self._drop_passed_commands(records)
        return result

    def _decode_all(
        self, records: Sequence[Record], clock: ReaderClock, result: IntakeResult
    ) -> tuple[list[Item], list[tuple[Record, ShopperEvent | Command]]]:
        """Decode records, and return their items and their other events; dead letters are added to the result."""
        items: list[Item] = []
        events: list[tuple[Record, ShopperEvent | Command]] = []
        for record in records:
            if record.topic == self._topics.control:
                events += [(record, command) for command in self._parse_command(record)]
                continue
            bounded, decoded = self._decode(record, clock)
            if not decoded:
                self.accounts.count(bounded.topic, "ignored")
            for event in decoded:
                if isinstance(event, SHOPPER_EVENTS):
                    events.append((bounded, event))
                elif isinstance(event, DeadLetter):
                    result.letters.append(event)
                    self.accounts.count_dead_letter(event)
                elif self._is_newest(bounded, event, clock) and isinstance(event, Item):
                    items.append(event)
        return items, events

    def _decode(self, record: Record, clock: ReaderClock) -> tuple[Record, list[Event | ItemRemoved | DeadLetter]]:
        """Decode a record, and bound its times by the reader's clock.

        An item whose vectors have another length than those before it is rejected, and its earlier version stays.
        """
        record, decoded, clamped = decode_bounded(record, self._topics, clock)
        self.accounts.count_clamped(record.topic, clamped)
        if isinstance(decoded, DeadLetter):
            return record, [decoded]
        for event in decoded:
            if isinstance(event, Item) and event.vectors:
                lengths = {name: len(vector) for name, vector in event.vectors.items()}
                problem = self._learner.projections.register(lengths)
                if problem is not None:
                    return record, [reject(record, Reason.WRONG_VECTOR, problem)]
        return record, decoded

    def _is_newest(self, record: Record, event: Item | ItemRemoved, clock: ReaderClock) -> bool:
        """Count an item or a removal, and return whether it is newer than those of the item before.

        The row of a removed item stays, as events and counts may name it. Scorers stop showing the item themselves.
        """
        is_newest = self._item_times.update(event, latest_ms=clock.latest_ms)
        self.accounts.count(record.topic, "learnt" if is_newest else "ignored")
        return is_newest

    def _bound(self, clock: ReaderClock) -> None:
        """Lower kept times that are ahead of the reader's clock, before a slice is processed.

        There are some if the clock was set back, or if an earlier release wrote the checkpoint. No impression is later
        than its partition's watermark, so the waiting impressions are only searched if a watermark was lowered.
        """
        self.guard.bound(clock.now_ms)
        self._joiner.bound_held(clock.latest_ms)
        if self.watermarks.bound(clock.now_ms):
            self._joiner.bound(clock.now_ms)

    def _add_items(self, items: Sequence[Item]) -> list[Example]:
        """Add items to the catalogue, and return the examples that waited for them."""
        self._learner.add_items([catalogue_item(item) for item in items])
        return [example for item in items for example in self._joiner.item_arrived(item.item_id)]

    def _process_event(self, record: Record, event: ShopperEvent | Released, clock: ReaderClock) -> list[Example]:
        if isinstance(event, Released):
            self.guard.release(event.key)
            return []
        late_ms = self.watermarks.stream_ms - event.ts
        if late_ms > 0:
            self.accounts.count_late(record.topic, late_ms)
        publish_ts_ms = clock.publish_ts_ms(record)
        self.watermarks.observe((record.topic, record.partition), event_ms=event.ts, log_ms=publish_ts_ms)
        return self._joiner.offer(event, publish_ts_ms=publish_ts_ms, topic=record.topic)

    def _parse_command(self, record: Record) -> list[Command]:
        self.accounts.count(record.topic, "learnt")
        command = parse_control(record)
        return [command] if isinstance(command, Forget | Released) else []

    def _forget(self, user: str, examples: Sequence[Example]) -> list[Example]:
        """Forget a user, and return the slice's examples of other users: none of them has been learnt yet."""
        self._joiner.forget(user)
        self._learner.forget(user)
        self.guard.forget(user)
        for example in examples:
            self.accounts.count_instead_of_learnt(example.topic, "forgotten", example.user_id == user)
        return [example for example in examples if example.user_id != user]

    def _is_forgotten(self, record: Record, event: ShopperEvent | Released, topic_ids: Mapping[str, str]) -> bool:
        """Return whether an event was in the log before the command to forget its user, though it is read after it.

        Records are read in the order of their times, and a producer's clock may be ahead.
        """
        if not self._forgotten or isinstance(event, Released):
            return False
        command = self._forgotten.get(self._pseudonymise(event.user_id))
        return command is not None and command.covers(record, topic_ids)

    def _drop_passed_commands(self, records: Sequence[Record]) -> None:
        """Drop the commands to forget whose ends of the logs have all been passed."""
        read = {(record.topic, record.partition): record.offset + 1 for record in records} if self._forgotten else {}
        for user, command in list(self._forgotten.items()):
            ends = {at: end for at, end in command.ends.items() if read.get(at, 0) < end}
            if ends:
                self._forgotten[user] = replace(command, ends=ends)
            else:
                del self._forgotten[user]

    def _drop_left_out(self, weighed: list[Weighed]) -> list[Weighed]:
        """Return the examples that the guard lets through, and count the others under their outcomes."""
        for positive in weighed:
            if positive.left_out and not (isinstance(positive, ShownList) and positive.is_correction):
                self.accounts.count_instead_of_learnt(positive.topic, positive.left_out)
        return [positive for positive in weighed if not positive.left_out]

    def _log_capped(self) -> None:
        """Log each item that the guard capped, once an hour of event time. Users are never logged."""
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
        """Return a report of the guard's present caps, for the control topic."""
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

    # ---- checkpoints

    def state(self) -> dict[str, Any]:
        """Return the state as JSON values, for a checkpoint; the join state is not part of it."""
        return {
            **self.accounts.state(),
            "joiner": self._joiner.state(),
            "guard": self.guard.state(),
            "watermarks": self.watermarks.state(),
            "item_times": self._item_times.state(),
            **({"forgotten": [command.as_json() for command in self._forgotten.values()]} if self._forgotten else {}),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Restore the state from a checkpoint."""
        self.accounts.restore(state)
        self._joiner.restore(state["joiner"])
        self.guard.restore(state["guard"])
        self.watermarks.restore(state["watermarks"])
        self._item_times.restore(state.get("item_times", {}))  # missing in checkpoints of earlier releases
        self._forgotten = {command.user: command for command in map(Forget.from_json, state.get("forgotten", ()))}
