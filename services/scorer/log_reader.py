"""Reads what a scorer follows, in two threads: our own catalogue, commands and announcements, and everything else.

Each has a consumer of its own, so that a topic of shoppers' events that cannot be read never keeps an item from being
blocked, a shopper from being forgotten, or an adapter from being heard of.
"""

import threading
from collections.abc import Sequence

import structlog

from services.scorer.announcements import Announcements
from services.scorer.live_items import LiveItems
from services.scorer.shopper_state import StateSource
from services.scorer.topic_reader import TopicReader
from streams.clocks import ClockSettings, ReaderClock, decode_bounded
from streams.connection import KafkaConnection
from streams.control import Forget, Secret, SecretReset, parse_control
from streams.dead_letters import DeadLetter
from streams.decode import ItemRemoved
from streams.events import Click, Item, Purchase
from streams.offsets import topic_of
from streams.record import Record
from streams.start_offsets import start_offsets
from streams.topics import Topics

log = structlog.get_logger(__name__)

_WAIT_SECONDS = 0.1
_PATIENCE = 4  # attempts


class LogReader:
    """Reads what a scorer follows, for as long as the process lives.

    The catalogues that come in other dialects are read before shoppers' events, as our own is. They are no condition
    of readiness: a topic of others that cannot be read is one of the `problems`, and holds up nothing.

    Args:
        connection: Which Kafka.
        topics: The names of the topics.
        look_back_events: Newest clicks and purchases to begin with.
        items: Takes in the catalogue.
        shoppers: Takes in clicks and purchases, and whom to forget.
        announcements: Takes in published manifests.
        clock: How far times may be ahead of this machine's clock.

    Attributes:
        catalogue_read: Set once catalogue, commands and announcements were read to the end that they had at start.
        caught_up: Set once shoppers' events were, too, as far as they can be read.
        secret_fingerprint: Of the secret that the control topic names; None if it names none.
    """

    def __init__(
        self,
        connection: KafkaConnection,
        topics: Topics,
        *,
        look_back_events: int,
        items: LiveItems,
        shoppers: StateSource,
        announcements: Announcements,
        clock: ClockSettings = ClockSettings(),  # noqa: B008  # frozen
    ) -> None:
        self.catalogue_read = threading.Event()
        self.caught_up = threading.Event()
        self.secret_fingerprint: str | None = None
        self._connection, self._topics, self._look_back_events = connection, topics, look_back_events
        self._items, self._shoppers, self._announcements = items, shoppers, announcements
        self._clock_settings = clock
        self._stop = threading.Event()
        self._catalogues = [topic for topic in topics.catalogues() if topic != topics.items]  # of others
        self._behaviour = self._behaviour_topics()
        self._one_writer = threading.Lock()  # of the catalogue: both threads read items
        self._looked_back = False
        self._failures = 0  # of the others in a row, while our own were read
        self._catalogues_read = threading.Event()
        if not self._catalogues:
            self._catalogues_read.set()
        self._ours = TopicReader(
            connection, [topics.items, topics.control, topics.adapters], take_in=self._take_in_all, stop=self._stop
        )
        self._others = TopicReader(
            connection, [*self._catalogues, *self._behaviour], take_in=self._take_in_all, stop=self._stop
        )

    @property
    def topics(self) -> list[str]:
        """The topics that are read."""
        return [*self._ours.topics, *self._others.topics]

    def problem(self) -> str | None:
        """What is wrong with Kafka; None when the log is being read. Addresses are for the process's log alone."""
        others = self._others.problem() if self._others.topics and self.caught_up.is_set() else None
        return self._ours.problem() or others

    def topic_problems(self) -> dict[str, str]:
        """Return what cannot be read of the log, by topic or `topic/partition`, in a sentence each."""
        return self._ours.topic_problems() | self._others.topic_problems()

    def catalogue_problem(self) -> str | None:
        """Return why a topic with items, or part of it, cannot be read; None if nothing is known against it."""
        catalogues = self._topics.catalogues()
        problems = self.topic_problems().items()
        return "; ".join(text for name, text in problems if topic_of(name) in catalogues) or None

    @property
    def is_reading(self) -> bool:
        """Whether the broker of our own topics answers."""
        return self._ours.is_reading

    def stop(self) -> None:
        """Have `run` return soon."""
        self._stop.set()

    def run(self) -> None:
        """Read until stopped; what fails is tried again from where it was."""
        others = threading.Thread(target=self._run_others, name="LogReader of others", daemon=True)
        others.start()
        self._ours.run(self._read_ours)
        others.join()

    def _read_ours(self) -> None:
        with self._ours.opened(self._ours.topics) as consumer:
            self._ours.read_to_end(consumer, required=[self._topics.items])
            while not self._catalogues_read.is_set() and not self._stop.is_set():
                self._ours.poll(consumer)
            if not self._stop.is_set():
                self.catalogue_read.set()
            self._ours.follow(consumer)

    def _run_others(self) -> None:
        while not self._ours.is_reading:  # one line is enough of a broker that is away
            if self._stop.wait(_WAIT_SECONDS):
                return
        if self._others.topics:
            self._others.run(self._read_others, failed=self._others_failed)
        else:
            self._catch_up()

    def _read_others(self) -> None:
        if not self._catalogues_read.is_set():
            with self._others.opened(self._catalogues) as consumer:
                self._others.read_to_end(consumer)
            self._catalogues_read.set()
        if not self._wait_for_catalogue():
            return
        if self._behaviour and not self._looked_back:
            self._others.start_at(*start_offsets(self._connection, self._behaviour, self._look_back_events))
            self._looked_back = True
        with self._others.opened(self._others.topics) as consumer:
            self._others.read_to_end(consumer)
            self._catch_up()
            self._others.follow(consumer)

    def _others_failed(self) -> None:
        """Have readiness wait no longer for topics that fail again and again while our own are read."""
        self._failures = self._failures + 1 if self._ours.is_reading else 0
        if self._failures >= _PATIENCE:
            self._catalogues_read.set()
            if self.catalogue_read.is_set():
                self.caught_up.set()

    def _catch_up(self) -> None:
        if self._wait_for_catalogue():
            self.caught_up.set()

    def _wait_for_catalogue(self) -> bool:
        """Wait until our own catalogue is read; False when stopped."""
        while not self.catalogue_read.wait(_WAIT_SECONDS):
            if self._stop.is_set():
                return False
        return not self._stop.is_set()

    def _behaviour_topics(self) -> list[str]:
        """The topics that tell what shoppers do; none where their states come from elsewhere."""
        if not self._shoppers.reads_events:
            return []
        others = [topic for topic in self._topics.dialects if topic not in self._catalogues]
        return [self._topics.clicks, self._topics.purchases, *others]

    def _take_in_all(self, records: Sequence[Record]) -> None:
        clock = ReaderClock.from_records(records, self._clock_settings)
        for record in records:
            self._take_in(record, clock)

    def _take_in(self, record: Record, clock: ReaderClock) -> None:
        if record.topic == self._topics.adapters:
            self._announcements.hear(record.key, record.value)
            return
        if record.topic == self._topics.control:
            command = parse_control(clock.bound_record(record))
            if isinstance(command, Forget):
                self._shoppers.forget(command.user, until_ms=command.ts_ms)
            elif isinstance(command, Secret | SecretReset):
                self.secret_fingerprint = command.fingerprint if isinstance(command, Secret) else None
            return
        record, decoded, _ = decode_bounded(record, self._topics, clock)
        if isinstance(decoded, DeadLetter):
            return  # the updater's to report, once
        for event in decoded:
            if isinstance(event, Click | Purchase):
                self._shoppers.take_in(event, publish_ts_ms=clock.publish_ts_ms(record))
            elif isinstance(event, Item | ItemRemoved):
                with self._one_writer:
                    self._items.take_in(event, latest_ms=clock.latest_ms)
                self._shoppers.item_arrived(event.item_id)
