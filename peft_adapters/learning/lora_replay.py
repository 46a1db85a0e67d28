"""Experience replay for LoRA: a sample of earlier batches that it steps on again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from peft_adapters.learning.batches import Batch, take_columns
from peft_adapters.ranking.arrays import IntArray


@dataclass(frozen=True, slots=True)
class LoraBatch:
    """The part of a batch that a step of LoRA needs. It does not identify shoppers.

    Attributes:
        items: [events] rows of the items.
        weight: [events] weight in the loss.
        columns: [candidates] sorted rows of the candidates, positives included.
        log_expected: [candidates] log of the probability that a candidate is in the batch's sample.
        counter_features: [COUNTER_FEATURES, events, candidates] as of before the events.
        affinity_weights: [AFFINITIES, events, context rows].
        context_rows: [context rows] distinct items of the contexts.
        live_rows: [live rows] sorted rows whose texts carry gradients.
        query_vector: [events, dim] vector of each event's search query at the time of the event; None without any.
    """

    items: IntArray
    weight: Tensor
    columns: IntArray
    log_expected: Tensor
    counter_features: Tensor
    affinity_weights: Tensor
    context_rows: IntArray
    live_rows: IntArray
    query_vector: Tensor | None = None


def lora_batch(batch: Batch, candidates: IntArray, live_rows: IntArray) -> LoraBatch:
    """Return a batch with some of its candidates.

    Args:
        batch: micro-batch as `observe` returned it.
        candidates: [candidates] sorted rows to keep, positives included.
        live_rows: [live rows] sorted rows whose texts carry gradients.
    """
    columns = candidates if batch.columns is None else np.searchsorted(batch.columns, candidates)
    return LoraBatch(
        items=batch.items,
        weight=batch.weight,
        columns=candidates,
        # Thinning negatives evenly scales every probability by one factor, to which a softmax is invariant.
        log_expected=take_columns(batch.log_expected, np.searchsorted(batch.candidates, candidates)),
        counter_features=take_columns(batch.counter_features, columns),
        affinity_weights=batch.affinity_weights,
        context_rows=batch.context_rows,
        live_rows=live_rows,
        query_vector=batch.query_vector,
    )


class LoraReplay:
    """Uniform sample of the batches so far (algorithm R; Vitter 1985), with large tensors in half precision.

    Args:
        capacity: largest number of batches kept; 0 keeps none.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._kept: list[LoraBatch] = []
        self._seen = 0

    def draw(self, generator: np.random.Generator) -> list[LoraBatch]:
        """Return one of the kept batches at random; an empty list if there is none."""
        if not self._kept:
            return []
        batch = self._kept[int(generator.integers(len(self._kept)))]
        return [_with_precision(batch, torch.float32)]

    def add(self, batch: LoraBatch, generator: np.random.Generator) -> None:
        """Keep a batch with the same probability as each one before it."""
        self._seen += 1
        if len(self._kept) < self._capacity:
            self._kept.append(_with_precision(batch, torch.float16))
        elif (place := int(generator.integers(self._seen))) < self._capacity:
            self._kept[place] = _with_precision(batch, torch.float16)

    def clear(self) -> None:
        """Discard all batches and start the sample again."""
        self._kept, self._seen = [], 0

    def state_dict(self) -> dict[str, Tensor]:
        """Return the kept batches and the number seen, as tensors."""
        kept = {
            f"{place}.{field.name}": torch.as_tensor(getattr(batch, field.name))
            for place, batch in enumerate(self._kept)
            for field in fields(batch)
            if getattr(batch, field.name) is not None
        }
        return kept | {"seen": torch.tensor(self._seen)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore a state, as far as the capacity allows."""
        self._seen = int(state["seen"])
        there = (place for place in range(self._capacity) if f"{place}.items" in state)
        self._kept = [_from_state(state, place) for place in there]


def _with_precision(batch: LoraBatch, dtype: torch.dtype) -> LoraBatch:
    return replace(
        batch,
        counter_features=batch.counter_features.to(dtype),
        affinity_weights=batch.affinity_weights.to(dtype),
    )


def _from_state(state: Mapping[str, Tensor], place: int) -> LoraBatch:
    names = (field.name for field in fields(LoraBatch))
    part = {name: state[key] for name in names if (key := f"{place}.{name}") in state}
    rows = {name: part[name].numpy() for name in ("items", "columns", "context_rows", "live_rows")}
    return LoraBatch(**(part | rows))  # type: ignore[arg-type]
