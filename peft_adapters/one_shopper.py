"""Scores and probabilities for one shopper at a time, as answers need them: the numbers of a batch, few steps.

For a hundred candidates the steps cost more than the arithmetic in them. So what does not depend on who asks is kept,
vectors meet candidates in one product, and scores and log odds come of another.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from peft_adapters.calibration import INPUTS, Probabilities, probabilities_of
from peft_adapters.counters import FloatArray, IntArray
from peft_adapters.features import affinities, attended
from peft_adapters.one_context import OneContext, OwnItems
from peft_adapters.settings import AFFINITIES, COUNTER_FEATURES, FEATURES
from peft_adapters.shoppers import Contexts


class OneShopper:
    """A frozen ranker's single contexts.

    Args:
        counted: the counters.
        query: gives vectors of context items.
        candidate: [items, dim] vectors of candidates.
        standing: [items] each, what does not depend on who asks: how an item is liked, how far text speaks for it, and
            how its clicks convert.
        heads: [FEATURES].
        probabilities: what says how likely outcomes are, where that is known.
    """

    def __init__(
        self,
        counted: OneContext,
        *,
        query: Callable[[IntArray], Tensor],
        candidate: Tensor,
        standing: tuple[Tensor, Tensor, Tensor],
        heads: Tensor,
        probabilities: Probabilities | None,
    ) -> None:
        self._counted, self._query, self._candidate = counted, query, candidate
        self._standing: FloatArray = torch.stack(standing).numpy()
        outcomes = () if probabilities is None else (own for own in probabilities if own is not None)
        self._weights = torch.stack([torch.nn.functional.pad(heads, (0, INPUTS - len(heads))), *outcomes])

    def features(self, contexts: Contexts, columns: IntArray | None, asked: Tensor | None) -> Tensor:
        """Features [FEATURES, 1, candidates]."""
        return self._inputs(contexts, columns, asked)[: len(FEATURES), None]

    def score(self, contexts: Contexts, columns: IntArray | None, asked: Tensor | None) -> Tensor:
        """Scores [1, candidates]."""
        return self._weights[:1] @ self._inputs(contexts, columns, asked)

    def judge(
        self, contexts: Contexts, columns: IntArray | None, asked: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The same scores, and by outcome the probability of each that is shown in the first place."""
        found = self._weights @ self._inputs(contexts, columns, asked)
        return found[:1], probabilities_of(found[1:, None].unbind()) if len(found) > 1 else {}

    def _inputs(self, contexts: Contexts, columns: IntArray | None, asked: Tensor | None) -> Tensor:
        """What `calibration.inputs_of` gives, [INPUTS, candidates]: features, conversion, 1, and 0 for the place."""
        own = OwnItems(contexts)
        liked, text_share, converted = self._standing if columns is None else self._standing[:, columns]
        inputs = np.zeros((INPUTS, len(liked)), dtype=np.float32)
        inputs[: len(COUNTER_FEATURES)] = self._counted.counter_features(own, columns)
        products, attention, sought = self._compared(own, columns, asked)
        by_vectors = affinities(list(products), attention, liked, text_share, sought)
        for row, values in zip(inputs[len(COUNTER_FEATURES) :], by_vectors, strict=False):
            row[:] = values
        inputs[len(FEATURES)] = converted
        inputs[len(FEATURES) + 1] = 1.0
        return torch.from_numpy(inputs)

    def _compared(
        self, own: OwnItems, columns: IntArray | None, asked: Tensor | None
    ) -> tuple[FloatArray, FloatArray, FloatArray | None]:
        """Products with a context's mean vectors [AFFINITIES, candidates], attention, and with what is searched for."""
        rows, numbers = own.affinity_weights()
        weights, query = torch.from_numpy(numbers), self._query(rows)
        session = len(own.parts["session"][0])
        candidates = self._candidate if columns is None else self._candidate[torch.from_numpy(columns)]
        vectors = [weights @ query, query[:session], *(() if asked is None else (asked,))]
        products = torch.cat(vectors) @ candidates.T
        similarity = products[len(AFFINITIES) : len(AFFINITIES) + session]
        attention = attended(weights[:1, :session], similarity)[0].numpy()
        sought = None if asked is None else products[-1].numpy()
        return products[: len(AFFINITIES)].numpy(), attention, sought
