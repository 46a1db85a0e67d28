"""Baseline `river`: River's factorisation machine, a general online learner, on the same events.

A logistic factorisation machine (Rendle 2010) over the user, the shopper's newest items and the candidate, so that it
learns both a user's preferences and which item follows which. Every event is learnt once, with random items as
negatives. All terms without the candidate are the same for the whole catalogue, so a ranking follows from
`weight[candidate] + latent[candidate] @ (latent[user] + sum of share * latent[newest])`, in numpy over its weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from river import facto, optim
from torch import Tensor

from peft_adapters.learning.batches import Positive, ShownList
from peft_adapters.learning.lists import JudgedLists
from peft_adapters.ranking.arrays import FloatArray
from peft_adapters.ranking.modalities import CatalogueItem
from peft_adapters.ranking.shoppers import Contexts, Shoppers

# The best of a search on the first 10,000 events of two data sets; docs/how-to/data-science/backtest.md names them.
_FACTORS = 128
_LATENT_RATE, _WEIGHT_RATE = 0.2, 0.05  # learning rates of SGD
_LATENT_SIGMA = 0.2  # of the initial weights; at River's default of 0.1 interactions are too small to grow in one pass
_NEGATIVES = 8  # per event
_NEWEST_ITEMS, _NEWEST_DECAY = 3, 0.6


class RiverBaseline:
    """River's `facto.FMClassifier` on the stream's events.

    Args:
        items: the catalogue; only ids are used.
        seed: seed of the initial weights and the negatives.
    """

    def __init__(self, items: Sequence[CatalogueItem], *, seed: int) -> None:
        self._rows = {item_id: row for row, item_id in enumerate(dict.fromkeys(item[0] for item in items))}
        self._model: Any = facto.FMClassifier(
            n_factors=_FACTORS,
            weight_optimizer=optim.SGD(_WEIGHT_RATE),
            latent_optimizer=optim.SGD(_LATENT_RATE),
            latent_initializer=optim.initializers.Normal(sigma=_LATENT_SIGMA, seed=seed),
        )
        self._generator = np.random.default_rng(seed)
        self._shoppers = Shoppers()  # as of the last event learnt
        self._unpublished: set[int] = set()  # rows of candidates changed since the last publication
        self._weights = np.zeros(len(self._rows), dtype=np.float32)
        self._latents = np.zeros((len(self._rows), _FACTORS), dtype=np.float32)

    @property
    def rows(self) -> Mapping[str, int]:
        """Return the row of each item in scores."""
        return self._rows

    def learn(self, examples: Sequence[Positive]) -> None:
        """Learn a micro-batch, each event with its negatives."""
        for example in examples:
            who, row = (example.user_id, example.session_id, example.ts), self._rows[example.item_id]
            side = _side(example.user_id, self._shoppers.context(*who)[0])
            self._shoppers.update(*who, row)
            negatives = self._generator.integers(len(self._rows), size=_NEGATIVES).tolist()
            for candidate, bought in [(row, True), *((negative, False) for negative in negatives)]:
                self._model.learn_one({**side, f"candidate {candidate}": 1.0}, bought)
            self._unpublished.update([row, *negatives])

    def learn_lists(self, lists: Sequence[ShownList]) -> None:
        """Ignore lists: their clicks are events too, and negatives are drawn at random."""

    def publish(self) -> None:
        """Copy the weights of the candidates that changed; a candidate that never occurred stays at zero."""
        if not self._unpublished:
            return
        rows = sorted(self._unpublished)
        self._weights[rows] = [self._model.weights[f"candidate {row}"] for row in rows]
        self._latents[rows] = [self._model.latents[f"candidate {row}"] for row in rows]
        self._unpublished.clear()

    def scores(self, examples: Sequence[Positive], contexts: Contexts) -> Tensor:
        """Return scores [events, catalogue]; it is published after every micro-batch, so users' weights are current."""
        newest = [[item for item in items if item >= 0] for items in contexts.items.tolist()]
        requests = [(example.user_id, items) for example, items in zip(examples, newest, strict=True)]
        return torch.from_numpy(self._queries(requests) @ self._latents.T + self._weights)

    def judge_lists(self, lists: Sequence[ShownList], shoppers: Shoppers) -> JudgedLists:
        """Return scores of the items in lists; there are no probabilities."""
        requests = []
        for shown in lists:
            items = shoppers.context(shown.user_id, shown.session_id, shown.ts, only_before=True).items
            requests.append((shown.user_id, items))
        scores = self._queries(requests) @ self._latents.T + self._weights
        judged = [
            torch.from_numpy(row[[self._rows[item_id] for item_id in shown.item_ids]])
            for row, shown in zip(scores, lists, strict=True)
        ]
        return JudgedLists(judged, {})

    def _queries(self, requests: Sequence[tuple[str, list[int]]]) -> FloatArray:
        """Return the vectors [shoppers, factors] that a candidate's latent vector is multiplied with."""
        queries = np.zeros((len(requests), _FACTORS), dtype=np.float32)
        for query, (user_id, newest) in zip(queries, requests, strict=True):
            for name, share in _side(user_id, newest).items():
                if name in self._model.latents:  # a lookup would initialise it at random
                    query += share * self._model.latents[name]
        return queries


def _side(user_id: str, newest: Sequence[int]) -> dict[str, float]:
    """Return the features of a shopper: the user, and the newest distinct items with decaying weights."""
    items = list(dict.fromkeys(newest))[:_NEWEST_ITEMS]
    return {f"user {user_id}": 1.0} | {f"after {item}": _NEWEST_DECAY**place for place, item in enumerate(items)}
