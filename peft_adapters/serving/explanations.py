"""What a score is made of: exact shares of every item looked at before, of counters, and of what vectors say.

A score is a weighted sum of features, so each feature's share is its weight times its value. Within a feature, what is
a sum over the items of a context is shared out among them by integrated gradients from an empty context (Sundararajan
et al. 2017, the Aumann-Shapley shares): of `f(s_1 + .. + s_n)` with `f(0) = 0`, item `j` has `f(s) * s_j / s`, whatever
`f` is. That is exact for what is linear, for logarithms of counts, and for squares. What attention looks at is taken as
given; what it then says is linear. So the shares add up to the score.

A vector is the item's text (with what other modalities add to it) plus the learnt residual, over the norm of both. A
product of two texts is the text's share; all that has a residual in it is the residual's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from torch import Tensor

from peft_adapters.ranking.counters import IntArray
from peft_adapters.ranking.features import (
    SMOOTHING_EVENTS,
    ContextWeights,
    affinity_weights,
    attention_strength,
    context_weights,
)
from peft_adapters.ranking.kernels import AFFINITY_SCALE
from peft_adapters.ranking.shoppers import Contexts
from peft_adapters.serving.served_model import ServedModel
from peft_adapters.settings import AFFINITIES, FEATURES, NEW_AFFINITIES

KINDS = ("popularity", "cooccurrence", "repeats", "text", "residual")

_POPULARITY = ("popularity_fast", "popularity_slow", "click_through", "never_sold")
_FOLLOWED = (  # feature, counts, and the part of the context that is followed
    ("transition", "transition", "last"),
    ("skip_transition", "skip_transition", "near"),
    ("session_cooccurrence", "cooccurrence", "session"),
    ("session_lift", "cooccurrence", "session"),
    ("history_cooccurrence", "cooccurrence", "history"),
    ("neighbour_cooccurrence", "neighbour", "near"),
)
_REPEATS = ("repeat", "last_basket", "in_session")

Array = npt.NDArray[np.float64]


class LookedAt(NamedTuple):
    """An item of the shopper's past and its share in a score, by kind."""

    row: int
    sessions_ago: int
    shares: Mapping[str, float]

    @property
    def share(self) -> float:
        """Of all kinds together."""
        return sum(self.shares.values())


@dataclass(frozen=True, slots=True)
class Explanation:
    """What one score is made of, cut three ways; each cut adds up to the score.

    Attributes:
        row: of the candidate.
        score: as ranking gives it.
        kinds: share by kind, see `KINDS`.
        popularity: share of the candidate's own counts.
        taste: share of what all shoppers like.
        query: share of what was searched for; this, taste, popularity and `history` are the cut by source.
        history: share of each item of the context, the largest first; none has no share at all.
        features: share by feature.
    """

    row: int
    score: float
    kinds: Mapping[str, float]
    popularity: float
    taste: float
    query: float
    history: list[LookedAt]
    features: Mapping[str, float]


@torch.inference_mode()
def explain(
    model: ServedModel, contexts: Contexts, columns: IntArray, query_vector: Tensor | None = None
) -> list[Explanation]:
    """Explain the scores of candidates for one context.

    Args:
        model: which scores.
        contexts: of one shopper.
        columns: [candidates] sorted rows of the candidates, at least one.
        query_vector: [1, dim] vector of what is searched for.
    """
    scores, _ = model.ranker.judge(contexts, columns, query_vector)
    own = _Shares(model, contexts, columns, query_vector)
    return [own.of(place, score) for place, score in enumerate(scores.tolist())]


class _Shares:
    """Shares of the scores of some candidates, `history` [kinds, context rows, candidates], others [.., candidates]."""

    def __init__(self, model: ServedModel, contexts: Contexts, columns: IntArray, query_vector: Tensor | None) -> None:
        self._model, self._columns = model, columns
        self._rows = contexts.rows()
        self._ages = _sessions_ago(contexts, self._rows)
        heads = model.learnt.heads.double()
        values = model.ranker.features(contexts, columns, query_vector)[:, 0].double()
        self._features: Array = (heads[:, None] * values).numpy()  # [features, candidates]
        self._weights = dict(zip(FEATURES, heads.tolist(), strict=True))
        self._history = np.zeros((len(KINDS), len(self._rows), len(columns)))
        self._popularity: Array = sum((self._feature(name) for name in _POPULARITY), start=np.zeros(len(columns)))
        weights = context_weights(contexts, len(model))
        self._share_counts(weights)
        self._share_repeats()
        candidate, candidate_text = self._vectors("candidate", columns)
        self._share_vectors(affinity_weights(weights, self._rows)[:, 0].double(), candidate, candidate_text)
        self._taste = self._apart(self._weights["taste"] * model.learnt.taste.double(), candidate, candidate_text)
        self._query = np.zeros_like(self._taste)
        if query_vector is not None:
            slope = self._slope("query_affinity", candidate @ query_vector[0].double())
            self._query = slope.numpy() * self._apart(query_vector[0].double(), candidate, candidate_text)

    def of(self, place: int, score: float) -> Explanation:
        """The explanation of the candidate at a place."""
        history = self._history[:, :, place]
        kinds = dict(zip(KINDS, history.sum(axis=1).tolist(), strict=True))
        kinds["popularity"] += float(self._popularity[place])
        vectors = self._taste[:, place] + self._query[:, place]
        for kind, share in zip(("text", "residual"), vectors.tolist(), strict=True):
            kinds[kind] += share
        return Explanation(
            row=int(self._columns[place]),
            score=score,
            kinds=kinds,
            popularity=float(self._popularity[place]),
            taste=float(self._taste[:, place].sum()),
            query=float(self._query[:, place].sum()),
            history=self._looked_at(history),
            features=dict(zip(FEATURES, self._features[:, place].tolist(), strict=True)),
        )

    def _looked_at(self, history: Array) -> list[LookedAt]:
        """What of the context has a share, of [kinds, context rows]."""
        order = np.argsort(-np.abs(history.sum(axis=0)), kind="stable")
        return [
            LookedAt(
                int(self._rows[place]),
                int(self._ages[place]),
                dict(zip(KINDS, history[:, place].tolist(), strict=True)),
            )
            for place in order
            if history[:, place].any()
        ]

    def _feature(self, name: str) -> Array:
        """Share of a feature, [candidates]."""
        share: Array = self._features[FEATURES.index(name)]
        return share

    def _kind(self, name: str) -> Array:
        """Shares of a kind, [context rows, candidates], to be added to."""
        shares: Array = self._history[KINDS.index(name)]
        return shares

    def _share_counts(self, weights: ContextWeights) -> None:
        """Share out what is counted to follow, or to go with, the items of the context."""
        for feature, name, part in _FOLLOWED:
            one: sparse.csr_array = getattr(weights, part)
            each = sparse.csr_array((one.data, one.indices, np.arange(one.nnz + 1)), shape=(one.nnz, one.shape[1]))
            counts = self._model.ranker.counters.matrices[name]
            added = counts.probability(each, smoothing=SMOOTHING_EVENTS)[:, self._columns].toarray()
            added = added.astype(np.float64)  # [items of that part, candidates]
            total = added.sum(axis=0)
            share = self._feature(feature) / np.where(total > 0, total, 1.0)
            self._kind("cooccurrence")[np.searchsorted(self._rows, one.indices)] += added * share

    def _share_repeats(self) -> None:
        """Give a candidate that is in the context itself what that says."""
        _, of_context, of_candidates = np.intersect1d(
            self._rows, self._columns, assume_unique=True, return_indices=True
        )
        for name in _REPEATS:
            self._kind("repeats")[of_context, of_candidates] += self._feature(name)[of_candidates]

    def _share_vectors(self, weights: Tensor, candidate: Tensor, candidate_text: Tensor) -> None:
        """Share out what vectors of the context's items say, weights [AFFINITIES, context rows]."""
        query, query_text = self._vectors("query", self._rows)
        whole, text = query @ candidate.T, query_text @ candidate_text.T  # [context rows, candidates]
        attended = weights[0][:, None] * attention_strength(whole)
        total = attended.sum(dim=0)
        share = attended * self._weights["session_attention_new"] * self._new() / torch.where(total > 0, total, 1.0)
        for name, own in zip(AFFINITIES, weights, strict=True):
            share = share + own[:, None] * self._slope(name, own @ whole)
        self._kind("text")[:] += (share * text).numpy()
        self._kind("residual")[:] += (share * (whole - text)).numpy()

    def _slope(self, name: str, product: Tensor) -> Tensor:
        """What an affinity's product [candidates] is multiplied by to give the share of all features made of it."""
        slope: Tensor = self._weights[name] + self._weights[f"{name}_squared"] * float(AFFINITY_SCALE) * product
        return slope + self._weights[f"{name}_new"] * self._new() if name in NEW_AFFINITIES else slope

    def _apart(self, vector: Tensor, candidate: Tensor, candidate_text: Tensor) -> Array:
        """Products of a vector [dim] with the candidates' texts and with the rest of them, [2, candidates]."""
        of_text = candidate_text @ vector
        products: Array = torch.stack([of_text, candidate @ vector - of_text]).numpy()
        return products

    def _new(self) -> Tensor:
        """What features of what is new are multiplied by, [candidates]."""
        share: Tensor = float(AFFINITY_SCALE) * self._model.ranker.text_share[torch.from_numpy(self._columns)].double()
        return share

    def _vectors(self, role: str, rows: IntArray) -> tuple[Tensor, Tensor]:
        """Vectors of a role [rows, dim], and the texts' part in them."""
        index = torch.from_numpy(rows)
        learnt = self._model.learnt.residuals[role]
        residual = torch.zeros(len(rows), learnt.shape[1], dtype=torch.float64)
        known = index < len(learnt)
        residual[known] = learnt[index[known]].double()
        text = self._model.content[index].double()
        whole = text + (1 - self._model.ranker.text_share[index].double())[:, None] * residual
        norm = whole.norm(dim=1, keepdim=True).clamp(min=1e-12)
        return whole / norm, text / norm


def _sessions_ago(contexts: Contexts, rows: IntArray) -> IntArray:
    """How many sessions ago each row of one context was looked at last."""
    ages = dict(zip(contexts.items[0].tolist()[::-1], contexts.ages[0].tolist()[::-1], strict=True))
    return np.array([ages.get(row, 0) for row in rows.tolist()], dtype=np.int64)
