"""Publishes events at a rate, from a thread, until told to stop."""

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from uuid import uuid4

from services.lab.bench.deployment import BenchDeployment
from streams.delivery import Delivery
from streams.events import Event
from streams.producer import EventProducer

TICK_SECONDS = 0.02  # events that are due go together, as from a busy producer: one by one they take a third of a core


class Publishing:
    """Events on their way into a deployment. A context manager: it stops with the context.

    When all events have been published they come again, under ids of their own.

    Args:
        deployment: Where to.
        events: Which; they come over and over.
        per_second: How many.
        delivered: Told of each one that the broker has confirmed.
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

    def __enter__(self) -> "Publishing":
        """Begins."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stops, and waits until the broker has all that was sent."""
        self._stop.set()
        self._thread.join()
        self._producer.close()

    def _run(self) -> None:
        began, turn = time.monotonic(), uuid4().hex[:8]
        for number, event in enumerate(itertools.cycle(self._events)):
            due = began + number / self._per_second
            if due > time.monotonic() and self._stop.wait(max(TICK_SECONDS, due - time.monotonic())):
                return
            event_id = f"bench-{turn}-{number}"  # a later run must not be taken for repeats of this one
            self._producer.send(event.model_copy(update={"event_id": event_id, "ts": time.time_ns() // 1_000_000}))
            self.published += 1
