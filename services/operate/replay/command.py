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

from services.data.dataset import read_events, read_items
from services.data.rows import RefusedRows
from services.operate.replay.pacer import Pacer
from services.producers import open_producer
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
        refused: Rows that are no valid items or events.
        seconds: How long the events took.
    """

    items: int = 0
    events: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    refused: RefusedRows = field(default_factory=RefusedRows)
    seconds: float = 0.0


def run(
    settings: Settings,
    *,
    items: Path,
    events: Path | None,
    rate: float | None = None,
    speed_up: float | None = None,
    max_events: int | None = None,
    strict: bool = False,
) -> ReplaySummary:
    """Replays a data set, until its end or until SIGTERM or SIGINT; what was sent is always delivered first.

    Args:
        settings: Which Kafka, which topics, which scenario.
        items: The catalogue's table.
        events: The events' table; None sends the catalogue alone.
        rate: Events per second.
        speed_up: Seconds of the data's own time per second; with neither, as fast as the broker takes them.
        max_events: Ends after that many events.
        strict: Stop at the first bad row instead of skipping it.

    Raises:
        DatasetError: A file cannot be read, or has a bad row that is not to be skipped.
        BrokerUnreachableError: No broker answered.
        DeliveryError: The broker did not confirm every event.
    """
    _require_readable(items, events)
    summary = ReplaySummary(refused=RefusedRows(strict=strict))
    with open_producer(settings) as producer, _stop_on_signals() as stop:
        pacer = Pacer(rate=rate, speed_up=speed_up, sleep=stop.wait)
        summary.items = _send(producer, read_items(items, refused=summary.refused), stop)
        if events is None:
            return summary
        began = time.monotonic()
        rows = read_events(
            events,
            max_events=max_events,
            scenario=settings.scenario,
            skipped=summary.skipped,
            refused=summary.refused,
        )
        summary.events = _send(producer, _watched(rows), stop, pacer)
        summary.seconds = time.monotonic() - began
    return summary


def _require_readable(items: Path, events: Path | None) -> None:
    """Read the first rows, so that a file that cannot be read is refused before anything is sent."""
    next(read_items(items, refused=RefusedRows(strict=False)), None)
    if events is not None:
        next(read_events(events, refused=RefusedRows(strict=False)), None)


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
