"""Sends a data set's catalogue, then its events at a chosen pace."""

import signal
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import track

from services.publish.command import open_producer
from services.replay.dataset import read_events, read_items
from services.replay.pacer import Pacer
from services.settings import Settings
from streams.events import Event
from streams.producer import EventProducer


@dataclass(slots=True)
class ReplaySummary:
    """What was sent.

    Attributes:
        items: Catalogue items delivered.
        events: Events delivered.
        skipped: Rows passed over, by their event type.
        seconds: How long the events took.
    """

    items: int = 0
    events: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0


def run(
    settings: Settings,
    *,
    items: Path,
    events: Path,
    rate: float | None = None,
    speed_up: float | None = None,
    max_events: int | None = None,
) -> ReplaySummary:
    """Replays a data set, until its end or until SIGTERM or SIGINT; what was sent is always delivered first.

    Args:
        settings: Which Kafka, which topics, which scenario.
        items: The catalogue's CSV file.
        events: The events' CSV file.
        rate: Events per second.
        speed_up: Seconds of the data's own time per second; with neither, as fast as the broker takes them.
        max_events: Ends after that many events.

    Raises:
        DatasetError: A file cannot be read.
        BrokerUnreachableError: No broker answered.
        DeliveryError: The broker did not confirm every event.
    """
    for first_row in (read_items(items), read_events(events, max_events=1)):
        next(first_row, None)  # a file that cannot be read is refused before anything is sent
    summary = ReplaySummary()
    with open_producer(settings) as producer, _stop_on_signals() as stop:
        pacer = Pacer(rate=rate, speed_up=speed_up, sleep=stop.wait)
        summary.items = _send(producer, read_items(items), stop)
        began = time.monotonic()
        rows = read_events(events, max_events=max_events, scenario=settings.scenario, skipped=summary.skipped)
        summary.events = _send(producer, _watched(rows), stop, pacer)
        summary.seconds = time.monotonic() - began
    return summary


def _send(producer: EventProducer, events: Iterable[Event], stop: threading.Event, pacer: Pacer | None = None) -> int:
    """Sends events until they end or `stop` is set, and gives the number that the broker confirmed."""
    before = producer.delivered
    for event in events:
        if pacer is not None:
            pacer.wait(event.ts)
        if stop.is_set():
            break
        producer.send(event)
    producer.flush()
    return producer.delivered - before


def _watched(events: Iterator[Event]) -> Iterable[Event]:
    """Counts the events on a person's terminal."""
    console = Console(stderr=True)
    return track(events, description="replaying", console=console, disable=not console.is_terminal)


@contextmanager
def _stop_on_signals() -> Iterator[threading.Event]:
    """Gives an event that SIGTERM and SIGINT set."""
    stop = threading.Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
