"""A replay: who asks, what is judged, and what is learnt when."""

from __future__ import annotations

import math
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from peft_adapters.ranking.modalities import CatalogueItem
from peft_adapters.ranking.shoppers import Contexts, Shoppers, pad
from services.lab.backtest.policies import Policy
from services.lab.backtest.rivals import Rival
from services.lab.offline.judging import Flags, Ints, Ranks
from services.lab.offline.stream import Chunk, Shown, Stream, days
from streams.examples import Example, ShownList


@dataclass(frozen=True, slots=True)
class Data:
    """What every run of a backtest replays, and how.

    Attributes:
        items: the catalogue.
        warm_up: learnt first and never judged.
        stream: replayed.
        batch_events: records a micro-batch.
        label_delay_seconds: of event time, between an event and when it may be learnt.
        judge_after: events after this share of the stream are judged; all are learnt.
    """

    items: Sequence[CatalogueItem]
    warm_up: Sequence[Example]
    stream: Stream
    batch_events: int
    label_delay_seconds: float = 0.0
    judge_after: float = 0.0

    @property
    def first_judged(self) -> int:
        """Place of the first judged event in the stream."""
        return min(int(self.judge_after * len(self.stream.examples)), len(self.stream.examples) - 1)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What comes out of a run.

    Attributes:
        ranks: of judged events.
        events_learnt: clicks and purchases, the warm-up's included.
        learn_seconds: the learner's own, wall time.
        seconds: the whole replay's, judging included.
        publications: how often something newly learnt began to rank.
    """

    ranks: Ranks
    events_learnt: int
    learn_seconds: float
    seconds: float
    publications: int


@dataclass(frozen=True, slots=True)
class _Firsts:
    """What is new in some events, by the data that was judged or learnt before.

    Attributes:
        index: [events] place of each event in the stream, from 0.
        nth: [events] which event of its item it is, from 1.
        new_user: [events] no event of the user came before.
        sold: [catalogue] items that had an event before the micro-batch.
    """

    index: Ints
    nth: Ints
    new_user: Flags
    sold: Flags

    def part(self, begin: int, end: int) -> _Firsts:
        """Of some of the events."""
        return _Firsts(self.index[begin:end], self.nth[begin:end], self.new_user[begin:end], self.sold)


class Replay:
    """A replay so far.

    Shoppers' states are its own, as a scorer's are: they move on with every event, whatever is learnt and when.

    Args:
        policy: what is learnt, and when it begins to rank.
        data: the stream.
        rival: learns and ranks.
        learnt_before: the share of the events that it knows already: they are not learnt again.
    """

    def __init__(self, policy: Policy, data: Data, rival: Rival, *, learnt_before: float = 0.0) -> None:
        self._policy, self._data, self._rival = policy, data, rival
        examples = data.stream.examples
        self._ranks = Ranks(first_index=data.first_judged)
        self._lists_from_ms = examples[data.first_judged].ts if data.first_judged else -math.inf
        self._learns_from = int(learnt_before * len(examples))
        self._learns_until = math.ceil(policy.learns_percent / 100 * len(examples))
        self._delay_ms = int(1_000 * data.label_delay_seconds)
        self._shoppers = Shoppers()
        self._users: set[str] = set()
        self._item_events = np.zeros(len(rival.rows), dtype=np.int64)
        self._open: list[tuple[int, ShownList]] = []  # what is known of lists when, epoch ms, in order
        self._unlearnt: deque[tuple[int, Sequence[Example]]] = deque()  # micro-batches, and when each is due
        self._unlearnt_lists: deque[tuple[int, ShownList]] = deque()
        self._events = self._chunks = self._events_learnt = self._publications = 0
        self._learn_seconds, self._started = 0.0, time.perf_counter()
        self._day: int | None = None  # before which the copy that ranks was taken
        self._unpublished = False  # something is learnt that does not rank yet

    def warm_up(self) -> None:
        """Learn what came before the data."""
        examples, size = self._data.warm_up, self._data.batch_events
        for begin in range(0, len(examples), size):
            batch = examples[begin : begin + size]
            self._walk(batch)
            self._seen(batch)
            self._learn(batch)
        self._publish()
        self._publications = 0
        self._started = time.perf_counter()

    def outcome(self) -> Outcome:
        """What came out so far."""
        return Outcome(
            ranks=self._ranks,
            events_learnt=self._events_learnt,
            learn_seconds=self._learn_seconds,
            seconds=time.perf_counter() - self._started,
            publications=self._publications,
        )

    # ---- judging

    def judge(self, chunk: Chunk) -> None:
        """Judge a micro-batch by what is published; shoppers have moved on after it."""
        firsts, begin = self._seen(chunk.examples), 0
        for day, part in days(chunk) if self._policy.nightly else [(None, chunk)]:
            if day != self._day:
                self._day = day
                self._publish()  # all micro-batches learnt up to now ended before this day
            end = begin + len(part.examples)
            self._judge_lists(part.lists)
            self._judge(part.examples, firsts.part(begin, end))
            begin = end

    def _judge(self, examples: Sequence[Example], firsts: _Firsts) -> None:
        contexts = self._walk(examples)
        unjudged = int((firsts.index < self._data.first_judged).sum())
        if unjudged < len(examples):
            judged, firsts = examples[unjudged:], firsts.part(unjudged, len(examples))
            scores, rows = self._rival.scores(judged, _from(contexts, unjudged)), self._rows(judged)
            self._ranks.add(scores, rows, firsts.sold)
            self._ranks.add_first(scores, rows, nth=firsts.nth, index=firsts.index)
            self._ranks.first_of_item += (firsts.nth == 1).tolist()
            self._ranks.new_user += firsts.new_user.tolist()

    def _judge_lists(self, lists: Sequence[Shown]) -> None:
        """Judge what was shown by what was clicked of it, before any of its clicks is known."""
        judged = [shown.as_shown for shown in lists if shown.as_shown.ts >= self._lists_from_ms]
        nothing = [(False,) * len(shown.clicked) for shown in judged]
        asked = [replace(shown, clicked=none, bought=none) for shown, none in zip(judged, nothing, strict=True)]
        if asked:
            self._ranks.add_lists(self._rival.judge_lists(asked, self._shoppers), judged)

    def _walk(self, examples: Sequence[Example]) -> Contexts:
        """Contexts of events, each as of just before it."""
        contexts = []
        for example, item in zip(examples, self._rows(examples).tolist(), strict=True):
            who = (example.user_id, example.session_id, example.ts)
            contexts.append(self._shoppers.context(*who))
            self._shoppers.update(*who, item)
        return pad(contexts)

    def _seen(self, examples: Sequence[Example]) -> _Firsts:
        """What is new in events; they are known afterwards."""
        sold, rows = self._item_events > 0, self._rows(examples)
        nth, new = np.empty(len(rows), dtype=np.int64), np.empty(len(rows), dtype=np.bool_)
        for place, (example, row) in enumerate(zip(examples, rows, strict=True)):
            self._item_events[row] += 1
            nth[place], new[place] = self._item_events[row], example.user_id not in self._users
            self._users.add(example.user_id)
        return _Firsts(index=self._events + np.arange(len(rows)), nth=nth, new_user=new, sold=sold)

    def _rows(self, examples: Sequence[Example]) -> np.ndarray:
        return np.array([self._rival.rows[example.item_id] for example in examples], dtype=np.int64)

    # ---- learning

    def learn(self, chunk: Chunk) -> None:
        """Take in a judged micro-batch, learn what is due, and publish when it is time."""
        learning = self._learns_from <= self._events + len(chunk.examples) and self._events < self._learns_until
        wanted = chunk.examples[max(0, self._learns_from - self._events) : max(0, self._learns_until - self._events)]
        if wanted:
            self._unlearnt.append((wanted[-1].ts + self._delay_ms, wanted))
        closed = self._close_lists(chunk)
        if learning:
            self._unlearnt_lists += [(due_ms + self._delay_ms, shown) for due_ms, shown in closed]
            self._learn_due(chunk.end_ms)
        self._events += len(chunk.examples)
        self._chunks += 1
        if not self._policy.nightly and self._chunks % self._policy.publish_every_batches == 0:
            self._publish()

    def _close_lists(self, chunk: Chunk) -> list[tuple[int, ShownList]]:
        """What is known of lists by the end of a chunk; shoppers have passed over what they did not click by then."""
        self._open += [lesson for shown in chunk.lists for lesson in shown.lessons]
        self._open.sort(key=lambda lesson: lesson[0])
        due = bisect_right(self._open, chunk.end_ms, key=lambda lesson: lesson[0])
        closed, self._open = self._open[:due], self._open[due:]
        for _, shown in closed:
            if any(shown.clicked):  # else it may not have been seen
                passed = [item for item, was in zip(shown.item_ids, shown.clicked, strict=True) if not was]
                self._shoppers.pass_over(shown.user_id, shown.ts, [self._rival.rows[item] for item in passed])
        return closed

    def _learn_due(self, now_ms: int) -> None:
        while self._unlearnt and self._unlearnt[0][0] <= now_ms:
            self._learn(self._unlearnt.popleft()[1])
        lists = []
        while self._unlearnt_lists and self._unlearnt_lists[0][0] <= now_ms:
            lists.append(self._unlearnt_lists.popleft()[1])
        if lists:
            started = time.perf_counter()
            self._rival.learn_lists(lists)
            self._learn_seconds += time.perf_counter() - started
            self._unpublished = True

    def _learn(self, examples: Sequence[Example]) -> None:
        started = time.perf_counter()
        self._rival.learn(examples)
        self._learn_seconds += time.perf_counter() - started
        self._events_learnt += len(examples)
        self._unpublished = True

    def _publish(self) -> None:
        if self._unpublished:
            self._rival.publish()
            self._publications += 1
            self._unpublished = False


def _from(contexts: Contexts, begin: int) -> Contexts:
    return Contexts(contexts.items[begin:], contexts.ages[begin:], contexts.passed[begin:])
