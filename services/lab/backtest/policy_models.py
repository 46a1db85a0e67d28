"""Models that a backtest compares: each learns events as they come, and ranks by its last published state."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from peft_adapters.learning.batches import Positive, ShownList
from peft_adapters.learning.learner import Learner
from peft_adapters.learning.lists import JudgedLists
from peft_adapters.ranking.ranker import FrozenRanker
from peft_adapters.ranking.shoppers import Contexts, Shoppers

_SCORED_CELLS = 2**20  # contexts x items at a time: bounds the memory of features to about 80 MB


class PolicyModel(Protocol):
    """The interface of a model in a backtest."""

    @property
    def rows(self) -> Mapping[str, int]:
        """Return the row of each item in scores."""

    def publish(self) -> None:
        """Rank by the state learnt so far from now on."""

    def scores(self, examples: Sequence[Positive], contexts: Contexts) -> Tensor:
        """Return scores [events, catalogue] of the published state, for shoppers in the given contexts."""

    def judge_lists(self, lists: Sequence[ShownList], shoppers: Shoppers) -> JudgedLists:
        """Return scores and probabilities of the items in lists, by the published state."""

    def learn(self, examples: Sequence[Positive]) -> None:
        """Learn a micro-batch in event order."""

    def learn_lists(self, lists: Sequence[ShownList]) -> None:
        """Learn lists whose clicks are known."""


class LearnerModel:
    """The learner as an updater runs it, and a frozen copy of its ranker as a scorer holds it.

    Args:
        model: the learner that learns.
        with_lists: whether lists will be judged too.
    """

    def __init__(self, model: Learner, *, with_lists: bool) -> None:
        self.model = model
        self._with_lists = with_lists
        self.publish()

    @property
    def rows(self) -> Mapping[str, int]:
        """Return the row of each item in scores."""
        return self.model.catalogue.rows

    def publish(self) -> None:
        """Rank by the state learnt so far from now on."""
        self._served, self._suffix = FrozenRanker(self.model.ranker), self.model.lora_steps.served_suffix
        self._lists_served = _copied(self.model) if self._with_lists else None
        self.model.mark_published()  # otherwise it would collect the counts of the whole run for a delta

    def scores(self, examples: Sequence[Positive], contexts: Contexts) -> Tensor:
        """Return scores [events, catalogue] of the published state, for shoppers in the given contexts."""
        queries = self.model.query_vectors([example.query for example in examples], self._suffix)
        step = max(1, _SCORED_CELLS // len(self._served))
        scores = [
            self._served.score(
                contexts.part(slice(start, start + step)),
                query_vector=None if queries is None else queries[start : start + step],
            )
            for start in range(0, len(examples), step)
        ]
        return torch.cat(scores)

    def judge_lists(self, lists: Sequence[ShownList], shoppers: Shoppers) -> JudgedLists:
        """Return scores and probabilities of the items in lists by the published state, without their clicks."""
        if self._lists_served is None:
            return JudgedLists([], {})
        self._lists_served.shoppers = shoppers
        return self._lists_served.judge_lists(self._lists_served.observe_lists(lists))

    def learn(self, examples: Sequence[Positive]) -> None:
        """Learn a micro-batch in event order."""
        self.model.learn(self.model.observe(examples))

    def learn_lists(self, lists: Sequence[ShownList]) -> None:
        """Learn lists whose clicks are known."""
        self.model.learn_lists(self.model.observe_lists(lists))


def _copied(model: Learner) -> Learner:
    """Return a copy that does not change while the model learns on; constant parts and shoppers are shared."""
    shared = (model.encoder, model.catalogue, model.shoppers)
    memo = {id(part): part for part in shared} | {id(model.ranker.counters): model.ranker.counters.copy()}
    return copy.deepcopy(model, memo)
