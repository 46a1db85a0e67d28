"""One thread reads the log: catalogue, commands and announcements first, then shoppers' events, then all as it comes.

The embedded broker wants each consumer to ask again and again, so that one consumer for everything is also the
cheapest.
"""

import threading
from collections.abc import Sequence
from contextlib import closing

import structlog

from services.scorer.announcements import Announcements
from services.scorer.live_items import LiveItems
from services.scorer.shopper_state import StateSource
from streams.connection import KafkaConnection, backoff_seconds, wait_for_broker
from streams.consumer import Offsets, PartitionConsumer, Record
from streams.control import Forget, Secret, SecretReset, parse_control
from streams.dead_letters import DeadLetter
from streams.decode import ItemRemoved, decode
from streams.errors import HeadwaterStreamError
from streams.events import Click, Item, Purchase
from streams.look_back import look_back
from streams.topics import Topics

log = structlog.get_logger(__name__)

POLL_SECONDS = 0.5
MAX_RECORDS = 1_000


class LogReader:
    """Reads what a scorer follows, for as long as the process lives.

    Args:
        connection: Which Kafka.
        topics: The names of the topics.
        look_back_events: Newest clicks and purchases to begin with.
        items: Takes in the catalogue.
        shoppers: Takes in clicks and purchases, and whom to forget.
        announcements: Takes in published manifests.

    Attributes:
        catalogue_read: Set once catalogue, commands and announcements were read to the end that they had at start.
        caught_up: Set once shoppers' events were, too.
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
    ) -> None:
        self.catalogue_read = threading.Event()
        self.caught_up = threading.Event()
        self.secret_fingerprint: str | None = None
        self._connection, self._topics, self._look_back_events = connection, topics, look_back_events
        self._items, self._shoppers, self._announcements = items, shoppers, announcements
        self._positions: Offsets = {}
        self._following: PartitionConsumer | None = None  # while the log is being read
        self._stop = threading.Event()

    def problem(self) -> str | None:
        """What is wrong with Kafka; None when the log is being read. Addresses are for the process's log alone."""
        following = self._following
        if following is not None:
            return "Kafka does not answer; what has been read of it is served" if following.is_away else None
        return "Kafka cannot be read; what has been read of it is served, and the log of the process says why"

    def stop(self) -> None:
        """Have `run` return soon."""
        self._stop.set()

    def run(self) -> None:
        """Read until stopped; what fails is tried again from where it was."""
        pauses, told = backoff_seconds(), None
        while not self._stop.is_set():
            try:
                if wait_for_broker(self._connection, stop=self._stop):
                    self._read()
            except HeadwaterStreamError as error:
                if str(error) != told:
                    log.warning("log_not_read", problem=str(error), retry="until it can be read")
                told = str(error)
            except Exception:  # a fault of ours: what is held goes on being served
                log.exception("log_reader_failed")
            self._following = None
            self._stop.wait(next(pauses))

    def _read(self) -> None:
        catalogue = [*self._topics.catalogues(), self._topics.control, self._topics.adapters]
        behaviour = self._behaviour(catalogue)
        if not self.catalogue_read.is_set():
            with closing(self._open(catalogue)) as consumer:
                self._read_to_end(consumer)
            self.catalogue_read.set()
        if not any(topic in behaviour for topic, _ in self._positions):
            self._positions |= look_back(self._connection, behaviour, self._look_back_events)
        with closing(self._open([*catalogue, *behaviour])) as consumer:
            self._read_to_end(consumer)
            if not self._stop.is_set():
                self.caught_up.set()
            while not self._stop.is_set():
                self._poll(consumer)

    def _open(self, topics: Sequence[str]) -> PartitionConsumer:
        self._following = PartitionConsumer(self._connection, topics, start=self._positions)
        return self._following

    def _behaviour(self, catalogue: Sequence[str]) -> list[str]:
        """The topics that tell what shoppers do; none where their states come from elsewhere."""
        if not self._shoppers.reads_events:
            return []
        others = [topic for topic in self._topics.dialects if topic not in catalogue]
        return [self._topics.clicks, self._topics.purchases, *others]

    def _read_to_end(self, consumer: PartitionConsumer) -> None:
        """Read up to where the log ends now."""
        ends = consumer.end_offsets()
        while not self._stop.is_set():
            if all(consumer.positions()[at] >= end for at, end in ends.items()):
                return
            if not self._poll(consumer) and not any(consumer.lag().values()):
                return  # what lies before the end are no records: compacted, or marks of transactions

    def _poll(self, consumer: PartitionConsumer) -> int:
        records = consumer.poll(POLL_SECONDS, MAX_RECORDS)
        for record in records:
            self._take_in(record)
        self._positions |= consumer.positions()
        return len(records)

    def _take_in(self, record: Record) -> None:
        if record.topic == self._topics.adapters:
            self._announcements.hear(record.key, record.value)
            return
        if record.topic == self._topics.control:
            command = parse_control(record)
            if isinstance(command, Forget):
                self._shoppers.forget(command.user, until_ms=command.ts_ms)
            elif isinstance(command, Secret | SecretReset):
                self.secret_fingerprint = command.fingerprint if isinstance(command, Secret) else None
            return
        decoded = decode(record, self._topics)
        if isinstance(decoded, DeadLetter):
            return  # the updater's to report, once
        for event in decoded:
            if isinstance(event, Click | Purchase):
                self._shoppers.take_in(event, publish_ts_ms=record.timestamp_ms)
            elif isinstance(event, Item | ItemRemoved):
                self._items.take_in(event)
                self._shoppers.item_arrived(event.item_id)
