"""A trial of an alternative against what is served, on events that neither has learnt yet."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

_HALF_LIFE_EVENTS = 10_000.0
_CONVINCING = 2.0  # standard errors of the mean gain at which the alternative is used fully
_FEWEST_BATCHES = 8.0  # effective number of micro-batches below which the evidence is not used


class Trial:
    """Paired comparison of an alternative with the baseline, discounted over time, and how much of it to use.

    Both are judged on the same events, before either learns them. A micro-batch counts as one observation, the mean
    gain of its events, because events of one micro-batch are not independent: shoppers and items repeat. So the share
    to use follows from the mean gain over its standard error: 0 up to no gain, 1 from two standard errors, linear
    between. It falls back as the gain does.

    Args:
        half_life_events: events after which an observation counts half.

    >>> trial = Trial()
    >>> for number in range(20):
    ...     trial.add(torch.tensor([0.2, -0.1, 0.01 * number]))
    >>> trial.share
    1.0
    """

    def __init__(self, *, half_life_events: float = _HALF_LIFE_EVENTS) -> None:
        self._half_life_events = half_life_events
        # sums over observations: weight, squared weight, weight times gain, weight times squared gain
        self._sums = torch.zeros(4, dtype=torch.float64)
        self._initial = 0.0  # share until there is evidence

    def add(self, gains: Tensor) -> None:
        """Add the events of a micro-batch; those without a finite gain are ignored.

        Args:
            gains: [events] what the alternative gains over the baseline at each event.
        """
        gains = gains[torch.isfinite(gains)].double()
        count = len(gains)
        if not count:
            return
        gain, decay = float(gains.mean()), 0.5 ** (count / self._half_life_events)
        kept = self._sums * torch.tensor([decay, decay * decay, decay, decay], dtype=torch.float64)
        added = torch.tensor([count, count * count, count * gain, count * gain * gain], dtype=torch.float64)
        self._sums = kept + added

    @property
    def batches(self) -> float:
        """The effective number of micro-batches, by their weights: `(sum w) ** 2 / sum w ** 2`."""
        weight, squares = self._sums[:2].tolist()
        return weight * weight / squares if squares else 0.0

    @property
    def gain(self) -> float:
        """The discounted mean gain per event; 0 before the first."""
        weight, _, total, _ = self._sums.tolist()
        return total / weight if weight else 0.0

    @property
    def standard_error(self) -> float:
        """The standard error of the mean gain; infinite before there are two micro-batches."""
        if self.batches <= 1:
            return math.inf
        weight, _, _, squares = self._sums.tolist()
        return math.sqrt(max(squares / weight - self.gain**2, 0.0) / (self.batches - 1))

    @property
    def share(self) -> float:
        """Return the share of the alternative to use, 0 to 1."""
        if self.batches < _FEWEST_BATCHES:
            return self._initial
        certain = _CONVINCING * self.standard_error
        return min(1.0, max(0.0, self.gain) / certain) if certain else float(self.gain > 0)

    def restart(self, share: float = 0.0) -> None:
        """Discard the evidence, and use a given share until there is new evidence."""
        self._sums = torch.zeros_like(self._sums)
        self._initial = share

    def state_dict(self) -> dict[str, Tensor]:
        """Return the whole state as tensors."""
        return {"sums": self._sums.clone(), "initial": torch.tensor(self._initial, dtype=torch.float64)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore a state; nothing restores a trial without evidence."""
        self.restart(float(state["initial"]) if state else 0.0)
        if state:
            self._sums = state["sums"].clone()
