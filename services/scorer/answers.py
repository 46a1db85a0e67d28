"""Answers from one reference to the served model, which a flip replaces and nothing else."""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from peft_adapters.counters import FloatArray, IntArray
from peft_adapters.serving import ServedModel
from peft_adapters.shoppers import Contexts
from services.scorer.live_items import LiveItems
from services.scorer.requests import RankRequest, RecommendRequest
from services.scorer.shopper_state import StateSource

RECENT_REQUESTS = 16  # a new model is warmed with these


@dataclass(frozen=True, slots=True)
class Answer:
    """Items in order, best first, and the version that put them so.

    Attributes:
        probabilities: by outcome, of each item were it shown in the first place; empty where no list was learnt.
    """

    adapter_version: int
    item_ids: list[str]
    scores: list[float]
    unknown: list[str]
    probabilities: dict[str, list[float]] = field(default_factory=dict)


class Answers:
    """Ranks for whoever asks. Every request is answered by the one model that was served when it began.

    Args:
        items: The live catalogue.
        shoppers: The live states.

    Attributes:
        model: What is served; None until there is any.
    """

    def __init__(self, items: LiveItems, shoppers: StateSource) -> None:
        self.model: ServedModel | None = None
        self._items, self._shoppers = items, shoppers
        self._recent: deque[RankRequest | RecommendRequest] = deque(maxlen=RECENT_REQUESTS)

    def rank(self, request: RankRequest, model: ServedModel) -> Answer:
        """Order candidates; those that are not in the catalogue, or blocked, are told apart."""
        found = [row for item in dict.fromkeys(request.candidates) if (row := model.rows.get(item)) is not None]
        rows = np.array(found, dtype=np.int64)
        columns = np.sort(rows[self._rankable(model, rows)])
        scores, probabilities = self._judged(request, model, columns)
        order = np.argsort(-scores, kind="stable")
        item_ids = [model.item_ids[row] for row in columns[order].tolist()]
        ranked = set(item_ids)
        unknown = [item for item in dict.fromkeys(request.candidates) if item not in ranked]
        ordered = {outcome: values[order].tolist() for outcome, values in probabilities.items()}
        return Answer(model.version, item_ids, scores[order].tolist(), unknown, ordered)

    def recommend(self, request: RecommendRequest, model: ServedModel) -> Answer:
        """The best `k` of the catalogue."""
        allowed = self._rankable(model, np.arange(len(model)))
        allowed[[row for item in request.exclude if (row := model.rows.get(item)) is not None]] = False
        scores = np.where(allowed, self._scores(request, model), -np.inf)
        k = min(request.k, int(allowed.sum()))
        best = np.sort(np.argpartition(-scores, k)[:k]) if k < len(scores) else np.arange(k)
        order = best[np.argsort(-scores[best], kind="stable")]
        return Answer(model.version, [model.item_ids[row] for row in order.tolist()], scores[order].tolist(), [])

    def remember(self, request: RankRequest | RecommendRequest) -> None:
        """Keep a request among the latest, to warm the next model with."""
        self._recent.append(request)

    def warm(self, model: ServedModel) -> None:
        """Have a model answer the latest requests, so that nothing is done for the first time once it is served."""
        for request in list(self._recent) or [RecommendRequest(), RankRequest(candidates=("none",))]:
            if isinstance(request, RankRequest):
                self.rank(request, model)
            else:
                self.recommend(request, model)

    def _rankable(self, model: ServedModel, rows: IntArray) -> npt.NDArray[np.bool_]:
        """Which rows have a text, and are neither blocked nor removed at this moment."""
        has_text = model.has_text[rows]
        has_text[has_text] = self._items.may_be_offered(model.catalogue_rows[rows[has_text]])
        return has_text

    def _scores(self, request: RecommendRequest, model: ServedModel) -> FloatArray:
        """Scores [items] of every row."""
        if not len(model):
            return np.zeros(0, dtype=np.float32)
        scores: FloatArray = model.ranker.score(self.context(request, model))[0].numpy()
        return scores

    def _judged(
        self, request: RankRequest, model: ServedModel, columns: IntArray
    ) -> tuple[FloatArray, dict[str, FloatArray]]:
        """Scores and probabilities [candidates] of sorted rows."""
        if not len(columns):
            return np.zeros(0, dtype=np.float32), {}
        scores, probabilities = model.ranker.judge(self.context(request, model), columns)
        return scores[0].numpy(), {outcome: values[0].numpy() for outcome, values in probabilities.items()}

    def context(self, request: RankRequest | RecommendRequest, model: ServedModel) -> Contexts:
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
