"""Replay of a data set: its catalogue, then its events at a chosen pace."""

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
    """The outcome of a replay.

    Attributes:
        items: the number of delivered catalogue items.
        events: the number of delivered events.
        skipped: the number of skipped rows by event type.
        refused: the rows that are not valid items or events.
        seconds: the time that the events took.
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
    """Replay a data set until its end, or until SIGTERM or SIGINT; sent events are delivered in any case.

    Args:
        settings: the settings with brokers, topics and scenario.
        items: the table of the catalogue.
        events: the table of events; None sends the catalogue alone.
        rate: events per second; None sets no rate.
        speed_up: seconds of the data's own time per second; without rate and speed-up the broker sets the pace.
        max_events: the most events to send; None sends all.
        strict: whether to stop at the first bad row instead of skipping it.

    Raises:
        InputError: a file cannot be read, or has a bad row and `strict` is set.
        BrokerUnreachableError: no broker answered.
        DeliveryError: the broker did not confirm every event.
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
        summary.events = _send(producer, _with_progress(rows), stop, pacer)
        summary.seconds = time.monotonic() - began
    return summary


def _require_readable(items: Path, events: Path | None) -> None:
    """Read the first rows, so that a file that cannot be read is refused before anything is sent."""
    next(read_items(items, refused=RefusedRows(strict=False)), None)
    if events is not None:
        next(read_events(events, refused=RefusedRows(strict=False)), None)


def _send(producer: EventProducer, events: Iterable[Event], stop: threading.Event, pacer: Pacer | None = None) -> int:
    """Send events until they end or `stop` is set; return the number that the broker confirmed."""
    before = producer.delivered
    for event in events:
        if pacer is not None:
            pacer.wait(event.ts)
        if stop.is_set():
            break
        producer.send(event)
    producer.flush()
    return producer.delivered - before


def _with_progress(events: Iterator[Event]) -> Iterable[Event]:
    """Show the progress on a terminal."""
    console = Console(stderr=True)
    return track(events, description="replaying", console=console, disable=not console.is_terminal)


@contextmanager
def _stop_on_signals() -> Iterator[threading.Event]:
    """Yield an event that SIGTERM and SIGINT set."""
    stop = threading.Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
