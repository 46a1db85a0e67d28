"""Candidates and features of the baseline `lambdamart`, and the streaming counts that they are computed from."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from peft_adapters.learning.batches import Positive
from peft_adapters.ranking.arrays import FloatArray, IntArray
from peft_adapters.ranking.counter_features import CounterFeatures
from peft_adapters.ranking.counters import Counters
from peft_adapters.ranking.session_neighbours import SessionNeighbours
from peft_adapters.ranking.shoppers import Contexts
from peft_adapters.settings import COUNTER_FEATURES
from services.lab.backtest.lambdamart_kernels import OF_CONTEXT, OF_ITEM, OF_SHOPPER, history_features, mark_best

OF_NEIGHBOURS = (
    *("neighbours_share", "neighbours_after_share", "neighbours_anywhere_share"),
    *("neighbours", "neighbours_after"),
)
OF_TEXT = ("text_last_item", "text_session", "text_history")
FIRST_STAGE = "first_stage"
OF_FIRST_STAGE = (
    FIRST_STAGE,
    "first_stage_rank",
    "text_last_item_below",
    "text_session_below",
    "neighbours_after_below",
)
_DENSE = (*COUNTER_FEATURES, *OF_NEIGHBOURS, *OF_TEXT)  # computed for the whole catalogue
FEATURES = (*_DENSE, *OF_SHOPPER, *OF_ITEM, *OF_CONTEXT, *OF_FIRST_STAGE)

# Largest number of candidates that each source proposes.
_SOURCES = {
    "popularity_fast": 30,
    "popularity_slow": 20,
    "transition": 50,
    "skip_transition": 60,
    "session_cooccurrence": 60,
    "history_cooccurrence": 40,
    "neighbour_cooccurrence": 40,
    "repeat": 128,
    "neighbours_share": 60,
    "neighbours_after_share": 60,
    "text_last_item": 40,
    "text_session": 30,
    "text_history": 20,
}
# Weights of the linear score that trees begin from, set by hand: logarithms of shares count alike.
_FIRST_STAGE_WEIGHTS = {
    "popularity_slow": 0.3,
    "transition": 1.0,
    "session_cooccurrence": 1.0,
    "history_cooccurrence": 0.5,
    "repeat": 1.0,
    "neighbours_share": 1.0,
    "neighbours_after_share": 1.0,
    "text_last_item": 4.0,
    "text_session": 4.0,
    "text_history": 2.0,
}
_BELOW = ("text_last_item", "text_session", "neighbours_after_share")  # whose distance to the best is a feature too
_CELLS = 2**19  # contexts x items at a time: bounds memory to about 50 MB


@dataclass(frozen=True, slots=True)
class Candidates:
    """The candidates of a request.

    Attributes:
        rows: [candidates] catalogue rows.
        features: [candidates, FEATURES] their features.
        first_stage: [items] linear score of the whole catalogue.
    """

    rows: IntArray
    features: FloatArray
    first_stage: FloatArray


@dataclass(frozen=True, slots=True)
class Request:
    """The part of an event or a list that features are computed from."""

    user_id: str
    ts: int  # epoch ms


class CandidateFeatures:
    """Streaming counts of events, and the candidates and features that follow from them.

    Args:
        text: [items, dim] frozen unit text vectors.
        log_prices: [items] logarithm of each price, NaN without one.
        guests: ids of shoppers without a user id in the data.
    """

    def __init__(self, text: FloatArray, log_prices: FloatArray, guests: Collection[str]) -> None:
        size = len(text)
        self._text, self._log_prices, self._guests = text, log_prices, guests
        self._counters, self._neighbours = Counters(), SessionNeighbours()
        self._counters.grow(size)
        self._neighbours.grow(size)
        self._bought_ms: dict[tuple[str, int], int] = {}  # time of each shopper's last event of each item, epoch ms
        self._first_ms, self._last_ms, self._repeats, self._gaps_ms = np.zeros((4, size))
        self._scratch = np.zeros((4, size))
        self._frozen = CounterFeatures.of(self._counters)

    def count(self, examples: Sequence[Positive], rows: IntArray, before: list[list[int]], sessions: IntArray) -> None:
        """Count the events of a micro-batch.

        Args:
            examples: the events, in order.
            rows: [events] catalogue rows of their items.
            before: for each event, the rows of earlier items in its session, newest first.
            sessions: [events] key of each event's session.
        """
        for example, row, earlier in zip(examples, rows.tolist(), before, strict=True):
            self._count_item(example, row, in_session=row in earlier)
        self._counters.update(rows, before)
        self._neighbours.update(rows, sessions, np.array([example.ts for example in examples], dtype=np.int64))
        self._frozen = CounterFeatures.of(self._counters)

    def _count_item(self, example: Positive, row: int, *, in_session: bool) -> None:
        key = (example.user_id, row)
        if key in self._bought_ms and not in_session:
            self._repeats[row] += 1
            self._gaps_ms[row] += max(0, example.ts - self._bought_ms[key])
        self._bought_ms[key] = example.ts
        if self._first_ms[row] == 0:
            self._first_ms[row] = example.ts
        self._last_ms[row] = example.ts

    def of_candidates(
        self, requests: Sequence[Request], contexts: Contexts, rows: Sequence[IntArray] | None = None
    ) -> list[Candidates]:
        """Return each request's candidates with their features.

        Args:
            requests: shoppers and times of the requests.
            contexts: recent items of the shoppers.
            rows: the candidates of each request; None finds them.
        """
        step = max(1, _CELLS // len(self._text))
        found: list[Candidates] = []
        for start in range(0, len(requests), step):
            part = slice(start, start + step)
            known = contexts.part(part)
            found += self._part(requests[part], known, None if rows is None else rows[part])
        return found

    def _part(
        self, requests: Sequence[Request], contexts: Contexts, rows: Sequence[IntArray] | None
    ) -> list[Candidates]:
        now_ms = np.array([request.ts for request in requests], dtype=np.int64)
        dense = np.empty((len(_DENSE), len(requests), len(self._text)), dtype=np.float32)
        counted = len(COUNTER_FEATURES)
        self._frozen.fill(contexts, np.arange(len(self._text)), dense[:counted])
        scores, totals = self._neighbours.scores(contexts, now_ms)
        share = np.float32(100) / np.maximum(totals, np.float32(1e-9))[:, None]
        np.log1p(scores * share, out=dense[counted : counted + 3])
        np.log1p(scores[:2] * np.float32(10), out=dense[counted + 3 : counted + 5])
        queries = np.stack([self._queries(*context) for context in zip(contexts.items, contexts.ages, strict=True)])
        np.matmul(queries.transpose(1, 0, 2), self._text.T, out=dense[counted + 5 :])
        return [
            self._of_request(
                request,
                (contexts.items[place], contexts.ages[place]),
                dense[:, place],
                float(totals[place]),
                None if rows is None else rows[place],
            )
            for place, request in enumerate(requests)
        ]

    def _queries(self, items: IntArray, ages: IntArray) -> FloatArray:
        """Return the unit text vectors [3, dim] of the newest item, the session and earlier sessions; 0 without any."""
        queries = np.zeros((3, self._text.shape[1]), dtype=np.float32)
        for query, chosen in zip(queries, (ages[:1] >= 0, ages == 0, ages > 0), strict=True):
            if chosen.any():
                mean = self._text[items[: len(chosen)][chosen]].mean(axis=0)
                query[:] = mean / max(float(np.linalg.norm(mean)), 1e-9)
        return queries

    def _of_request(
        self,
        request: Request,
        context: tuple[IntArray, IntArray],
        dense: FloatArray,
        total: float,
        rows: IntArray | None,
    ) -> Candidates:
        rows = _candidates(dense) if rows is None else rows
        known = context[1] >= 0
        items, ages = context[0][known], context[1][known]
        times = np.array([self._bought_ms.get((request.user_id, row), -1) for row in items.tolist()], dtype=np.float64)
        features = np.full((len(rows), len(FEATURES)), np.nan, dtype=np.float32)
        features[:, : len(dense)] = dense[:, rows].T
        stats = (self._counters.events, self._first_ms, self._last_ms, self._repeats, self._gaps_ms, self._log_prices)
        when = (float(request.ts), float(request.user_id in self._guests))
        history_features((items, ages, rows), times, when, stats, self._scratch, features[:, len(dense) :])
        features[:, FEATURES.index("similar_sessions")] = np.log1p(total)
        first_stage = _WEIGHTS @ dense[_WEIGHTED]
        _add_first_stage(features, first_stage[rows])
        return Candidates(rows, features, first_stage)


_WEIGHTED = [FEATURES.index(name) for name in _FIRST_STAGE_WEIGHTS]
_WEIGHTS = np.array(list(_FIRST_STAGE_WEIGHTS.values()), dtype=np.float32)


def _add_first_stage(features: FloatArray, scores: FloatArray) -> None:
    """Write `OF_FIRST_STAGE` to the last features: trees cannot compare a candidate with the others by themselves.

    Args:
        features: [candidates, FEATURES] array to fill.
        scores: [candidates] linear scores.
    """
    first = len(FEATURES) - len(OF_FIRST_STAGE)
    features[:, first] = scores - scores.max(initial=-np.inf)
    features[np.argsort(-scores, kind="stable"), first + 1] = np.log1p(np.arange(len(scores)))
    for column, name in enumerate(_BELOW, start=first + 2):
        values = features[:, FEATURES.index(name)]
        features[:, column] = values - values.max(initial=-np.inf)


def _candidates(dense: FloatArray) -> IntArray:
    """Return the sorted rows of the items that any source proposes.

    Args:
        dense: [features, items] the first features of all items, in the order of `FEATURES`.
    """
    chosen, scratch = np.zeros(dense.shape[1], dtype=np.bool_), np.empty(dense.shape[1], dtype=np.float32)
    for source, limit in _SOURCES.items():
        mark_best(dense[FEATURES.index(source)], limit, chosen, scratch)
    return np.flatnonzero(chosen)


def log_prices(item_ids: Sequence[str], prices: Mapping[str, float]) -> FloatArray:
    """Return the logarithm of each item's price, NaN for items without a positive one."""
    values = np.array([prices.get(item_id, 0.0) for item_id in item_ids], dtype=np.float64)
    return np.log(np.where(values > 0, values, np.nan)).astype(np.float32)
