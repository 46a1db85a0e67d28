"""Sends the events of a file or of standard input, and says what was sent and what was not."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import rich.progress
from rich.console import Console

from services.data.files import InputError
from services.operate.publish.lines import read_file
from services.producers import open_producer
from services.settings import Settings
from streams.errors import EventTooLargeError
from streams.events import Event
from streams.producer import EventProducer

BAD_LINES_SHOWN = 5
STANDARD_INPUT = Path("-")


@dataclass(slots=True)
class PublishSummary:
    """What became of the lines.

    Attributes:
        delivered: Events that the broker confirmed.
        bad: Lines that are no event.
        first_bad: Number and reason of the first few of them.
    """

    delivered: int = 0
    bad: int = 0
    first_bad: list[tuple[int, str]] = field(default_factory=list)

    def refuse(self, number: int, reason: str) -> None:
        """Counts a bad line and keeps the first few.

        Args:
            number: The line's number, from 1.
            reason: The rule it breaks.
        """
        self.bad += 1
        if len(self.first_bad) < BAD_LINES_SHOWN:
            self.first_bad.append((number, reason))


def run(settings: Settings, path: Path, *, kind: str | None = None, strict: bool = False) -> PublishSummary:
    """Publish a file of JSON documents or rows of a table; what is no event is skipped and counted.

    Args:
        settings: Which Kafka, which topics.
        path: The file; ``-`` is standard input.
        kind: The kind of every event; None leaves it to each line.
        strict: Stop at the first line that is no event.

    Raises:
        InputError: The file cannot be read, or has a bad line that is not to be skipped.
        BrokerUnreachableError: No broker answered within `BROKER_TIMEOUT_SECONDS`.
        DeliveryError: The broker did not confirm every event.
    """
    summary = PublishSummary()
    name = Path("standard input") if path == STANDARD_INPUT else path
    with _opened(path) as file, open_producer(settings) as producer:
        try:
            for number, event in read_file(file, name, kind=kind):
                fault = event if isinstance(event, str) else _sent(producer, event)
                if fault is not None and strict:
                    raise InputError(f"{name}, line {number}: {fault}; nothing from there on was sent")
                if fault is not None:
                    summary.refuse(number, fault)
        except InputError as error:
            producer.flush()
            if producer.delivered == 0:
                raise
            raise InputError(f"{error}; {producer.delivered:,} events before that were delivered") from error
    summary.delivered = producer.delivered
    return summary


def _sent(producer: EventProducer, event: Event) -> str | None:
    """Send an event; the reason if it is too large."""
    try:
        producer.send(event)
    except EventTooLargeError as error:
        return str(error)
    return None


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """Opens the input, with a progress bar for a person who watches a file being sent."""
    if path == STANDARD_INPUT:
        yield sys.stdin.buffer
        return
    console = Console(stderr=True)
    try:
        file = rich.progress.open(path, "rb", description=path.name, console=console, disable=not console.is_terminal)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    with file as opened:
        yield opened
