"""Passes over a stream: learn it, count it with constant weights, or count and judge it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from peft_adapters.learning.learner import Learner
from services.lab.offline.judging import Ranks
from services.lab.offline.stream import Stream, chunks
from streams.examples import Example, ShownList

Progress = Callable[[int], None]
Lessons = list[tuple[int, ShownList]]

_SCORES_AT_ONCE = 4_000_000  # events times items; bounds the memory of judging a large catalogue
_WHOLE_CATALOGUE = 2**62


def learn(
    model: Learner, stream: Stream, *, batch_events: int, waiting: Sequence[tuple[int, ShownList]] = (), step: Progress
) -> float:
    """Learn a stream in order, lists when they are due, and return the mean loss before each step, in nats per event.

    Args:
        model: the learner to train.
        stream: the events and lists to learn.
        batch_events: events per micro-batch.
        waiting: lessons of earlier lists, in order of their time.
        step: called with the number of events learnt.
    """
    losses = 0.0

    def take(examples: Sequence[Example]) -> None:
        nonlocal losses
        losses += model.learn(model.observe(examples, whole=False)) * len(examples)
        step(len(examples))

    def take_lists(lists: Sequence[ShownList]) -> None:
        model.learn_lists(model.observe_lists(lists))

    _walk(stream, take, take_lists, batch_events=batch_events, waiting=waiting)
    return losses / max(1, len(stream.examples))


def count(
    model: Learner,
    stream: Stream,
    *,
    batch_events: int,
    waiting: Sequence[tuple[int, ShownList]] = (),
    step: Progress,
    ranks: Ranks | None = None,
) -> None:
    """Count a stream with constant weights: counters and shoppers are updated, as they are where a model is served.

    Args:
        model: the learner whose counters are updated.
        stream: the events and lists to count.
        batch_events: events per micro-batch.
        waiting: lessons of earlier lists, in order of their time.
        step: called with the number of events counted.
        ranks: receives the rank of each event among the whole catalogue, by the state before its micro-batch.
    """

    def take(examples: Sequence[Example]) -> None:
        sold = model.ranker.counters.events > 0
        batch = model.observe(examples)
        if ranks is not None:
            ranks.add(model.judge(batch), batch.items, sold)
            ranks.first_of_item += batch.first_of_item.tolist()
            ranks.new_user += batch.new_shopper.tolist()
        model.count(batch)
        step(len(examples))

    def take_lists(lists: Sequence[ShownList]) -> None:
        model.count_lists(model.observe_lists(lists))

    if ranks is None:
        _walk(stream, take, take_lists, batch_events=batch_events, waiting=waiting)
        return
    batch_events = min(batch_events, max(1, _SCORES_AT_ONCE // len(model.catalogue)))
    with _judging_all(model):
        _walk(stream, take, take_lists, batch_events=batch_events, waiting=waiting)


def _walk(
    stream: Stream,
    take: Callable[[Sequence[Example]], None],
    take_lists: Callable[[Sequence[ShownList]], None],
    *,
    batch_events: int,
    waiting: Sequence[tuple[int, ShownList]],
) -> None:
    pending = list(waiting)
    for chunk in chunks(stream, batch_events):
        if chunk.examples:
            take(chunk.examples)
        pending += [lesson for shown in chunk.lists for lesson in shown.lessons]
        pending.sort(key=lambda lesson: lesson[0])
        due = bisect_right(pending, chunk.end_ms, key=lambda lesson: lesson[0])
        if due:
            take_lists([shown for _, shown in pending[:due]])
        del pending[:due]


@contextmanager
def _judging_all(model: Learner) -> Iterator[None]:
    """Rank the whole catalogue within this context, whatever its size."""
    settings = model.settings
    model.settings = settings.model_copy(update={"judged_items": _WHOLE_CATALOGUE})
    try:
        yield
    finally:
        model.settings = settings
