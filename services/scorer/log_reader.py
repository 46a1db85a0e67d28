"""Reads the topics that a scorer follows, in two threads: items, control and adapters, and all others.

Each thread has its own consumer, so that an unreadable topic of shoppers' events never delays the blocking of an item,
a request to be forgotten, or an announcement.
"""

import threading
from collections.abc import Callable, Sequence

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
    """Reads the topics for the lifetime of the process.

    Catalogues in other dialects are read before shoppers' events, like the native one, but are no condition of
    readiness: if such a topic cannot be read, it is listed among the problems and delays nothing.

    Args:
        connection: the connection to Kafka.
        topics: the names of the topics.
        look_back_events: the number of newest clicks and purchases to start with.
        items: the live catalogue to update.
        shoppers: the states of shoppers to update.
        announcements: receives announced versions and rollouts.
        clock: the limits on times ahead of this machine's clock.
        pseudonymise: hides the ids of shoppers.

    Attributes:
        catalogue_read: set once items, control and adapters are read to the end that they had at the start.
        caught_up: set once shoppers' events are read as well, as far as they can be read.
        secret_fingerprint: the fingerprint of the secret that the control topic names; None if it names none.
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
        pseudonymise: Callable[[str], str] = str,
    ) -> None:
        self.catalogue_read = threading.Event()
        self.caught_up = threading.Event()
        self.secret_fingerprint: str | None = None
        self._connection, self._topics, self._look_back_events = connection, topics, look_back_events
        self._items, self._shoppers, self._announcements = items, shoppers, announcements
        self._clock_settings = clock
        self._stop = threading.Event()
        self._pseudonymise = pseudonymise
        self._forgotten: dict[str, Forget] = {}  # by pseudonym
        self._catalogues = [topic for topic in topics.catalogues() if topic != topics.items]  # in other dialects
        self._behaviour = self._behaviour_topics()
        self._one_writer = threading.Lock()  # of the catalogue, since both threads read items
        self._looked_back = False
        self._failures = 0  # consecutive, of the foreign topics while the native ones were read
        self._catalogues_read = threading.Event()
        if not self._catalogues:
            self._catalogues_read.set()
        self._native = TopicReader(
            connection, [topics.items, topics.control, topics.adapters], process=self._process, stop=self._stop
        )
        self._foreign = TopicReader(
            connection, [*self._catalogues, *self._behaviour], process=self._process, stop=self._stop
        )

    @property
    def topics(self) -> list[str]:
        """The topics that are read."""
        return [*self._native.topics, *self._foreign.topics]

    def problem(self) -> str | None:
        """Return the problem with Kafka, without addresses; None while the log is read."""
        foreign = self._foreign.problem() if self._foreign.topics and self.caught_up.is_set() else None
        return self._native.problem() or foreign

    def topic_problems(self) -> dict[str, str]:
        """Return a sentence for each `topic` or `topic/partition` that cannot be read."""
        return self._native.topic_problems() | self._foreign.topic_problems()

    def catalogue_problem(self) -> str | None:
        """Return why a topic with items, or a partition of it, cannot be read; None without a known problem."""
        catalogues = self._topics.catalogues()
        problems = self.topic_problems().items()
        return "; ".join(text for name, text in problems if topic_of(name) in catalogues) or None

    @property
    def is_reading(self) -> bool:
        """True while the broker of the items, control and adapters topics answers."""
        return self._native.is_reading

    def stop(self) -> None:
        """Make `run` return soon."""
        self._stop.set()

    def run(self) -> None:
        """Read until stopped; after a failure, resume where it stopped."""
        foreign = threading.Thread(target=self._run_foreign, name="LogReader of other topics", daemon=True)
        foreign.start()
        self._native.run(self._read_native)
        foreign.join()

    def _read_native(self) -> None:
        with self._native.opened(self._native.topics) as consumer:
            self._native.read_to_end(consumer, required=[self._topics.items])
            while not self._catalogues_read.is_set() and not self._stop.is_set():
                self._native.poll(consumer)
            if not self._stop.is_set():
                self.catalogue_read.set()
            self._native.follow(consumer)

    def _run_foreign(self) -> None:
        while not self._native.is_reading:  # one log line is enough for a broker that is away
            if self._stop.wait(_WAIT_SECONDS):
                return
        if self._foreign.topics:
            self._foreign.run(self._read_foreign, failed=self._foreign_failed)
        else:
            self._catch_up()

    def _read_foreign(self) -> None:
        if not self._catalogues_read.is_set():
            with self._foreign.opened(self._catalogues) as consumer:
                self._foreign.read_to_end(consumer)
            self._catalogues_read.set()
        if not self._wait_for_catalogue():
            return
        if self._behaviour and not self._looked_back:
            self._foreign.start_at(*start_offsets(self._connection, self._behaviour, self._look_back_events))
            self._looked_back = True
        with self._foreign.opened(self._foreign.topics) as consumer:
            self._foreign.read_to_end(consumer)
            self._catch_up()
            self._foreign.follow(consumer)

    def _foreign_failed(self) -> None:
        """Stop delaying readiness for topics that fail repeatedly while the native ones are read."""
        self._failures = self._failures + 1 if self._native.is_reading else 0
        if self._failures >= _PATIENCE:
            self._catalogues_read.set()
            if self.catalogue_read.is_set():
                self.caught_up.set()

    def _catch_up(self) -> None:
        if self._wait_for_catalogue():
            self.caught_up.set()

    def _wait_for_catalogue(self) -> bool:
        """Wait until the native catalogue is read. Returns False if stopped."""
        while not self.catalogue_read.wait(_WAIT_SECONDS):
            if self._stop.is_set():
                return False
        return not self._stop.is_set()

    def _behaviour_topics(self) -> list[str]:
        """Return the topics of shoppers' events; none if their states come from elsewhere."""
        if not self._shoppers.reads_events:
            return []
        others = [topic for topic in self._topics.dialects if topic not in self._catalogues]
        return [self._topics.clicks, self._topics.purchases, *others]

    def _is_forgotten(self, event: Click | Purchase, record: Record) -> bool:
        """Return whether an event was in the log before the command to forget its shopper."""
        command = self._forgotten.get(self._pseudonymise(event.user_id)) if self._forgotten else None
        return command is not None and command.covers(record, self._foreign.topic_ids)

    def _process(self, records: Sequence[Record]) -> None:
        clock = ReaderClock.from_records(records, self._clock_settings)
        for record in records:
            self._process_record(record, clock)

    def _process_record(self, record: Record, clock: ReaderClock) -> None:
        if record.topic == self._topics.adapters:
            self._announcements.read_record(record.key, record.value)
            return
        if record.topic == self._topics.control:
            command = parse_control(clock.bound_record(record))
            if isinstance(command, Forget):
                self._forgotten[command.user] = command
                self._shoppers.forget(command.user, until_ms=command.ts_ms)
            elif isinstance(command, Secret | SecretReset):
                self.secret_fingerprint = command.fingerprint if isinstance(command, Secret) else None
            return
        record, decoded, _ = decode_bounded(record, self._topics, clock)
        if isinstance(decoded, DeadLetter):
            return  # the updater reports it, once
        for event in decoded:
            if isinstance(event, Click | Purchase) and not self._is_forgotten(event, record):
                self._shoppers.take_in(event, publish_ts_ms=clock.publish_ts_ms(record))
            elif isinstance(event, Item | ItemRemoved):
                with self._one_writer:
                    self._items.take_in(event, latest_ms=clock.latest_ms)
                self._shoppers.item_arrived(event.item_id)
