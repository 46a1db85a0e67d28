"""What a backtest replays a stream through: a rival learns as events come, and ranks by what it published last."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from peft_adapters.learning.batches import Positive, ShownList
from peft_adapters.learning.learner import Learner
from peft_adapters.learning.lists import JudgedLists
from peft_adapters.ranking.ranker import FrozenRanker
from peft_adapters.ranking.shoppers import Contexts, Shoppers

_SCORED_CELLS = 2**20  # contexts x items at a time: bounds the memory of features to about 80 MB


class Rival(Protocol):
    """One contestant of a backtest."""

    @property
    def rows(self) -> Mapping[str, int]:
        """Row of each item in scores."""

    def publish(self) -> None:
        """Rank by what is learnt up to now."""

    def scores(self, examples: Sequence[Positive], contexts: Contexts) -> Tensor:
        """Scores [events, catalogue] as published, for shoppers who are where the contexts say."""

    def judge_lists(self, lists: Sequence[ShownList], shoppers: Shoppers) -> JudgedLists:
        """Scores and probabilities of what is in lists as published."""

    def learn(self, examples: Sequence[Positive]) -> None:
        """One micro-batch, in event order."""

    def learn_lists(self, lists: Sequence[ShownList]) -> None:
        """Lists whose clicks are known."""


class LearnerRival:
    """The learner as an updater runs it, and a frozen copy of its ranker as a scorer holds it.

    Args:
        model: learns.
        with_lists: lists will be judged too.
    """

    def __init__(self, model: Learner, *, with_lists: bool) -> None:
        self.model = model
        self._with_lists = with_lists
        self.publish()

    @property
    def rows(self) -> Mapping[str, int]:
        """Row of each item in scores."""
        return self.model.catalogue.rows

    def publish(self) -> None:
        """Rank by what is learnt up to now."""
        self._served = FrozenRanker(self.model.ranker)
        self._lists_served = _copied(self.model) if self._with_lists else None
        self.model.mark_published()  # else it would keep for a delta what it counts in all the run

    def scores(self, examples: Sequence[Positive], contexts: Contexts) -> Tensor:
        """Scores [events, catalogue] as published, for shoppers who are where the contexts say."""
        step = max(1, _SCORED_CELLS // len(self._served))
        parts = [_part(contexts, start, start + step) for start in range(0, len(examples), step)]
        return torch.cat([self._served.score(part) for part in parts])

    def judge_lists(self, lists: Sequence[ShownList], shoppers: Shoppers) -> JudgedLists:
        """Scores and probabilities of what is in lists as published, before any of its clicks is known."""
        if self._lists_served is None:
            return JudgedLists([], {})
        self._lists_served.shoppers = shoppers
        return self._lists_served.judge_lists(self._lists_served.observe_lists(lists))

    def learn(self, examples: Sequence[Positive]) -> None:
        """One micro-batch, in event order."""
        self.model.learn(self.model.observe(examples))

    def learn_lists(self, lists: Sequence[ShownList]) -> None:
        """Lists whose clicks are known."""
        self.model.learn_lists(self.model.observe_lists(lists))


def _copied(model: Learner) -> Learner:
    """A copy that stays as it is while the model learns on; it shares what never changes, and the shoppers."""
    shared = (model.encoder, model.catalogue, model.shoppers)
    kept = {id(part): part for part in shared} | {id(model.ranker.counters): model.ranker.counters.copy()}
    return copy.deepcopy(model, kept)


def _part(contexts: Contexts, start: int, end: int) -> Contexts:
    return replace(
        contexts,
        items=contexts.items[start:end],
        ages=contexts.ages[start:end],
        passed=contexts.passed[start:end],
    )
