"""Exact attribution of a score to the items of the shopper's context, counters, text, residuals and the query.

The first stage of a score is a weighted sum of features, so a feature's share is its weight times its value. To that
weight the second stage adds its mean slope on the line from zero to the candidate's features, again by integrated
gradients. What remains is the share of the second stage itself: its output at zero, and what only it knows, such as the
length of the session. Within a feature, what is a
sum over the items of a context is divided among them by integrated gradients from an empty context (Sundararajan et
al. 2017, the Aumann-Shapley shares): of `f(s_1 + .. + s_n)` with `f(0) = 0`, item `j` gets `f(s) * s_j / s` for any
`f`. This is exact for linear functions, logarithms of counts, and squares. Attention weights are taken as given; the
result is linear in the rest. So the shares add up to the score.

A vector is the item's text (plus the projected vectors of other modalities) plus the learnt residual, divided by the
norm of the sum. The product of two texts is the share of text; every term with a residual in it is the share of
residuals.
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

from peft_adapters.ranking.arrays import FloatArray, IntArray
from peft_adapters.ranking.counter_kernels import SMOOTHING_EVENTS
from peft_adapters.ranking.features import (
    ContextWeights,
    affinity_weights,
    attention_strength,
    context_weights,
)
from peft_adapters.ranking.shoppers import Contexts
from peft_adapters.ranking.vector_kernels import AFFINITY_SCALE
from peft_adapters.serving.served_model import ServedModel
from peft_adapters.settings import AFFINITIES, FEATURES, NEW_AFFINITIES, SECOND_STAGE_FEATURES

KINDS = ("popularity", "cooccurrence", "repeats", "text", "residual", "second_stage")

_POPULARITY = ("popularity_fast", "popularity_slow", "click_through", "never_sold")
_COUNTED = (  # feature, matrix of counts, and the part of the context that the counts start from
    ("transition", "transition", "last"),
    ("skip_transition", "skip_transition", "near"),
    ("session_cooccurrence", "cooccurrence", "session"),
    ("session_lift", "cooccurrence", "session"),
    ("history_cooccurrence", "cooccurrence", "history"),
    ("neighbour_cooccurrence", "neighbour", "near"),
)
_REPEATS = ("repeat", "last_basket", "in_session")

_NAMES = (*FEATURES, *SECOND_STAGE_FEATURES, "second_stage")

Array = npt.NDArray[np.float64]


class HistoryShare(NamedTuple):
    """An item of the shopper's context and its share of a score.

    Attributes:
        row: row of the item in the served model.
        sessions_ago: sessions since the shopper last looked at it; 0 is the current session.
        shares: share of the score by kind, see `KINDS`.
    """

    row: int
    sessions_ago: int
    shares: Mapping[str, float]

    @property
    def share(self) -> float:
        """The sum over all kinds."""
        return sum(self.shares.values())


@dataclass(frozen=True, slots=True)
class Explanation:
    """The parts of one score, divided in three ways; each division adds up to the score.

    Attributes:
        row: row of the candidate.
        score: the score, as ranking gives it.
        kinds: share by kind, see `KINDS`.
        popularity: share of the candidate's own counts.
        global_preference: share of the preference vector shared by all shoppers.
        query: share of the search query.
        second_stage: share of what only the second stage knows; with query, global_preference, popularity and
            `history` it is the division by source.
        history: share of each item of the context, largest first; items without a share are left out.
        features: share by feature, and under `second_stage` the output of its networks at zero.
    """

    row: int
    score: float
    kinds: Mapping[str, float]
    popularity: float
    global_preference: float
    query: float
    second_stage: float
    history: list[HistoryShare]
    features: Mapping[str, float]


@torch.inference_mode()
def explain(
    model: ServedModel, contexts: Contexts, columns: IntArray, query_vector: FloatArray | None = None
) -> list[Explanation]:
    """Explain the scores of candidates for one context.

    Args:
        model: the model that scores the candidates.
        contexts: the context of one shopper.
        columns: [candidates] sorted rows of the candidates, at least one.
        query_vector: [1, dim] vector of the search query; None outside search.
    """
    scores, _ = model.scorer.score_with_probabilities(contexts, columns, query_vector)
    query = None if query_vector is None else torch.from_numpy(query_vector)
    shares = _Shares(model, contexts, columns, query)
    return [shares.explanation(place, score) for place, score in enumerate(scores.tolist())]


class _Shares:
    """Shares of the candidates' scores: `_history` [kinds, context rows, candidates], others [.., candidates]."""

    def __init__(self, model: ServedModel, contexts: Contexts, columns: IntArray, query_vector: Tensor | None) -> None:
        self._model, self._columns = model, columns
        self._rows = contexts.rows()
        self._ages = _sessions_ago(contexts, self._rows)
        values = model.ranker.features(contexts, columns, query_vector)[:, 0].double()
        more = model.ranker.second_stage_features(contexts, columns)[:, 0].double()
        heads, of_more, constant = _weights(model, values, more)
        self._features: Array = (heads * values).numpy()  # [features, candidates]
        self._more: Array = torch.cat(
            [of_more * more, constant[None]]
        ).numpy()  # [more features and constant, candidates]
        self._weights = dict(zip(FEATURES, heads, strict=True))  # [candidates] each
        self._history = np.zeros((len(KINDS), len(self._rows), len(columns)))
        self._popularity: Array = sum((self._feature(name) for name in _POPULARITY), start=np.zeros(len(columns)))
        weights = context_weights(contexts, len(model))
        self._share_counts(weights)
        self._share_repeats()
        candidate, candidate_text = self._vectors("candidate", columns)
        self._share_vectors(affinity_weights(weights, self._rows)[:, 0].double(), candidate, candidate_text)
        preference = self._text_residual(model.state.global_preference.double(), candidate, candidate_text)
        self._global_preference = self._weights["global_preference"].numpy() * preference
        self._query = np.zeros_like(self._global_preference)
        if query_vector is not None:
            slope = self._slope("query_affinity", candidate @ query_vector[0].double())
            self._query = slope.numpy() * self._text_residual(query_vector[0].double(), candidate, candidate_text)

    def explanation(self, place: int, score: float) -> Explanation:
        """Return the explanation of the candidate at a place among the columns."""
        history = self._history[:, :, place]
        kinds = dict(zip(KINDS, history.sum(axis=1).tolist(), strict=True))
        kinds["popularity"] += float(self._popularity[place])
        vectors = self._global_preference[:, place] + self._query[:, place]
        for kind, share in zip(("text", "residual"), vectors.tolist(), strict=True):
            kinds[kind] += share
        more = self._more[:, place]
        kinds["second_stage"] = float(more.sum())
        return Explanation(
            row=int(self._columns[place]),
            score=score,
            kinds=kinds,
            popularity=float(self._popularity[place]),
            global_preference=float(self._global_preference[:, place].sum()),
            query=float(self._query[:, place].sum()),
            second_stage=float(more.sum()),
            history=self._history_shares(history),
            features=dict(zip(_NAMES, [*self._features[:, place].tolist(), *more.tolist()], strict=True)),
        )

    def _history_shares(self, history: Array) -> list[HistoryShare]:
        """Return the items with a share, largest first, from one candidate's [kinds, context rows]."""
        order = np.argsort(-np.abs(history.sum(axis=0)), kind="stable")
        return [
            HistoryShare(
                int(self._rows[place]),
                int(self._ages[place]),
                dict(zip(KINDS, history[:, place].tolist(), strict=True)),
            )
            for place in order
            if history[:, place].any()
        ]

    def _feature(self, name: str) -> Array:
        """Return the share of a feature, [candidates]."""
        share: Array = self._features[FEATURES.index(name)]
        return share

    def _kind(self, name: str) -> Array:
        """Return the shares of a kind, [context rows, candidates], a view to add to."""
        shares: Array = self._history[KINDS.index(name)]
        return shares

    def _share_counts(self, weights: ContextWeights) -> None:
        """Divide the features of transitions and co-occurrences among the items of the context."""
        for feature, name, part in _COUNTED:
            items: sparse.csr_array = getattr(weights, part)
            item_matrix = sparse.csr_array(  # one row per item of that part
                (items.data, items.indices, np.arange(items.nnz + 1)), shape=(items.nnz, items.shape[1])
            )
            counts = self._model.ranker.counters.matrices[name]
            added = counts.probability(item_matrix, smoothing=SMOOTHING_EVENTS)[:, self._columns].toarray()
            added = added.astype(np.float64)  # [items of that part, candidates]
            total = added.sum(axis=0)
            share = self._feature(feature) / np.where(total > 0, total, 1.0)
            self._kind("cooccurrence")[np.searchsorted(self._rows, items.indices)] += added * share

    def _share_repeats(self) -> None:
        """Attribute the features of repeats to the item itself, for candidates that are in the context."""
        _, of_context, of_candidates = np.intersect1d(
            self._rows, self._columns, assume_unique=True, return_indices=True
        )
        for name in _REPEATS:
            self._kind("repeats")[of_context, of_candidates] += self._feature(name)[of_candidates]

    def _share_vectors(self, weights: Tensor, candidate: Tensor, candidate_text: Tensor) -> None:
        """Divide the affinity features among the context's items; weights are [AFFINITIES, context rows]."""
        query, query_text = self._vectors("query", self._rows)
        product, text_product = query @ candidate.T, query_text @ candidate_text.T  # [context rows, candidates]
        attended = weights[0][:, None] * attention_strength(product)
        total = attended.sum(dim=0)
        share = attended * self._weights["session_attention_new"] * self._novelty() / torch.where(total > 0, total, 1.0)
        for name, item_weights in zip(AFFINITIES, weights, strict=True):
            share = share + item_weights[:, None] * self._slope(name, item_weights @ product)
        self._kind("text")[:] += (share * text_product).numpy()
        self._kind("residual")[:] += (share * (product - text_product)).numpy()

    def _slope(self, name: str, product: Tensor) -> Tensor:
        """Return the factor of an affinity's product [candidates] in the sum of all features computed from it."""
        slope: Tensor = self._weights[name] + self._weights[f"{name}_squared"] * float(AFFINITY_SCALE) * product
        return slope + self._weights[f"{name}_new"] * self._novelty() if name in NEW_AFFINITIES else slope

    def _text_residual(self, vector: Tensor, candidate: Tensor, candidate_text: Tensor) -> Array:
        """Return the products of a vector [dim] with the candidates' texts and residuals, [2, candidates]."""
        of_text = candidate_text @ vector
        products: Array = torch.stack([of_text, candidate @ vector - of_text]).numpy()
        return products

    def _novelty(self) -> Tensor:
        """Return the factor of the `_new` features: the scaled share of text in each vector, [candidates]."""
        share: Tensor = float(AFFINITY_SCALE) * self._model.ranker.text_share[torch.from_numpy(self._columns)].double()
        return share

    def _vectors(self, role: str, rows: IntArray) -> tuple[Tensor, Tensor]:
        """Return the vectors of a role [rows, dim], and the part of them that is text."""
        index = torch.from_numpy(rows)
        residuals = self._model.state.residuals[role]
        residual = torch.zeros(len(rows), residuals.shape[1], dtype=torch.float64)
        has_residual = index < len(residuals)
        residual[has_residual] = residuals[index[has_residual]].double()
        text = self._model.content_vectors[index].double()
        vector = text + (1 - self._model.ranker.text_share[index].double())[:, None] * residual
        norm = vector.norm(dim=1, keepdim=True).clamp(min=1e-12)
        return vector / norm, text / norm


def _weights(model: ServedModel, values: Tensor, more: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return by what each candidate's features are multiplied in its score, and what is left.

    Args:
        model: the model that scores the candidates.
        values: [FEATURES, candidates] features of the first stage.
        more: [SECOND_STAGE_FEATURES, candidates] features that only the second stage uses.

    Returns:
        Weights of `values` and of `more` with their shapes, and the second stage's output at zero, [candidates].
    """
    heads = model.state.heads.double()[:, None].expand_as(values)
    networks = model.ranker.second_stage.double()
    if not networks.is_active:
        return heads, torch.zeros_like(more), torch.zeros(values.shape[1], dtype=torch.float64)
    inputs = torch.cat([values, more, (heads * values).sum(dim=0, keepdim=True)])
    slopes = networks.mean_slopes(inputs)
    constant = networks.output(inputs) - (slopes * inputs).sum(dim=0)
    # The score of the first stage is an input of the second; its slope belongs to the features it is a sum of.
    return heads * (1 + slopes[-1]) + slopes[: len(values)], slopes[len(values) : -1], constant


def _sessions_ago(contexts: Contexts, rows: IntArray) -> IntArray:
    """Return the number of sessions since each row of the context was last looked at."""
    ages = dict(zip(contexts.items[0].tolist()[::-1], contexts.ages[0].tolist()[::-1], strict=True))
    return np.array([ages.get(row, 0) for row in rows.tolist()], dtype=np.int64)
