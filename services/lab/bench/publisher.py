"""Publisher of events at a rate, in a thread."""

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from uuid import uuid4

from services.lab.bench.deployment import BenchDeployment
from streams.delivery import Delivery
from streams.events import Event
from streams.producer import EventProducer

TICK_SECONDS = 0.02  # due events are sent together: one by one they would take a third of a core


class EventPublisher:
    """Publishes events to a deployment at a rate. As a context manager it stops with the context.

    When all events have been published they are published again, with new ids.

    Args:
        deployment: the deployment to publish to.
        events: the events, published again and again.
        per_second: events published per second.
        delivered: called for each event that the broker has confirmed.
    """

    def __init__(
        self,
        deployment: BenchDeployment,
        events: Sequence[Event],
        *,
        per_second: float,
        delivered: Callable[[Delivery], None] | None = None,
    ) -> None:
        self.published = 0
        self._events, self._per_second = events, per_second
        settings = deployment.settings
        self._producer = EventProducer(settings.kafka, settings.topics, on_delivery=delivered)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="bench-events", daemon=True)

    def __enter__(self) -> "EventPublisher":
        """Start publishing."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop, and wait until the broker has confirmed everything that was sent."""
        self._stop.set()
        self._thread.join()
        self._producer.close()

    def _run(self) -> None:
        began, turn = time.monotonic(), uuid4().hex[:8]
        for number, event in enumerate(itertools.cycle(self._events)):
            due = began + number / self._per_second
            if due > time.monotonic() and self._stop.wait(max(TICK_SECONDS, due - time.monotonic())):
                return
            event_id = f"bench-{turn}-{number}"  # unique per run, or a later run would look like duplicates
            self._producer.send(event.model_copy(update={"event_id": event_id, "ts": time.time_ns() // 1_000_000}))
            self.published += 1
