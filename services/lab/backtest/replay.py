"""Replay of a stream through one policy: shoppers' contexts, judging, learning and publishing."""

from __future__ import annotations

import math
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from peft_adapters.ranking.modalities import CatalogueItem
from peft_adapters.ranking.shoppers import Contexts, Shoppers, pad
from services.lab.backtest.policies import Policy
from services.lab.backtest.policy_models import PolicyModel
from services.lab.offline.judged_queries import JudgedQuery, QueryRanks
from services.lab.offline.judging import Flags, Ints, Ranks
from services.lab.offline.stream import Chunk, Shown, Stream, days
from streams.examples import Example, ShownList

_QUERIES_AT_ONCE = 64  # judged queries scored at a time: bounds the memory of scores [queries, catalogue]


@dataclass(frozen=True, slots=True)
class Data:
    """The data of a backtest, and how every run replays it.

    Attributes:
        items: the catalogue to rank.
        warm_up: earlier events, learnt first and never judged.
        stream: the events and lists to replay.
        batch_events: records per micro-batch.
        label_delay_seconds: event time between an event and when it may be learnt.
        judge_after: share of the stream before the first judged event; all of it is learnt.
        prices: price of each item that has one.
        judged_queries: queries with graded items, judged at the end and never learnt.
        judge_queries_every: events between two judgements of these queries as the stream goes; None judges at the end.
    """

    items: Sequence[CatalogueItem]
    warm_up: Sequence[Example]
    stream: Stream
    batch_events: int
    label_delay_seconds: float = 0.0
    judge_after: float = 0.0
    prices: Mapping[str, float] = field(default_factory=dict)
    judged_queries: Sequence[JudgedQuery] = ()
    judge_queries_every: int | None = None

    @property
    def first_judged(self) -> int:
        """Return the index of the first judged event in the stream."""
        return min(int(self.judge_after * len(self.stream.examples)), len(self.stream.examples) - 1)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a run.

    Attributes:
        ranks: ranks of the judged events.
        events_learnt: clicks and purchases learnt, the warm-up's included.
        learn_seconds: wall time of learning alone.
        seconds: wall time of the whole replay, judging included.
        publications: number of times that a newly learnt state was published.
        queries: figures of the judged queries as the stream went, the end last; empty without such queries.
    """

    ranks: Ranks
    events_learnt: int
    learn_seconds: float
    seconds: float
    publications: int
    queries: Sequence[QueryRanks] = ()


@dataclass(frozen=True, slots=True)
class _Novelty:
    """Properties of some events with respect to the events before them.

    Attributes:
        index: [events] index of each event in the stream, from 0.
        nth: [events] number of each event among its item's events, from 1.
        new_user: [events] whether the user has no earlier event.
        sold: [catalogue] whether the item had an event before the micro-batch.
    """

    index: Ints
    nth: Ints
    new_user: Flags
    sold: Flags

    def part(self, begin: int, end: int) -> _Novelty:
        """Return the properties of the events from `begin` to `end`."""
        return _Novelty(self.index[begin:end], self.nth[begin:end], self.new_user[begin:end], self.sold)


class Replay:
    """The state of a replay.

    Shoppers' states belong to the replay, as they belong to a scorer: every event updates them, learnt or not.

    Args:
        policy: the policy, which says what is learnt and when it is published.
        data: the data to replay.
        model: the model that learns and ranks.
        learnt_before: share of the events that the model has learnt already; they are not learnt again.
    """

    def __init__(self, policy: Policy, data: Data, model: PolicyModel, *, learnt_before: float = 0.0) -> None:
        self._policy, self._data, self._model = policy, data, model
        examples = data.stream.examples
        self._ranks = Ranks(first_index=data.first_judged)
        self._lists_from_ms = examples[data.first_judged].ts if data.first_judged else -math.inf
        self._learns_from = int(learnt_before * len(examples))
        self._learns_until = math.ceil(policy.learns_percent / 100 * len(examples))
        self._delay_ms = int(1_000 * data.label_delay_seconds)
        self._shoppers = Shoppers()
        self._users: set[str] = set()
        self._item_events = np.zeros(len(model.rows), dtype=np.int64)
        self._open: list[tuple[int, ShownList]] = []  # lessons of lists with their due time, epoch ms, in order
        self._unlearnt: deque[tuple[int, Sequence[Example]]] = deque()  # due time, epoch ms, and micro-batch
        self._unlearnt_lists: deque[tuple[int, ShownList]] = deque()
        self._events = self._chunks = self._events_learnt = self._publications = 0
        self._learn_seconds, self._started = 0.0, time.perf_counter()
        self._now_ms = 0  # end of the last micro-batch
        self._day: int | None = None  # day on which the published copy was taken
        self._unpublished = False  # whether something was learnt since the last publication
        self._queries: list[QueryRanks] = []
        self._next_queries = data.judge_queries_every or math.inf  # events from which queries are judged again

    def warm_up(self) -> None:
        """Learn the earlier events of the data."""
        examples, size = self._data.warm_up, self._data.batch_events
        for begin in range(0, len(examples), size):
            batch = examples[begin : begin + size]
            self._contexts(batch)
            self._observe(batch)
            self._learn(batch)
        self._publish()
        self._publications = 0
        self._started = time.perf_counter()

    def outcome(self) -> Outcome:
        """Return the outcome so far."""
        return Outcome(
            ranks=self._ranks,
            events_learnt=self._events_learnt,
            learn_seconds=self._learn_seconds,
            seconds=time.perf_counter() - self._started,
            publications=self._publications,
            queries=self._queries,
        )

    # ---- judging

    def judge_queries(self) -> None:
        """Judge the queries of the data by the published state, for shoppers of whom nothing is known."""
        judged, ranks = self._data.judged_queries, QueryRanks(self._events)
        if self._queries and self._queries[-1].events == self._events:
            return
        for begin in range(0, len(judged), _QUERIES_AT_ONCE):
            part = judged[begin : begin + _QUERIES_AT_ONCE]
            examples = [_search(query.query, next(iter(query.relevance)), self._now_ms) for query in part]
            relevance = [
                ([self._model.rows[item] for item in query.relevance], list(query.relevance.values())) for query in part
            ]
            ranks.add(self._model.scores(examples, pad([([], [])] * len(part))), relevance)
        if judged:
            self._queries.append(ranks)

    def _judge_queries_if_due(self) -> None:
        every = self._data.judge_queries_every
        if every is not None and self._events >= self._next_queries:
            self.judge_queries()
            self._next_queries = every * (self._events // every + 1)

    def judge(self, chunk: Chunk) -> None:
        """Judge a micro-batch by the published state, and update the shoppers."""
        novelty, begin = self._observe(chunk.examples), 0
        for day, part in days(chunk) if self._policy.nightly else [(None, chunk)]:
            if day != self._day:
                self._day = day
                self._publish()  # all micro-batches learnt so far ended before this day
            end = begin + len(part.examples)
            self._judge_lists(part.lists)
            self._judge(part.examples, novelty.part(begin, end))
            begin = end

    def _judge(self, examples: Sequence[Example], novelty: _Novelty) -> None:
        contexts = self._contexts(examples)
        unjudged = int((novelty.index < self._data.first_judged).sum())
        if unjudged < len(examples):
            judged, novelty = examples[unjudged:], novelty.part(unjudged, len(examples))
            scores, rows = self._model.scores(judged, _from(contexts, unjudged)), self._rows(judged)
            self._ranks.add(scores, rows, novelty.sold)
            self._ranks.add_first(scores, rows, nth=novelty.nth, index=novelty.index)
            self._ranks.first_of_item += (novelty.nth == 1).tolist()
            self._ranks.new_user += novelty.new_user.tolist()

    def _judge_lists(self, lists: Sequence[Shown]) -> None:
        """Judge lists by their clicks, which the model does not see."""
        judged = [shown.as_shown for shown in lists if shown.as_shown.ts >= self._lists_from_ms]
        nothing = [(False,) * len(shown.clicked) for shown in judged]
        unclicked = [replace(shown, clicked=none, bought=none) for shown, none in zip(judged, nothing, strict=True)]
        if unclicked:
            self._ranks.add_lists(self._model.judge_lists(unclicked, self._shoppers), judged)

    def _contexts(self, examples: Sequence[Example]) -> Contexts:
        """Return the contexts of events, each as of just before its event, and update the shoppers."""
        contexts = []
        for example, item in zip(examples, self._rows(examples).tolist(), strict=True):
            who = (example.user_id, example.session_id, example.ts)
            contexts.append(self._shoppers.context(*who))
            self._shoppers.update(*who, item)
        return pad(contexts)

    def _observe(self, examples: Sequence[Example]) -> _Novelty:
        """Record events, and return which users and items are new in them."""
        sold, rows = self._item_events > 0, self._rows(examples)
        nth, new = np.empty(len(rows), dtype=np.int64), np.empty(len(rows), dtype=np.bool_)
        for place, (example, row) in enumerate(zip(examples, rows, strict=True)):
            self._item_events[row] += 1
            nth[place], new[place] = self._item_events[row], example.user_id not in self._users
            self._users.add(example.user_id)
        return _Novelty(index=self._events + np.arange(len(rows)), nth=nth, new_user=new, sold=sold)

    def _rows(self, examples: Sequence[Example]) -> np.ndarray:
        return np.array([self._model.rows[example.item_id] for example in examples], dtype=np.int64)

    # ---- learning

    def learn(self, chunk: Chunk) -> None:
        """Queue a judged micro-batch, learn what is due, and publish if the policy says so."""
        learning = self._learns_from <= self._events + len(chunk.examples) and self._events < self._learns_until
        to_learn = chunk.examples[max(0, self._learns_from - self._events) : max(0, self._learns_until - self._events)]
        if to_learn:
            self._unlearnt.append((to_learn[-1].ts + self._delay_ms, to_learn))
        closed = self._close_lists(chunk)
        if learning:
            self._unlearnt_lists += [(due_ms + self._delay_ms, shown) for due_ms, shown in closed]
            self._learn_due(chunk.end_ms)
        self._events += len(chunk.examples)
        self._chunks += 1
        self._now_ms = chunk.end_ms
        if not self._policy.nightly and self._chunks % self._policy.publish_every_batches == 0:
            self._publish()
        self._judge_queries_if_due()

    def _close_lists(self, chunk: Chunk) -> list[tuple[int, ShownList]]:
        """Return the lessons of lists due by the end of a chunk, and record the items that shoppers did not click."""
        self._open += [lesson for shown in chunk.lists for lesson in shown.lessons]
        self._open.sort(key=lambda lesson: lesson[0])
        due = bisect_right(self._open, chunk.end_ms, key=lambda lesson: lesson[0])
        closed, self._open = self._open[:due], self._open[due:]
        for _, shown in closed:
            if any(shown.clicked):  # a list without clicks may not have been seen
                passed = [item for item, clicked in zip(shown.item_ids, shown.clicked, strict=True) if not clicked]
                self._shoppers.pass_over(shown.user_id, shown.ts, [self._model.rows[item] for item in passed])
        return closed

    def _learn_due(self, now_ms: int) -> None:
        while self._unlearnt and self._unlearnt[0][0] <= now_ms:
            self._learn(self._unlearnt.popleft()[1])
        lists = []
        while self._unlearnt_lists and self._unlearnt_lists[0][0] <= now_ms:
            lists.append(self._unlearnt_lists.popleft()[1])
        if lists:
            started = time.perf_counter()
            self._model.learn_lists(lists)
            self._learn_seconds += time.perf_counter() - started
            self._unpublished = True

    def _learn(self, examples: Sequence[Example]) -> None:
        started = time.perf_counter()
        self._model.learn(examples)
        self._learn_seconds += time.perf_counter() - started
        self._events_learnt += len(examples)
        self._unpublished = True

    def _publish(self) -> None:
        if self._unpublished:
            self._model.publish()
            self._publications += 1
            self._unpublished = False


def _search(query: str, item_id: str, ts_ms: int) -> Example:
    """Return a search by a shopper of whom nothing is known, as an event that a model can score."""
    return Example(
        event_id="",
        user_id="",
        session_id=None,
        item_id=item_id,
        ts=ts_ms,
        kind="click",
        scenario="search",
        position=None,
        publish_ts_ms=ts_ms,
        query=query,
    )


def _from(contexts: Contexts, begin: int) -> Contexts:
    return contexts.part(slice(begin, None))
