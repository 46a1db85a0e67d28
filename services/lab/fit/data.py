"""Data of a fit, split by time: the oldest events to train on, newer ones for validation, the newest for the test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from services.data.files import InputError
from services.data.rows import RefusedRows
from services.lab.offline.stream import Shown, Stream, read_stream
from services.settings.fit import FitSettings
from streams.examples import Example, ShownList

Record = TypeVar("Record", Example, ShownList)


@dataclass(frozen=True, slots=True)
class Split:
    """A stream in three consecutive parts.

    Attributes:
        train: the oldest events.
        validation: the events after the training events.
        test: the newest events.
    """

    train: Stream
    validation: Stream
    test: Stream

    @property
    def parts(self) -> tuple[Stream, Stream, Stream]:
        """Return the three parts in order."""
        return self.train, self.validation, self.test

    @property
    def events(self) -> int:
        """Return the number of clicks and purchases in all parts."""
        return sum(len(part.examples) for part in self.parts)


def read_split(
    path: Path,
    known: set[str],
    settings: FitSettings,
    *,
    first_percent: float,
    pseudonymise: Callable[[str], str],
    refused: RefusedRows | None = None,
) -> Split:
    """Read a stream and split it.

    Args:
        path: file of events, see `services.data.dataset`.
        known: ids of the catalogue's items.
        settings: settings with the percentages of the split.
        first_percent: percentage of the events to read, the oldest ones; the rest is left for a backtest.
        pseudonymise: replaces the ids of users and sessions.
        refused: collects the rows that are not valid events; without it the first one is an error.

    Raises:
        InputError: the file cannot be read, or has too few events for three parts.
    """
    stream = read_stream(
        path, known, max_events=None, click_window_seconds=settings.click_window_seconds, refused=refused
    )
    first_part = until_percent(stream, first_percent)
    split = split_by_time(_hidden(first_part, pseudonymise), settings)
    if not all(part.examples for part in split.parts):
        raise InputError(
            f"{path}: {len(first_part.examples)} events are too few for three parts of {settings.train_percent:g}, "
            f"{settings.validation_percent:g} and {100 - settings.train_percent - settings.validation_percent:g} %; "
            "give more events"
        )
    return split


def until_percent(stream: Stream, percent: float) -> Stream:
    """Return the first `percent` of the clicks and purchases, and the lists shown before the next one."""
    return _between(stream, 0, _share(stream, percent))


def split_by_time(stream: Stream, settings: FitSettings) -> Split:
    """Return the three parts of a stream; a part may be empty if there are few events."""
    first = _share(stream, settings.train_percent)
    second = _share(stream, settings.train_percent + settings.validation_percent)
    return Split(
        _between(stream, 0, first), _between(stream, first, second), _between(stream, second, len(stream.examples))
    )


def waiting_after(stream: Stream) -> list[tuple[int, ShownList]]:
    """Return the lessons of lists that are not due when the stream ends, in order of their time."""
    end_ms = max([example.ts for example in stream.examples] + [shown.as_shown.ts for shown in stream.lists])
    lessons = [lesson for shown in stream.lists for lesson in shown.lessons if lesson[0] > end_ms]
    return sorted(lessons, key=lambda lesson: lesson[0])


def _share(stream: Stream, percent: float) -> int:
    return int(len(stream.examples) * percent / 100)


def _between(stream: Stream, start: int, end: int) -> Stream:
    """Return positives `start` to `end`, and the lists shown from the first of them up to the next positive."""
    examples = stream.examples
    from_ms = examples[start].ts if 0 < start < len(examples) else None
    to_ms = examples[end].ts if end < len(examples) else None
    lists = [
        shown
        for shown in stream.lists
        if (from_ms is None or shown.as_shown.ts >= from_ms) and (to_ms is None or shown.as_shown.ts < to_ms)
    ]
    return Stream(examples[start:end], lists)


def _hidden(stream: Stream, pseudonymise: Callable[[str], str]) -> Stream:
    """Return the stream with pseudonyms instead of shoppers' ids, as everything behind the intake sees them."""

    def hide(record: Record) -> Record:
        session = record.session_id
        return replace(
            record, user_id=pseudonymise(record.user_id), session_id=None if session is None else pseudonymise(session)
        )

    lists = [
        Shown(hide(shown.as_shown), tuple((due_ms, hide(part)) for due_ms, part in shown.lessons))
        for shown in stream.lists
    ]
    return Stream([hide(example) for example in stream.examples], lists)
