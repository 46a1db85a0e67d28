"""Trial of the adapter: the whole score with it against the one without, on events that are not learnt yet.

An adapter that fits purchases which counters and residuals predict better only moves texts that were right. So it is
applied while it is seen to pay, and is trained in any case: rarely while it does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import structlog
import torch
from torch import Tensor

from peft_adapters.learning.batches import Batch, take_columns
from peft_adapters.learning.positives import events_at
from peft_adapters.learning.trial import Trial
from peft_adapters.ranking.arrays import IntArray
from peft_adapters.ranking.counters import Counters

_EVENTS = 24  # of a micro-batch that is judged
_NEGATIVES = 64  # shared by them
_CONTEXT_ROWS = 40  # whose texts are encoded for it, those with most weight in the contexts
_FOCUS = 0.5  # exponent of the probability; its root falls with the rank about as the discounted gain at 20 does
_FEWEST_BATCHES = 12.0  # effective number of judged micro-batches below which nothing is decided
_CONVINCING = 2.5  # standard errors of the mean gain; it is looked at again and again
_PROMISING = 1.0  # standard errors of the mean gain from which on LoRA steps more often
_HALF_LIFE_EVENTS = 2_000.0  # judged events; 20,000 of all while the adapter is of interest, else 80,000
_MOSTLY_SEARCHES = 0.5  # share of events with a query from which on the adapter is applied until it is seen to cost
_RARELY = 1 / 16  # share of the steps taken while the adapter is not applied
_EVERY_BATCHES, _EVERY_OF_INTEREST = 8, 2  # micro-batches from one that is judged to the next

log = structlog.get_logger(__name__)


class LoraTrial:
    """The adapter at full strength against none, and what follows for its scale and for how often LoRA steps.

    The adapter is applied once its mean gain exceeds 2.5 standard errors, and until the mean gain is no longer
    positive. Only texts can rank for a query nobody has typed before, so where most events are searches it is applied
    from the start, until the mean gain is below minus 2.5 standard errors. All steps on the schedule are taken until
    there is evidence and while it is applied; otherwise one of 16 without a gain, and the more the further the mean
    gain is above one standard error.

    Args:
        is_tried: whether there is a trial; otherwise the adapter is always applied.
    """

    def __init__(self, *, is_tried: bool) -> None:
        self.is_tried = is_tried
        self.trial = Trial(half_life_events=_HALF_LIFE_EVENTS)
        self._counts = torch.zeros(3, dtype=torch.float64)  # micro-batches, events, and those with a search query
        self._is_applied, self._is_proven, self._is_decided = not is_tried, False, False

    @property
    def scale(self) -> float:
        """The factor on the adapter where it is served: 1 or 0."""
        return float(self._is_applied)

    @property
    def frequency(self) -> float:
        """The share of the steps on the schedule that LoRA takes, 1/16 to 1."""
        if self._is_applied or self.trial.batches < _FEWEST_BATCHES:
            return 1.0
        gain, error = self.trial.gain, self.trial.standard_error
        errors = gain / error if error else 0.0
        return min(1.0, max(_RARELY, (errors - _PROMISING) / (_CONVINCING - _PROMISING)))

    @property
    def _every_batches(self) -> int:
        """The number of micro-batches from one that is judged to the next: few while the adapter is of interest."""
        return _EVERY_OF_INTEREST if self.frequency > _RARELY else _EVERY_BATCHES

    def count(self, batch: Batch) -> bool:
        """Count a micro-batch and its searches, and return whether it is judged.

        Where learning lags, micro-batches without LoRA are not counted, so that those with it are judged in turn.
        """
        with_query = 0 if batch.queries is None else sum(query is not None for query in batch.queries)
        self._counts += torch.tensor([1, len(batch), with_query])
        if self.is_tried and not self._is_decided:
            _, events, searches = self._counts.tolist()
            self._is_applied = searches >= _MOSTLY_SEARCHES * events > 0
        return self.is_tried and int(self._counts[0]) % self._every_batches == 0

    def add(self, gains: Tensor) -> None:
        """Add what the adapter gains at events [events] of a micro-batch, and decide."""
        self.trial.add(gains)
        if self.trial.batches < _FEWEST_BATCHES:
            return
        certain, was_applied = _CONVINCING * self.trial.standard_error, self._is_applied
        if self.trial.gain > certain:
            self._is_applied = self._is_proven = self._is_decided = True
        elif self.trial.gain < (0.0 if self._is_proven else -certain):
            self._is_applied, self._is_proven, self._is_decided = False, False, True
        if self._is_applied != was_applied:
            gain, error = self.trial.gain, self.trial.standard_error
            log.info("lora_scale_changed", scale=self.scale, gain=round(gain, 6), standard_error=round(error, 6))

    def renew(self) -> None:
        """Discard the evidence, as after a drift; the scale stays until there is new evidence."""
        self.trial.restart()
        self._is_proven = False

    def restart(self, *, is_applied: bool) -> None:
        """Discard the evidence, and apply the adapter or not until there is new evidence."""
        self.trial.restart()
        self._counts = torch.zeros_like(self._counts)
        self._is_applied, self._is_proven, self._is_decided = is_applied or not self.is_tried, False, is_applied

    # ---- state

    def state_dict(self) -> dict[str, Tensor]:
        """Return the whole state as tensors; nothing without a trial."""
        if not self.is_tried:
            return {}
        flags = torch.tensor([self._is_applied, self._is_proven, self._is_decided])
        trial = {f"trial.{name}": value for name, value in self.trial.state_dict().items()}
        return trial | {"counts": self._counts.clone(), "flags": flags}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore a state; the empty one of an earlier release is that of an adapter that is applied."""
        self.restart(is_applied=True)
        if state and self.is_tried:
            names = self.trial.state_dict()
            self.trial.load_state_dict({name: state[f"trial.{name}"] for name in names})
            self._counts = state["counts"].clone()
            self._is_applied, self._is_proven, self._is_decided = state["flags"].tolist()


@dataclass(frozen=True, slots=True)
class JudgedEvents:
    """Some events of a micro-batch, and the items that they are judged among.

    Attributes:
        batch: the events, with features of the items.
        columns: [columns] sorted rows of the items.
        log_expected: [columns] log of the probability that an item is in the sample.
        rows: sorted rows whose texts are compared: the items, and those with most weight in the contexts.
    """

    batch: Batch
    columns: IntArray
    log_expected: Tensor
    rows: IntArray

    def gains(self, scores: Tensor) -> Tensor:
        """Return the root of the probability of each event's item, [events].

        Args:
            scores: [events, columns] result of `Learner.judge(batch)`.
        """
        targets = torch.from_numpy(np.searchsorted(self.columns, self.batch.items))
        losses = torch.nn.functional.cross_entropy(scores - self.log_expected, targets, reduction="none")
        return torch.exp(-_FOCUS * losses)


def judged_events(
    batch: Batch, places: IntArray, counters: Counters, *, generator: np.random.Generator
) -> JudgedEvents | None:
    """Return some events of a micro-batch, judged among their items and random ones; None if there are none.

    A random item stands for `1 / probability` items.

    Args:
        batch: micro-batch that is neither learnt nor counted yet.
        places: [places] events of it that may be judged.
        counters: counters before the batch.
        generator: draws events and items.
    """
    kept = np.sort(generator.permutation(places)[:_EVENTS])
    if not len(kept):
        return None
    positives = np.unique(batch.items[kept])
    others = np.setdiff1d(batch.candidates, positives, assume_unique=True)
    drawn = generator.permutation(others)[:_NEGATIVES]
    columns = np.union1d(positives, drawn)
    events = events_at(batch, kept, counters=counters, columns=columns)
    weight = events.affinity_weights.sum(dim=(0, 1)).numpy()
    heaviest = np.argsort(-weight, kind="stable")[: min(_CONTEXT_ROWS, int((weight > 0).sum()))]
    log_expected = take_columns(batch.log_expected, np.searchsorted(batch.candidates, columns))
    log_expected = log_expected + np.log(max(len(drawn), 1) / max(len(others), 1))
    return JudgedEvents(
        events,
        columns,
        log_expected.masked_fill(torch.from_numpy(np.isin(columns, positives)), 0.0),
        np.union1d(columns, batch.context_rows[heaviest]),
    )
