"""Events as a learner receives them, and micro-batches of them with contexts and features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from peft_adapters.ranking.arrays import IntArray
from peft_adapters.ranking.shoppers import Contexts


class Positive(Protocol):
    """A click or purchase."""

    @property
    def user_id(self) -> str:
        """Return the shopper's id."""

    @property
    def session_id(self) -> str | None:
        """Return the session's id, if the producer sends one."""

    @property
    def item_id(self) -> str:
        """Return the item's id."""

    @property
    def ts(self) -> int:
        """Return the event time, epoch milliseconds."""

    @property
    def weight(self) -> float:
        """Return the weight in the loss; counters count every event fully."""

    @property
    def query(self) -> str | None:
        """Return the search query that led to the event, if it is known."""


class ShownList(Protocol):
    """An impression whose click window has passed."""

    @property
    def user_id(self) -> str:
        """Return the shopper's id."""

    @property
    def session_id(self) -> str | None:
        """Return the session's id, if the producer sends one."""

    @property
    def ts(self) -> int:
        """Return the time of the impression, epoch milliseconds."""

    @property
    def item_ids(self) -> Sequence[str]:
        """Return the shown items."""

    @property
    def positions(self) -> Sequence[int]:
        """Return each item's position in the list, from 0."""

    @property
    def clicked(self) -> Sequence[bool]:
        """Return, for each item, whether it was clicked or bought before the window closed."""

    @property
    def bought(self) -> Sequence[bool]:
        """Return, for each item, whether it was bought before the window closed."""

    @property
    def is_correction(self) -> bool:
        """Return whether this is one item that was clicked or bought after it was learnt as a negative."""

    @property
    def weight(self) -> float:
        """Return the weight in the loss; counters count every list fully."""

    @property
    def query(self) -> str | None:
        """Return the search query that the list answers, if there is one."""


def take_columns(values: Tensor, columns: IntArray) -> Tensor:
    """Return columns [..., columns] of a tensor [..., all columns]; numpy is several times as fast as torch here."""
    return torch.from_numpy(values.numpy().take(columns, axis=-1))


@dataclass(frozen=True, slots=True)
class Batch:
    """A micro-batch of positives.

    Attributes:
        items: [events] rows of the items.
        weight: [events] weight in the loss.
        contexts: what each shopper had done before the event.
        before: rows of the earlier events in each event's session, newest first.
        sessions: [events] key of each event's session, as `Shoppers.session_key_of` returns it.
        ts_ms: [events] time of each event, epoch milliseconds.
        first_of_item: [events] whether no earlier batch has an event of the item.
        new_shopper: [events] whether this is the shopper's first event.
        is_repeat: [events] whether the shopper had the item in an earlier session.
        item_count: number of items in the catalogue.
        columns: [columns] rows that features are computed for; None is the whole catalogue.
        candidates: [candidates] sorted rows the step is taken on, positives included.
        log_expected: [candidates] log of the probability that a candidate is in the sample.
        counter_features: [COUNTER_FEATURES, events, columns].
        affinity_weights: [AFFINITIES, events, context rows].
        context_rows: [context rows] distinct items of the contexts.
        query_vector: [events, dim] vector of each event's search query, zero without one; None if no event has one.
        queries: [events] search query of each event, None without one; None if no event has one.
    """

    items: IntArray
    weight: Tensor
    contexts: Contexts
    before: list[list[int]]
    sessions: IntArray
    ts_ms: IntArray
    first_of_item: np.ndarray
    new_shopper: np.ndarray
    is_repeat: npt.NDArray[np.bool_]
    item_count: int
    columns: IntArray | None
    candidates: IntArray
    log_expected: Tensor
    counter_features: Tensor
    affinity_weights: Tensor
    context_rows: IntArray
    query_vector: Tensor | None = None
    queries: Sequence[str | None] | None = None

    def __len__(self) -> int:
        """Return the number of events."""
        return len(self.items)


@dataclass(frozen=True, slots=True)
class ListBatch:
    """A micro-batch of lists. The dimension `shown` runs over the items of all lists, list after list.

    Attributes:
        user_ids: [lists] shopper each list was shown to.
        shown_ms: [lists] time of each impression, epoch milliseconds.
        items: [shown] rows of the items.
        owner: [shown] index of the item's list.
        position: [shown] position in the list, from 0.
        clicked: [shown] whether the item was clicked.
        bought: [shown] whether the item was bought.
        is_correction: [shown] whether the item corrects a label that was learnt before.
        weight: [lists] weight in the loss.
        contexts: recent items of the shoppers before each list.
        counter_features: [COUNTER_FEATURES, shown] without the counts of the list's own clicks.
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
    contexts: Contexts
    counter_features: Tensor
    affinity_weights: Tensor
    context_rows: IntArray
    query_vector: Tensor | None = None

    def __len__(self) -> int:
        """Return the number of lists."""
        return len(self.weight)

    def passed_over(self) -> Iterator[tuple[str, int, list[int]]]:
        """Yield shopper, time and rows of the items passed over, for each list of positive weight with a click.

        A list without a click may not have been seen at all.
        """
        ends = np.cumsum(np.bincount(self.owner, minlength=len(self)))[:-1]
        lists = zip(np.split(self.items, ends), np.split(self.clicked, ends), strict=True)
        for user_id, shown_ms, weight, (items, clicked) in zip(
            self.user_ids, self.shown_ms, self.weight.tolist(), lists, strict=True
        ):
            if weight > 0 and clicked.any():
                yield user_id, shown_ms, items[~clicked].tolist()
