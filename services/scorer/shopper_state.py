"""What shoppers have done lately, from the worker's own reading of clicks and purchases."""

import threading
from collections.abc import Mapping, Sequence

from peft_adapters.shoppers import HISTORY_ITEMS, Shoppers
from streams.events import Click, Purchase, UserEvent
from streams.joiner import Example, Joiner

Context = tuple[list[int], list[int]]  # catalogue rows, newest first, and how many sessions ago each was


class ShopperState:
    """Shoppers' states behind a lock: one thread takes in events, others ask.

    Events pass the same joiners as in the updater, so that both know the same: repeats are dropped, and an event of an
    item that has not come waits for it.

    Args:
        rows: Row of each known item; another thread may add to it.
        max_shoppers: States held.
    """

    def __init__(self, rows: Mapping[str, int], *, max_shoppers: int) -> None:
        self._rows = rows
        self._shoppers = Shoppers(max_shoppers=max_shoppers)
        self._joiners = {kind: Joiner(is_known=rows.__contains__) for kind in (Click, Purchase)}
        self._watermark_ms = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """How many shoppers are known."""
        return len(self._shoppers)

    def take_in(self, event: UserEvent, *, publish_ts_ms: int) -> None:
        """Take in a click or a purchase."""
        joiner = self._joiners[type(event)]
        with self._lock:
            self._update(joiner.offer(event, publish_ts_ms=publish_ts_ms))
            self._watermark_ms = max(self._watermark_ms, event.ts)
            joiner.advance(self._watermark_ms)

    def item_arrived(self, item_id: str) -> None:
        """Take in what waited for an item."""
        with self._lock:
            for joiner in self._joiners.values():
                self._update(joiner.item_arrived(item_id))

    def context(
        self, user_id: str | None, session_id: str | None, ts_ms: int, *, session: Sequence[int] | None
    ) -> Context:
        """What a ranking is made from.

        Args:
            user_id: Who asks; None is a guest.
            session_id: The session at hand.
            ts_ms: When, epoch milliseconds.
            session: Rows of the session at hand, oldest first, in place of what the worker knows of it.
        """
        items: list[int] = []
        ages: list[int] = []
        if user_id is not None:
            with self._lock:
                items, ages = self._shoppers.context(user_id, session_id, ts_ms)
        if session is None:
            return items, ages
        earlier = [(item, age) for item, age in zip(items, ages, strict=True) if age > 0]
        items = [*reversed(session), *(item for item, _ in earlier)]
        ages = [0] * len(session) + [age for _, age in earlier]
        return items[:HISTORY_ITEMS], ages[:HISTORY_ITEMS]

    def _update(self, examples: Sequence[Example]) -> None:
        for example in examples:
            self._shoppers.update(example.user_id, example.session_id, example.ts, self._rows[example.item_id])
