"""Clicks and purchases that arrived before the impression that they answer."""

from collections import OrderedDict
from typing import Any

MAX_EARLY_CLICKS = 10_000


class EarlyClicks:
    """A bounded memory of early clicks by request and item; the oldest are dropped first."""

    def __init__(self) -> None:
        self._clicks: OrderedDict[tuple[int, str], tuple[int, bool]] = OrderedDict()  # -> event time (ms), was bought

    def __len__(self) -> int:
        """Return the number of request and item pairs."""
        return len(self._clicks)

    def add(self, request: int, item_id: str, *, ts: int, bought: bool) -> None:
        """Remember a click or purchase.

        Args:
            request: the digest of the request that it names.
            item_id: the item that was clicked or bought.
            ts: the event time, epoch milliseconds.
            bought: whether it is a purchase.
        """
        key = request, item_id
        _, was_bought = self._clicks.get(key, (0, False))
        self._clicks[key] = ts, was_bought or bought
        if len(self._clicks) > MAX_EARLY_CLICKS:
            self._clicks.popitem(last=False)

    def take(self, request: int, item_id: str) -> bool | None:
        """Remove the clicks of a shown item. Returns whether it was bought, or None if there was no click."""
        click = self._clicks.pop((request, item_id), None)
        return None if click is None else click[1]

    def expire(self, before_ms: int) -> None:
        """Drop the oldest clicks as long as they are older than an event time."""
        while self._clicks and next(iter(self._clicks.values()))[0] < before_ms:
            self._clicks.popitem(last=False)

    def bound(self, now_ms: int) -> None:
        """Move event times that are later than the reader's clock back to it."""
        self._clicks = OrderedDict((key, (min(ts, now_ms), bought)) for key, (ts, bought) in self._clicks.items())

    def state(self) -> list[list[Any]]:
        """Return the clicks in a form that JSON can hold."""
        return [[*key, *click] for key, click in self._clicks.items()]

    def restore(self, state: list[list[Any]]) -> None:
        """Restore what `state` returned."""
        self._clicks = OrderedDict(((request, item_id), (ts, bought)) for request, item_id, ts, bought in state)
