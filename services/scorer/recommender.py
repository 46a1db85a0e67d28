"""Ranking, recommendation and related items, computed from one served model."""

import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from torch import Tensor

from peft_adapters.encoder.encoder import MergedSuffix
from peft_adapters.ranking.arrays import FloatArray, IntArray
from peft_adapters.ranking.retrieval import top_k
from peft_adapters.ranking.shoppers import Contexts
from peft_adapters.serving.served_model import ServedModel
from services.errors import HeadwaterServiceError
from services.scorer.diversity import diversified, pool_size
from services.scorer.live_items import LiveItems
from services.scorer.requests import (
    EmptyBecause,
    ListRequest,
    RankRequest,
    RecommendRequest,
    ShopperRequest,
    SimilarQuery,
)
from services.scorer.shopper_state import StateSource

RECENT_REQUESTS = 16  # a new model is warmed with these
DIVERSE_PLACES = 100  # of candidates; those behind follow by score
_SPARE = 10  # further best items, in place of those that are blocked while the answer is computed

QueryEncode = Callable[[str, MergedSuffix], Tensor]


class ProbabilityUnknownError(HeadwaterServiceError, ValueError):
    """Bids were given, and the model has not learnt the probability of the outcome that they pay for."""


class ItemUnknownError(HeadwaterServiceError, LookupError):
    """An item is not in the catalogue, or has no text yet."""


@dataclass(frozen=True, slots=True)
class RankedList:
    """Items, best first.

    Attributes:
        adapter_version: the version of the model that ordered them.
        item_ids: the items in order.
        scores: the score of each item.
        unknown: the candidates that are not in the catalogue or not available.
        probabilities: by outcome, the probability for each item if it is shown first; empty without learnt lists.
        expected_values: the expected value of each item; None without bids.
    """

    adapter_version: int
    item_ids: list[str]
    scores: list[float]
    unknown: list[str]
    probabilities: dict[str, list[float]] = field(default_factory=dict)
    expected_values: list[float] | None = None


class Recommender:
    """Computes answers, each from the one model that was served when its request arrived.

    Items that are blocked or removed are left out when an answer is complete, not when it begins: an event that is read
    in between counts.

    Args:
        items: the live catalogue.
        shoppers: the states of shoppers.
        encode_query: returns the unit vector of a query under an adapter; None ignores queries.
    """

    def __init__(self, items: LiveItems, shoppers: StateSource, *, encode_query: QueryEncode | None = None) -> None:
        self._items, self._shoppers, self._encode_query = items, shoppers, encode_query
        self._recent: deque[RankRequest | RecommendRequest] = deque(maxlen=RECENT_REQUESTS)

    def answer(self, request: RankRequest | RecommendRequest, model: ServedModel) -> RankedList:
        """Order the candidates of a request, or find the best items of the catalogue.

        Raises:
            ProbabilityUnknownError: bids were given for an outcome that the model has not learnt.
        """
        if isinstance(request, RankRequest):
            return self.order_candidates(request, model)
        return self.best_items(request, model)

    def order_candidates(self, request: RankRequest, model: ServedModel) -> RankedList:
        """Order given candidates; those that are unknown or not available are listed apart.

        Raises:
            ProbabilityUnknownError: bids were given for an outcome that the model has not learnt.
        """
        withdrawals = self._items.withdrawals
        candidates = dict.fromkeys(request.candidates)
        rows = np.sort(np.array(rows_of(candidates, model), dtype=np.int64))
        available = rows[model.has_text[rows] & self.are_available(model, rows)]
        columns = self.matching_rows(request, model, available)
        scores, probabilities = self._scores(request, model, columns)
        values = _expected_values(request, model, columns, probabilities)
        worth = scores if values is None else values
        order = np.argsort(-scores, kind="stable") if values is None else np.lexsort((-scores, -values))
        if request.diversity and len(order):
            order = diversified_order(model, order, columns, worth, request.diversity, DIVERSE_PLACES)
        if self._items.withdrawals != withdrawals:  # while the answer was computed
            order = order[self.are_available(model, columns[order])]
            available = available[self.are_available(model, available)]
        return RankedList(
            model.version,
            [model.item_ids[row] for row in columns[order].tolist()],
            scores[order].tolist(),
            _others(candidates, available, model),
            {outcome: by_column[order].tolist() for outcome, by_column in probabilities.items()},
            None if values is None else values[order].tolist(),
        )

    def best_items(self, request: RecommendRequest, model: ServedModel) -> RankedList:
        """Return the `k` best items of the catalogue."""
        rows = self.allowed_rows(request, model, excluded=rows_of(request.exclude, model))
        return self._best_of(request, model, rows, request.k, request.diversity)

    def similar_items(self, item_id: str, query: SimilarQuery, model: ServedModel) -> RankedList:
        """Return the `k` items most related to an item, which may itself be blocked, as on a page still open.

        Raises:
            ItemUnknownError: the item is not in the catalogue, or has no text yet.
        """
        row = model.rows.get(item_id)
        if row is None or not model.has_text[row]:
            raise ItemUnknownError(f"no item {item_id!r} is in the catalogue that adapter {model.version} is over")
        request = RecommendRequest(session_items=(item_id,), filters=query.filters())
        rows = self.allowed_rows(request, model, excluded=[row])
        if query.by == "behaviour":
            return self._best_of(request, model, rows, query.k, query.diversity)
        vectors = model.scorer.candidate_vectors
        scores = (vectors @ vectors[row])[rows]
        order = top_k(scores, _pool_size(query.k, query.diversity))
        return self._first_available(model, rows[order], scores[order], query.k, query.diversity)

    def remember(self, request: RankRequest | RecommendRequest) -> None:
        """Keep a request among the latest, to warm the next model with."""
        self._recent.append(request)

    def warm(self, model: ServedModel) -> None:
        """Answer the latest requests from a model, so that its first real request does nothing for the first time."""
        for request in list(self._recent) or [RecommendRequest(), RankRequest(candidates=("none",))]:
            with suppress(ProbabilityUnknownError):  # a mistake in the request, not a fault of the model
                self.answer(request, model)

    def allowed_rows(self, request: ListRequest, model: ServedModel, *, excluded: Sequence[int] = ()) -> IntArray:
        """Return the sorted rows that may be in a list: with a text, matching the filters, available now.

        Args:
            request: the request with its filters.
            model: the model whose rows are meant.
            excluded: the rows to leave out.
        """
        allowed = model.has_text.copy()
        allowed[list(excluded)] = False
        rows = self.matching_rows(request, model, np.flatnonzero(allowed))
        return rows[self.are_available(model, rows)]

    def nothing_allowed_because(self, request: RecommendRequest, model: ServedModel) -> EmptyBecause:
        """Return which condition, in the order they are applied, leaves no row that may be in a list.

        Args:
            request: the request that found nothing.
            model: the model whose rows are meant.
        """
        rows = np.flatnonzero(model.has_text)
        if not len(rows):
            return "no_items"
        rows = rows[self.are_available(model, rows)]
        if not len(rows):
            return "none_available"
        if request.filters is not None:
            rows = rows[self._items.matching(model.catalogue_rows[rows], request.filters)]
            if not len(rows):
                return "filters"
        if not len(np.setdiff1d(rows, rows_of(request.exclude, model))):
            return "exclude"
        return "exclude_bought" if request.exclude_bought else "none_available"

    def _best_of(
        self, request: RecommendRequest, model: ServedModel, rows: IntArray, k: int, diversity: float
    ) -> RankedList:
        best = model.scorer.top_k(self.context(request, model), rows, _pool_size(k, diversity))
        return self._first_available(model, *best, k, diversity)

    def _first_available(
        self, model: ServedModel, rows: IntArray, scores: FloatArray, k: int, diversity: float
    ) -> RankedList:
        """Return the first `k` rows that are available now, in a diverse order if requested."""
        available = self.are_available(model, rows)
        rows, scores = rows[available], scores[available]
        if diversity and len(rows):
            rows, scores = rows[: pool_size(k)], scores[: pool_size(k)]
            order = diversified_order(model, np.arange(len(rows)), rows, scores, diversity, k)
            rows, scores = rows[order], scores[order]
        return RankedList(model.version, [model.item_ids[row] for row in rows[:k].tolist()], scores[:k].tolist(), [])

    def matching_rows(self, request: ListRequest, model: ServedModel, rows: IntArray) -> IntArray:
        """Return the rows that match the filters and, if requested, that the shopper has not bought.

        Args:
            request: the request with its filters.
            model: the model whose rows are meant.
            rows: rows of items with text.
        """
        if request.filters is not None:
            rows = rows[self._items.matching(model.catalogue_rows[rows], request.filters)]
        if request.exclude_bought and request.user_id is not None:
            rows = rows[~np.isin(rows, rows_of(self._shoppers.bought(request.user_id), model))]
        return rows

    def are_available(self, model: ServedModel, rows: IntArray) -> npt.NDArray[np.bool_]:
        """Return for each row, of items with text, whether it is neither blocked nor removed now."""
        return self._items.are_available(model.catalogue_rows[rows])

    def is_withheld(self, model: ServedModel, row: int) -> bool:
        """Return whether an item is blocked or removed, so that no answer may name it."""
        return bool(model.has_text[row]) and not self._items.are_available(model.catalogue_rows[row : row + 1])[0]

    def _scores(
        self, request: RankRequest, model: ServedModel, columns: IntArray
    ) -> tuple[FloatArray, dict[str, FloatArray]]:
        """Return scores and probabilities [candidates] of sorted rows."""
        if not len(columns):
            return np.zeros(0, dtype=np.float32), {}
        return model.scorer.score_with_probabilities(
            self.context(request, model), columns, self.query_vector(request.query, model)
        )

    def query_vector(self, query: str | None, model: ServedModel) -> FloatArray | None:
        """Return the vector [1, dim] of a query under the model's adapter; None without a query."""
        if query is None or self._encode_query is None:
            return None
        vector: FloatArray = self._encode_query(query, model.suffix)[None].numpy()
        return vector

    def context(self, request: ShopperRequest, model: ServedModel) -> Contexts:
        """Return the shopper of a request as a model sees them."""
        ts_ms = time.time_ns() // 1_000_000 if request.ts is None else request.ts
        session, earlier = request.session_items, request.earlier_sessions
        history = self._shoppers.context(
            request.user_id,
            request.session_id,
            ts_ms,
            session=None if session is None else self._rows(session),
            earlier=None if earlier is None else [self._rows(basket) for basket in earlier],
        )
        return model.context(*history)

    def _rows(self, item_ids: Sequence[str]) -> list[int]:
        known = self._items.rows
        return [known[item_id] for item_id in item_ids if item_id in known]


def _pool_size(k: int, diversity: float) -> int:
    """Return the number of best items to find: more than requested, since any may be blocked meanwhile."""
    return (pool_size(k) if diversity else k) + _SPARE


def rows_of(item_ids: Iterable[str], model: ServedModel) -> list[int]:
    """Return the rows of the items that a model knows."""
    return [row for row in map(model.rows.get, item_ids) if row is not None]


def _others(distinct: Collection[str], rows: IntArray, model: ServedModel) -> list[str]:
    """Return those of distinct items that are not among some rows."""
    if len(distinct) == len(rows):  # each row belongs to one of them
        return []
    known = {model.item_ids[row] for row in rows.tolist()}
    return [item_id for item_id in distinct if item_id not in known]


def _expected_values(
    request: RankRequest, model: ServedModel, columns: IntArray, probabilities: dict[str, FloatArray]
) -> FloatArray | None:
    """Return the expected value [candidates] of showing each candidate first; None without bids."""
    if request.bids is None:
        return None
    if not len(columns):
        return np.zeros(0, dtype=np.float32)
    if request.pay_per not in probabilities:
        raise ProbabilityUnknownError(
            f"adapter {model.version} has not learnt how likely a {request.pay_per} is, so that no bid has an expected "
            "value; leave `bids` out, or publish impressions with what came of them"
        )
    bids = [request.bids.get(model.item_ids[row], 0.0) for row in columns.tolist()]
    values: FloatArray = np.array(bids) * probabilities[request.pay_per]
    return values


def diversified_order(
    model: ServedModel, order: IntArray, columns: IntArray, worth: FloatArray, diversity: float, places: int
) -> IntArray:
    """Return an order of columns that trades worth for diversity.

    Args:
        model: the model whose vectors measure similarity.
        order: indices of columns, best first.
        columns: rows of the model.
        worth: the worth of each column, [columns].
        diversity: the weight of diversity, 0 to 1.
        places: the number of places to diversify; the rest follow by worth.
    """
    vectors = model.scorer.candidate_vectors[columns[order]]
    return order[diversified(worth[order], vectors, diversity=diversity, places=places)]
