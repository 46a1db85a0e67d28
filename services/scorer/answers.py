"""Answers from one reference to the served model, which a flip replaces and nothing else."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
from torch import Tensor

from peft_adapters.encoder.encoder import MergedSuffix
from peft_adapters.ranking.counters import FloatArray, IntArray
from peft_adapters.ranking.retrieval import top_k
from peft_adapters.ranking.shoppers import Contexts
from peft_adapters.registry.rollout import Rollout
from peft_adapters.serving.served_model import ServedModel
from services.errors import HeadwaterServiceError
from services.scorer.deployment import Deployment
from services.scorer.diversity import diversified, pool_size
from services.scorer.live_items import LiveItems
from services.scorer.requests import ListRequest, RankRequest, RecommendRequest, ShopperRequest, SimilarQuery
from services.scorer.shopper_state import StateSource

RECENT_REQUESTS = 16  # a new model is warmed with these
_SPARE = 10  # of the best, for those that are blocked while an answer is made
DIVERSE_PLACES = 100  # of candidates; those behind follow by score


class ProbabilityUnknownError(HeadwaterServiceError, ValueError):
    """Expected values are asked for, and the model has not learnt how likely the outcome is that is paid for."""


class ItemUnknownError(HeadwaterServiceError, LookupError):
    """An item is not in the catalogue, or has no text yet."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Items in order, best first, and the version that put them so.

    Attributes:
        probabilities: by outcome, of each item were it shown in the first place; empty where no list was learnt.
        expected_values: of each item, where bids were given.
    """

    adapter_version: int
    item_ids: list[str]
    scores: list[float]
    unknown: list[str]
    probabilities: dict[str, list[float]] = field(default_factory=dict)
    expected_values: list[float] | None = None


class Answers:
    """Ranks for whoever asks. Every request is answered by the one model that was served when it began.

    What is blocked or removed is left out when an answer is complete, not when it is begun: an event that is read
    meanwhile counts.

    Args:
        items: The live catalogue.
        shoppers: The live states.
        scenario: Of requests that name none.

    Attributes:
        deployments: What is served, by scenario.
        encode_query: Gives the unit vector of words under an adapter; without one, words say nothing.
        ask: Notes that a scenario is asked for; whether it is there, or may come.
    """

    def __init__(self, items: LiveItems, shoppers: StateSource, *, scenario: str = "home") -> None:
        self.deployments: dict[str, Deployment] = {}
        self.ask: Callable[[str], bool] = lambda _: False
        self.encode_query: Callable[[str, MergedSuffix], Tensor] | None = None
        self._scenario = scenario
        self._items, self._shoppers = items, shoppers
        self._recent: deque[RankRequest | RecommendRequest] = deque(maxlen=RECENT_REQUESTS)

    @property
    def model(self) -> ServedModel | None:
        """The stable model of requests that name no scenario; None until there is any."""
        deployment = self.deployments.get(self._scenario)
        return None if deployment is None else deployment.stable

    @model.setter
    def model(self, model: ServedModel | None) -> None:
        deployment = self.deployments.get(self._scenario) or Deployment(Rollout(scenario=self._scenario))
        self.deployments[self._scenario] = replace(deployment, stable=model)

    def rank(self, request: RankRequest, model: ServedModel) -> Answer:
        """Order candidates; those that are not in the catalogue, or blocked, are told apart.

        Raises:
            ProbabilityUnknownError: Bids were given, and how likely it is that they are paid was not learnt.
        """
        withdrawn = self._items.withdrawn
        rows = np.sort(np.array(rows_of(request.candidates, model), dtype=np.int64))
        offered = rows[model.has_text[rows] & self.may_be_offered(model, rows)]
        columns = self.wanted(request, model, offered)
        scores, probabilities = self._judged(request, model, columns)
        values = _expected_values(request, model, columns, probabilities)
        worth = scores if values is None else values
        order = np.argsort(-scores, kind="stable") if values is None else np.lexsort((-scores, -values))
        if request.diversity and len(order):
            order = spread(model, order, columns, worth, request.diversity, DIVERSE_PLACES)
        if self._items.withdrawn != withdrawn:  # meanwhile
            order = order[self.may_be_offered(model, columns[order])]
            offered = offered[self.may_be_offered(model, offered)]
        return Answer(
            model.version,
            [model.item_ids[row] for row in columns[order].tolist()],
            scores[order].tolist(),
            _others(request.candidates, offered, model),
            {outcome: own[order].tolist() for outcome, own in probabilities.items()},
            None if values is None else values[order].tolist(),
        )

    def recommend(self, request: RecommendRequest, model: ServedModel) -> Answer:
        """The best `k` of the catalogue."""
        rows = self.offered(request, model, besides=rows_of(request.exclude, model))
        return self._best(request, model, rows, request.k, request.diversity)

    def similar(self, item_id: str, query: SimilarQuery, model: ServedModel) -> Answer:
        """The `k` items most related to one; it may itself be blocked, as that of a page that is still open.

        Raises:
            ItemUnknownError: It is not in the catalogue, or has no text yet.
        """
        row = model.rows.get(item_id)
        if row is None or not model.has_text[row]:
            raise ItemUnknownError(f"no item {item_id!r} is in the catalogue that adapter {model.version} is over")
        request = RecommendRequest(session_items=(item_id,), filters=query.filters())
        rows = self.offered(request, model, besides=[row])
        if query.by == "behaviour":
            return self._best(request, model, rows, query.k, query.diversity)
        vectors = model.ranker.candidate_vectors(np.arange(len(model)))
        scores = (vectors @ vectors[row]).numpy()[rows]
        order = top_k(scores, _wanted_of(query.k, query.diversity))
        return self._listed(model, rows[order], scores[order], query.k, query.diversity)

    def remember(self, request: RankRequest | RecommendRequest) -> None:
        """Keep a request among the latest, to warm the next model with."""
        self._recent.append(request)

    def warm(self, model: ServedModel) -> None:
        """Have a model answer the latest requests, so that nothing is done for the first time once it is served."""
        for request in list(self._recent) or [RecommendRequest(), RankRequest(candidates=("none",))]:
            if isinstance(request, RankRequest):
                with suppress(ProbabilityUnknownError):  # the asker's to mend, not a fault of the model
                    self.rank(request, model)
            else:
                self.recommend(request, model)

    def offered(self, request: ListRequest, model: ServedModel, *, besides: Sequence[int] = ()) -> IntArray:
        """Sorted rows that may be in a list: with a text, as asked for, neither blocked nor removed at this moment.

        Args:
            request: With its filters.
            model: Whose rows.
            besides: Rows that are left out.
        """
        allowed = model.has_text.copy()
        allowed[list(besides)] = False
        rows = self.wanted(request, model, np.flatnonzero(allowed))
        return rows[self.may_be_offered(model, rows)]

    def _best(self, request: RecommendRequest, model: ServedModel, rows: IntArray, k: int, diversity: float) -> Answer:
        """The `k` best of some rows for who asks."""
        found = model.ranker.top_k(self.context(request, model), rows, _wanted_of(k, diversity))
        return self._listed(model, *found, k, diversity)

    def _listed(self, model: ServedModel, rows: IntArray, scores: FloatArray, k: int, diversity: float) -> Answer:
        """The first `k` rows, made diverse, of those that may be offered at this moment."""
        kept = self.may_be_offered(model, rows)
        rows, scores = rows[kept], scores[kept]
        if diversity and len(rows):
            rows, scores = rows[: pool_size(k)], scores[: pool_size(k)]
            order = spread(model, np.arange(len(rows)), rows, scores, diversity, k)
            rows, scores = rows[order], scores[order]
        return Answer(model.version, [model.item_ids[row] for row in rows[:k].tolist()], scores[:k].tolist(), [])

    def wanted(self, request: ListRequest, model: ServedModel, rows: IntArray) -> IntArray:
        """Which of some rows with text fit the filters and, where that is asked for, were not bought."""
        if request.filters is not None:
            rows = rows[self._items.fitting(model.catalogue_rows[rows], request.filters)]
        if request.exclude_bought and request.user_id is not None:
            rows = rows[~np.isin(rows, rows_of(self._shoppers.bought(request.user_id), model))]
        return rows

    def may_be_offered(self, model: ServedModel, rows: IntArray) -> npt.NDArray[np.bool_]:
        """Which rows, of those with text, are neither blocked nor removed at this moment."""
        return self._items.may_be_offered(model.catalogue_rows[rows])

    def _judged(
        self, request: RankRequest, model: ServedModel, columns: IntArray
    ) -> tuple[FloatArray, dict[str, FloatArray]]:
        """Scores and probabilities [candidates] of sorted rows."""
        if not len(columns):
            return np.zeros(0, dtype=np.float32), {}
        return model.ranker.score_with_probabilities(
            self.context(request, model), columns, self.query_vector(request.query, model)
        )

    def is_withheld(self, model: ServedModel, row: int) -> bool:
        """Whether an item is blocked or removed, and so not to be named to anyone."""
        own = model.catalogue_rows[row : row + 1]
        return bool(model.has_text[row]) and not self._items.may_be_offered(own)[0]

    def query_vector(self, query: str | None, model: ServedModel) -> Tensor | None:
        """The vector [1, dim] of what is searched for, under the model's own adapter; None where nothing is."""
        if query is None or self.encode_query is None:
            return None
        return self.encode_query(query, model.suffix)[None]

    def context(self, request: ShopperRequest, model: ServedModel) -> Contexts:
        """Who asks, as a model sees them."""
        ts_ms = time.time_ns() // 1_000_000 if request.ts is None else request.ts
        session, earlier = request.session_items, request.earlier_sessions
        known = self._shoppers.context(
            request.user_id,
            request.session_id,
            ts_ms,
            session=None if session is None else self._rows(session),
            earlier=None if earlier is None else [self._rows(basket) for basket in earlier],
        )
        return model.context(*known)

    def _rows(self, item_ids: Sequence[str]) -> list[int]:
        """Rows of the items that are known."""
        known = self._items.rows
        return [known[item_id] for item_id in item_ids if item_id in known]


def _wanted_of(k: int, diversity: float) -> int:
    """How many of the best are looked for: some more than asked for, since any may be blocked meanwhile."""
    return (pool_size(k) if diversity else k) + _SPARE


def rows_of(item_ids: Iterable[str], model: ServedModel) -> list[int]:
    """Rows of the distinct items that a model knows."""
    return [row for row in map(model.rows.get, dict.fromkeys(item_ids)) if row is not None]


def _others(item_ids: Iterable[str], rows: IntArray, model: ServedModel) -> list[str]:
    """The distinct items that are not those of some rows."""
    distinct = dict.fromkeys(item_ids)
    if len(distinct) == len(rows):  # each row is of one of them
        return []
    known = {model.item_ids[row] for row in rows.tolist()}
    return [item_id for item_id in distinct if item_id not in known]


def _expected_values(
    request: RankRequest, model: ServedModel, columns: IntArray, probabilities: dict[str, FloatArray]
) -> FloatArray | None:
    """What each candidate brings in if it is shown first, [candidates]; None where nothing was bid."""
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


def spread(
    model: ServedModel, order: IntArray, columns: IntArray, worth: FloatArray, diversity: float, places: int
) -> IntArray:
    """An order of columns by worth, made diverse."""
    vectors = model.ranker.candidate_vectors(columns[order]).numpy()
    return order[diversified(worth[order], vectors, diversity=diversity, places=places)]
