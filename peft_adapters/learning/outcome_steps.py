"""Outcome probabilities of a shown item: that it is clicked, and that it is bought once clicked.

Each has a head of its own over the features that a scorer knows. The ranking score gives no probability: its loss
compares the items of one list, so its level drifts as it learns, and an adaptive optimiser keeps it moving.

Purchases are learnt from all shown items, not from clicked ones alone: the loss is that of the product, click times
purchase given click (Ma et al. 2018, arXiv 1804.07931). Its gradient does not reach the click head, which learns better
from the far more frequent clicks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from peft_adapters.learning.batches import ListBatch
from peft_adapters.learning.losses import DelayedFeedback
from peft_adapters.learning.state_dicts import StateDict
from peft_adapters.ranking.calibration import (
    CalibratedHead,
    CalibrationBins,
    Probabilities,
    outcome_inputs,
)
from peft_adapters.ranking.counters import Counters
from peft_adapters.ranking.item_rates import conversion
from peft_adapters.ranking.outcomes import INPUTS, OUTCOMES

_START_LOG_ODDS = -2.0
_BIAS = INPUTS - 2
_JUDGED_HALF_LIFE = 50_000.0  # shown
_NEARLY_ONE = 1 - 1e-6


class OutcomeSteps:
    """Learner of click and purchase probabilities from lists.

    Args:
        mask: [features] 1 for the features that a scorer knows.

    Attributes:
        learnt: by outcome, whether its head has learnt; before, there is no probability of it.
        judged: by outcome, predictions against observations.
    """

    def __init__(self, mask: Tensor) -> None:
        self._mask = mask[:, None]
        self.learnt = dict.fromkeys(OUTCOMES, False)
        self.judged = {outcome: CalibrationBins(_JUDGED_HALF_LIFE) for outcome in OUTCOMES}
        start = [0.0] * INPUTS
        start[_BIAS] = _START_LOG_ODDS
        self._heads = {outcome: CalibratedHead(start) for outcome in OUTCOMES}
        self._feedback = DelayedFeedback()  # of purchases

    def probabilities(self) -> Probabilities | None:
        """Return the weights of the probabilities; None before a list was learnt."""
        click, purchase = (self._heads[name].weights(_BIAS) if self.learnt[name] else None for name in OUTCOMES)
        return None if click is None else Probabilities(click, purchase)

    def load_published(self, known: Probabilities) -> None:
        """Start from the weights of a bundle."""
        for outcome, weights in known._asdict().items():
            if weights is not None:
                self._heads[outcome].initialise(weights)
                self.learnt[outcome] = True

    def inputs(self, batch: ListBatch, features: Tensor, counters: Counters) -> Tensor:
        """Return the inputs of the heads, [shown, INPUTS], from features [features, shown]."""
        converted = torch.from_numpy(conversion(counters)[batch.items])
        return outcome_inputs(features * self._mask, converted, torch.from_numpy(batch.position))

    def learn(self, batch: ListBatch, inputs: Tensor, feedback: DelayedFeedback) -> None:
        """Judge the present predictions, then learn.

        Args:
            batch: the observed lists.
            inputs: [shown, INPUTS] inputs of the heads.
            feedback: counts of clicks in time and of late ones.
        """
        clicked, bought, correction = (
            torch.from_numpy(flags) for flags in (batch.clicked, batch.bought, batch.is_correction)
        )
        weight = batch.weight[torch.from_numpy(batch.owner)]
        known = self.probabilities()
        for outcome, probability in known(inputs).items() if known else ():
            happened = clicked if outcome == "click" else bought
            self.judged[outcome].add(probability, happened, weight=weight, is_correction=correction)
        click = self._heads["click"].probability(inputs)
        self._heads["click"].update(
            inputs, clicked, feedback.weights(click, clicked) * weight * (clicked | ~correction)
        )
        self.learnt = {"click": True, "purchase": self.learnt["purchase"] or bool(bought.any())}
        if self.learnt["purchase"]:
            click = click.clamp(max=_NEARLY_ONE)
            chance = click * self._heads["purchase"].probability(inputs)
            counted = self._feedback.weights(chance, bought) * weight * (bought | ~correction)
            self._heads["purchase"].update(inputs, bought, counted, ceiling=click)
            self._feedback.count(batch.bought, batch.is_correction)

    def bundle_tensors(self) -> dict[str, Tensor]:
        """Return the weights of the probabilities that a bundle holds, by outcome."""
        known = self.probabilities()
        return {} if known is None else {name: value for name, value in known._asdict().items() if value is not None}

    # ---- state

    def state_dict(self) -> StateDict:
        """Return the weights of both heads."""
        return {outcome: head.state_dict() for outcome, head in self._heads.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the weights of both heads."""
        for outcome, head in self._heads.items():
            head.load_state_dict(state[outcome])

    def counts_state_dict(self) -> StateDict:
        """Return the counts as JSON values."""
        return {
            "feedback": self._feedback.state_dict(),
            "learnt": self.learnt,
            "judged": {outcome: bins.state_dict() for outcome, bins in self.judged.items()},
        }

    def load_counts(self, state: Mapping[str, Any]) -> None:
        """Restore what `counts_state_dict` returned."""
        self._feedback.load_state_dict(state["feedback"])
        self.learnt = dict(state["learnt"])
        for outcome, bins in self.judged.items():
            bins.load_state_dict(state["judged"][outcome])
