"""Publishing of the events of a file or of standard input, with a summary of delivered and bad lines."""

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
    """The outcome for the lines of a file.

    Attributes:
        delivered: the number of events that the broker confirmed.
        bad: the number of lines that are not valid events.
        first_bad: line number and reason of the first few bad lines.
    """

    delivered: int = 0
    bad: int = 0
    first_bad: list[tuple[int, str]] = field(default_factory=list)

    def refuse(self, number: int, reason: str) -> None:
        """Count a bad line, and keep the first few.

        Args:
            number: the line's number, from 1.
            reason: the rule that it breaks.
        """
        self.bad += 1
        if len(self.first_bad) < BAD_LINES_SHOWN:
            self.first_bad.append((number, reason))


def run(settings: Settings, path: Path, *, kind: str | None = None, strict: bool = False) -> PublishSummary:
    """Publish a file of JSON documents or rows of a table; bad lines are skipped and counted.

    Args:
        settings: the settings with brokers and topics.
        path: the file; ``-`` is standard input.
        kind: the kind of every event; None reads it from each line.
        strict: whether to stop at the first bad line.

    Raises:
        InputError: the file cannot be read, or has a bad line and `strict` is set.
        BrokerUnreachableError: no broker answered within `BROKER_TIMEOUT_SECONDS`.
        DeliveryError: the broker did not confirm every event.
    """
    summary = PublishSummary()
    name = Path("standard input") if path == STANDARD_INPUT else path
    with _open(path) as file, open_producer(settings) as producer:
        try:
            for number, event in read_file(file, name, kind=kind):
                fault = event if isinstance(event, str) else _send(producer, event)
                if fault is not None and strict:
                    raise InputError(f"{name}, line {number}: {fault}; nothing from that line on was sent")
                if fault is not None:
                    summary.refuse(number, fault)
        except InputError as error:
            producer.flush()
            if producer.delivered == 0:
                raise
            raise InputError(f"{error}; {producer.delivered:,} events before that were delivered") from error
    summary.delivered = producer.delivered
    return summary


def _send(producer: EventProducer, event: Event) -> str | None:
    """Send an event; return the reason if it is too large."""
    try:
        producer.send(event)
    except EventTooLargeError as error:
        return str(error)
    return None


@contextmanager
def _open(path: Path) -> Iterator[IO[bytes]]:
    """Open the input, with a progress bar for a file on a terminal."""
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
