"""A broker, a Redis server, and writers of shoppers' states between them."""

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry
from redis_server import RedisServer

from services.metrics.state_writer import StateWriterMetrics
from services.state.entries import unpack_entries
from services.state.store import StateStore
from services.state.writer import StateWriter
from streams.connection import KafkaConnection
from streams.events import Click, Purchase
from streams.producer import EventProducer
from streams.topics import Topics


def click(number: int, user_id: str, item_id: str = "a") -> Click:
    return Click(event_id=f"c{number}", ts=number, user_id=user_id, item_id=item_id)


def until(holds: Callable[[], bool], *, timeout_seconds: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.01)


class Deployment:
    """A broker, a server, and writers between them."""

    def __init__(self, connection: KafkaConnection, topics: Topics, server: RedisServer) -> None:
        self.connection, self.topics, self.server = connection, topics, server
        self.settings = server.settings(f"t{uuid.uuid4().hex[:8]}")
        self.store = self.new_store()
        self.registry = CollectorRegistry()
        self.metrics = StateWriterMetrics(self.registry)
        self.producer = EventProducer(connection, topics)

    def new_store(self, fingerprint: str = "one") -> StateStore:
        return StateStore(self.settings, fingerprint=fingerprint, timeout_seconds=5.0)

    def writer(self, store: StateStore | None = None, *, look_back_events: int = 1_000) -> StateWriter:
        return StateWriter(
            self.connection,
            self.topics,
            store or self.store,
            look_back_events=look_back_events,
            pseudonymise=str,
            metrics=self.metrics,
        )

    @contextmanager
    def writing(self, writer: StateWriter | None = None) -> Iterator[None]:
        writer = writer or self.writer()
        thread = threading.Thread(target=writer.run)
        thread.start()
        try:
            yield
        finally:
            writer.stop()
            thread.join(30)
            assert not thread.is_alive()

    def send(self, *events: Click | Purchase) -> None:
        for event in events:
            self.producer.send(event)
        self.producer.flush()

    def times(self, user_id: str) -> list[int]:
        """Event times of what is kept of a shopper, oldest first."""
        return [entry.ts_ms for entry in reversed(unpack_entries(self.store.entries(user_id))[0])]

    def written(self, outcome: str) -> float | None:
        return self.registry.get_sample_value("headwater_state_events_total", {"outcome": outcome})
