"""Streams that offline work replays: positives, and lists with the times when each is judged and learnt."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path

from services.data.dataset import guest_id, read_events
from services.data.files import InputError
from services.data.rows import RefusedRows
from streams.events import Click, Impression, Purchase, normalize_query
from streams.examples import Example, ShownList, example_of

_DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class Shown:
    """A list in a replay.

    Attributes:
        as_shown: the list with every click and purchase that it led to; it is judged by them.
        lessons: the parts to learn, each with the epoch ms when it is due: the list when its click window has passed,
            and each later click or purchase when it came.
    """

    as_shown: ShownList
    lessons: tuple[tuple[int, ShownList], ...]


@dataclass(frozen=True, slots=True)
class Stream:
    """A stream of positives and lists, each in time order.

    Attributes:
        examples: the clicks and purchases.
        lists: the lists that shoppers were shown.
        guests: user ids that stand for rows without one.
    """

    examples: list[Example]
    lists: list[Shown]
    guests: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Chunk:
    """A micro-batch of records, judged before any of it is learnt."""

    lists: list[Shown]
    examples: Sequence[Example]
    end_ms: int


def read_stream(
    path: Path,
    known: set[str],
    *,
    max_events: int | None,
    click_window_seconds: float,
    refused: RefusedRows | None = None,
) -> Stream:
    """Return the clicks, purchases and impressions of a file, joined by `request_id`; other rows are ignored.

    Args:
        path: file of events, see `services.data.dataset`.
        known: ids of the catalogue's items.
        max_events: number of clicks and purchases after which the stream ends; None reads it all.
        click_window_seconds: event time after which a shown list is learnt.
        refused: collects the rows that are not valid events, and events of items whose own rows were refused; without
            it the first one is an error.

    Raises:
        InputError: there is no click or purchase, or one is of an item that the catalogue does not have.
    """
    refused = refused or RefusedRows()
    events = read_events(path, refused=refused)
    signals = (event for event in events if isinstance(event, Click | Purchase | Impression))
    positives: list[Click | Purchase] = []
    impressions: list[Impression] = []
    for event in signals:
        if isinstance(event, Impression):
            impressions.append(event)
        elif event.item_id in refused.item_ids and event.item_id not in known:
            refused.refuse(f"{path}, event {event.event_id}: the row of its item {event.item_id!r} was refused")
        elif len(positives) == max_events:
            break
        else:
            positives.append(event)
    if not positives:
        why = f"{refused.count:,} rows were refused, first: {refused.named[0]}" if refused.count else ""
        raise InputError(f"{path}: expected clicks or purchases, found none; {why or 'check its event_type column'}")
    unknown = {event.item_id for event in positives} - known
    if unknown:
        raise InputError(
            f"{path}: {len(unknown)} items are not in the catalogue, among them {sorted(unknown)[:3]}; "
            "add them to the items"
        )
    queries = {event.request_id: normalize_query(event.query) for event in impressions}
    examples = [
        example_of(
            event, publish_ts_ms=event.ts, query=normalize_query(event.query) or queries.get(event.request_id or "")
        )
        for event in positives
    ]
    clicked, bought = (
        _first_times(positives),
        _first_times([event for event in positives if isinstance(event, Purchase)]),
    )
    window_ms = int(1000 * click_window_seconds)
    lists = [
        _shown(event, known, clicked[event.request_id], bought[event.request_id], window_ms) for event in impressions
    ]
    return Stream(
        sorted(examples, key=lambda example: example.ts),
        sorted(lists, key=lambda shown: shown.as_shown.ts),
        frozenset(event.user_id for event in positives if event.user_id == guest_id(event.session_id, event.event_id)),
    )


def _first_times(events: Sequence[Click | Purchase]) -> dict[str, dict[str, int]]:
    """Return by request the time of the first event of each item."""
    times: dict[str, dict[str, int]] = defaultdict(dict)
    for event in events:
        if event.request_id is not None:
            first = times[event.request_id]
            first[event.item_id] = min(event.ts, first.get(event.item_id, event.ts))
    return times


def _shown(
    event: Impression, known: set[str], clicked: dict[str, int], bought: dict[str, int], window_ms: int
) -> Shown:
    """Return a list with its lessons, from the times of its first clicks (or purchases) and purchases."""
    due_ms = event.ts + window_ms
    items = [item for item in event.items if item["item_id"] in known]
    ids = [item["item_id"] for item in items]

    def part(
        which: Sequence[int], *, from_ms: float = 0, to_ms: float = math.inf, is_correction: bool = False
    ) -> ShownList:
        def came(times: Mapping[str, int]) -> tuple[bool, ...]:
            return tuple(from_ms <= times.get(ids[index], math.inf) < to_ms for index in which)

        return ShownList(
            user_id=event.user_id,
            session_id=event.session_id,
            ts=event.ts,
            item_ids=tuple(ids[index] for index in which),
            positions=tuple(items[index]["position"] for index in which),
            clicked=came(clicked),
            bought=came(bought),
            is_correction=is_correction,
            query=normalize_query(event.query),
        )

    everything = range(len(items))
    lessons = [(due_ms, part(everything, to_ms=due_ms))]
    for index, item_id in enumerate(ids):
        for came_ms in sorted({times[item_id] for times in (clicked, bought) if times.get(item_id, 0) >= due_ms}):
            lessons.append((came_ms, part([index], from_ms=came_ms, to_ms=came_ms + 1, is_correction=True)))
    return Shown(part(everything), tuple(lessons))


def chunks(stream: Stream, size: int) -> Iterator[Chunk]:
    """Cut the stream every `size` records of any kind, in time order, lists before positives of the same time."""
    records: list[tuple[int, Example | Shown]] = [(shown.as_shown.ts, shown) for shown in stream.lists]
    records += [(example.ts, example) for example in stream.examples]
    in_order = iter(sorted(records, key=lambda record: record[0]))
    while part := list(islice(in_order, size)):
        yield _chunk(part)


def days(chunk: Chunk) -> Iterator[tuple[int, Chunk]]:
    """Cut a chunk at the midnights (UTC) in it, and yield the days since 1970 with their parts, in order."""
    records: list[tuple[int, Example | Shown]] = [(shown.as_shown.ts, shown) for shown in chunk.lists]
    records += [(example.ts, example) for example in chunk.examples]
    in_order = sorted(records, key=lambda record: record[0])
    for day, of_day in groupby(in_order, key=lambda record: record[0] // _DAY_MS):
        yield day, _chunk(list(of_day))


def _chunk(records: Sequence[tuple[int, Example | Shown]]) -> Chunk:
    return Chunk(
        [record for _, record in records if isinstance(record, Shown)],
        [record for _, record in records if isinstance(record, Example)],
        records[-1][0],
    )
