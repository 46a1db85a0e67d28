"""What becomes of what is shown: how likely each item is clicked, and bought once it is clicked.

Both have a head of their own over the features that a scorer knows. The score does not say it: its loss compares what
stood in one list, so its level wanders as it learns, and an adaptive optimiser keeps it moving.

A purchase is learnt from all that was shown, not from what was clicked alone: the loss is that of the product, click
times purchase given click (Ma et al. 2018, arXiv 1804.07931). No gradient of it runs into the click: clicks are many,
and say it better.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from peft_adapters.learning.batches import ListBatch
from peft_adapters.learning.losses import DelayedFeedback
from peft_adapters.ranking.calibration import (
    INPUTS,
    OUTCOMES,
    CalibratedHead,
    CalibrationBins,
    OnlineLogistic,
    Probabilities,
    outcome_inputs,
)
from peft_adapters.ranking.counters import Counters
from peft_adapters.ranking.features import conversion

_START_LOG_ODDS = -2.0
_BIAS = INPUTS - 2
_JUDGED_HALF_LIFE = 50_000.0  # shown
_NEARLY_ONE = 1 - 1e-6


class OutcomeSteps:
    """Learns, from lists, how likely what they show is clicked and bought.

    Args:
        mask: [features] 1 for those that a scorer knows.

    Attributes:
        learnt: by outcome, whether any was seen; without one there is no probability of it.
        judged: by outcome, predictions against what came of them.
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
        """What says how likely outcomes are; None before a list was learnt."""
        click, purchase = (self._heads[name].weights(_BIAS) if self.learnt[name] else None for name in OUTCOMES)
        return None if click is None else Probabilities(click, purchase)

    def begin_with(self, known: Probabilities) -> None:
        """Go on from what a bundle holds."""
        for outcome, weights in known._asdict().items():
            if weights is not None:
                self._heads[outcome].initialise(weights)
                self.learnt[outcome] = True

    def inputs(self, batch: ListBatch, features: Tensor, counters: Counters) -> Tensor:
        """What outcomes follow from, [shown, INPUTS], of features [features, shown]."""
        converted = torch.from_numpy(conversion(counters)[batch.items])
        return outcome_inputs(features * self._mask, converted, torch.from_numpy(batch.position))

    def learn(self, batch: ListBatch, inputs: Tensor, feedback: DelayedFeedback) -> None:
        """Judge by what is known, then learn.

        Args:
            batch: the lists.
            inputs: [shown, INPUTS].
            feedback: of clicks.
        """
        clicked, bought, late = (torch.from_numpy(was) for was in (batch.clicked, batch.bought, batch.is_correction))
        weight = batch.weight[torch.from_numpy(batch.owner)]
        known = self.probabilities()
        for outcome, probability in known(inputs).items() if known else ():
            happened = clicked if outcome == "click" else bought
            self.judged[outcome].add(probability, happened, weight=weight, is_correction=late)
        click = self._heads["click"].probability(inputs)
        self._heads["click"].update(inputs, clicked, feedback.weights(click, clicked) * weight * (clicked | ~late))
        self.learnt = {"click": True, "purchase": self.learnt["purchase"] or bool(bought.any())}
        if self.learnt["purchase"]:
            click = click.clamp(max=_NEARLY_ONE)
            chance = click * self._heads["purchase"].probability(inputs)
            counted = self._feedback.weights(chance, bought) * weight * (bought | ~late)
            self._heads["purchase"].update(inputs, bought, counted, ceiling=click)
            self._feedback.count(batch.bought, batch.is_correction)

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All of it, as tensors and as JSON can hold it."""
        tensors = {f"{name}.{key}": value for name, own in self._parts() for key, value in own.state_dict().items()}
        return tensors, {
            "feedback": self._feedback.state_dict(),
            "learnt": self.learnt,
            "judged": {outcome: bins.state_dict() for outcome, bins in self.judged.items()},
        }

    def load_state_dict(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        for name, own in self._parts():
            own.load_state_dict({key: tensors[f"{name}.{key}"] for key in ("weights", "curvature")})
        self._feedback.load_state_dict(state["feedback"])
        self.learnt = dict(state["learnt"])
        for outcome, bins in self.judged.items():
            bins.load_state_dict(state["judged"][outcome])

    def _parts(self) -> Iterator[tuple[str, OnlineLogistic]]:
        for outcome, head in self._heads.items():
            yield f"{outcome}.slow", head.slow
            yield f"{outcome}.fast", head.fast
