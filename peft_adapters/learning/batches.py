"""What the learner is given, and batches of it as the learner sees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from peft_adapters.ranking.counters import IntArray
from peft_adapters.ranking.shoppers import Contexts


class Positive(Protocol):
    """What the learner needs to know of a click or purchase."""

    @property
    def user_id(self) -> str:
        """Who."""

    @property
    def session_id(self) -> str | None:
        """In which session, where the producer says so."""

    @property
    def item_id(self) -> str:
        """What."""

    @property
    def ts(self) -> int:
        """When, event time in epoch milliseconds."""

    @property
    def weight(self) -> float:
        """How much it weighs in the loss; counters count it whole."""

    @property
    def query(self) -> str | None:
        """What the shopper had searched for, where that is known."""


class ShownList(Protocol):
    """What the learner needs to know of an impression whose click window has passed."""

    @property
    def user_id(self) -> str:
        """Whom it was shown to."""

    @property
    def session_id(self) -> str | None:
        """In which session, where the producer says so."""

    @property
    def ts(self) -> int:
        """When it was shown, event time in epoch milliseconds."""

    @property
    def item_ids(self) -> Sequence[str]:
        """What was shown."""

    @property
    def positions(self) -> Sequence[int]:
        """In what place each item was, from 0."""

    @property
    def clicked(self) -> Sequence[bool]:
        """Whether each item was clicked or bought before its negative was due."""

    @property
    def bought(self) -> Sequence[bool]:
        """Whether each item was bought before its negative was due."""

    @property
    def is_correction(self) -> bool:
        """One item alone, clicked or bought after it was learnt as not; `clicked` and `bought` say what is new."""

    @property
    def weight(self) -> float:
        """How much it weighs in the loss; counters count it whole."""

    @property
    def query(self) -> str | None:
        """What the shopper had searched for, where that is why it was shown."""


@dataclass(frozen=True, slots=True)
class Batch:
    """A micro-batch as the learner sees it.

    Attributes:
        items: [events] rows of the items.
        weight: [events] in the loss.
        contexts: what each shopper had done before the event.
        before: rows before each event in its session, newest first.
        first_of_item: [events] whether no earlier batch had an event of the item.
        new_shopper: [events] whether the shopper had done nothing before.
        item_count: size of the catalogue.
        columns: [candidates] rows that features were computed for; None is the whole catalogue.
        candidates: [candidates] rows the step is taken on, positives included, sorted.
        log_expected: [candidates] log of the probability that a candidate is in the sample.
        counter_features: [COUNTER_FEATURES, events, columns].
        affinity_weights: [AFFINITIES, events, context rows].
        context_rows: [context rows] distinct items of the contexts.
        query_vector: [events, dim] vector of each event's search query, zero without one; None if no event has one.
    """

    items: IntArray
    weight: Tensor
    contexts: Contexts
    before: list[list[int]]
    first_of_item: np.ndarray
    new_shopper: np.ndarray
    item_count: int
    columns: IntArray | None
    candidates: IntArray
    log_expected: Tensor
    counter_features: Tensor
    affinity_weights: Tensor
    context_rows: IntArray
    query_vector: Tensor | None = None

    def __len__(self) -> int:
        """Events."""
        return len(self.items)


@dataclass(frozen=True, slots=True)
class ListBatch:
    """Lists as the learner sees them; what is "shown" is all their items in one row, list after list.

    Attributes:
        user_ids: [lists] whom each was shown to.
        shown_ms: [lists] when, event time.
        items: [shown] rows of the items.
        owner: [shown] index of the list each belongs to.
        position: [shown] place in its list, from 0.
        clicked: [shown] whether it was clicked.
        bought: [shown] whether it was bought.
        is_correction: [shown] whether it corrects what was learnt before.
        weight: [lists] in the loss.
        counter_features: [COUNTER_FEATURES, shown] without what the list's own clicks have added.
        affinity_weights: [AFFINITIES, lists, context rows].
        context_rows: [context rows] distinct items of the contexts.
        query_vector: [lists, dim] vector of each list's search query, zero without one; None if no list has one.
    """

    user_ids: tuple[str, ...]
    shown_ms: tuple[int, ...]
    items: IntArray
    owner: IntArray
    position: IntArray
    clicked: npt.NDArray[np.bool_]
    bought: npt.NDArray[np.bool_]
    is_correction: npt.NDArray[np.bool_]
    weight: Tensor
    counter_features: Tensor
    affinity_weights: Tensor
    context_rows: IntArray
    query_vector: Tensor | None = None

    def __len__(self) -> int:
        """Lists."""
        return len(self.weight)
