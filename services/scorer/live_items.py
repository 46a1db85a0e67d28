"""The live catalogue: known items, their availability, and the changes that models lack."""

import threading
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from peft_adapters.ranking.arrays import IntArray
from peft_adapters.ranking.modalities import CatalogueItem
from services.items import catalogue_item
from services.scorer.filters import FIRST_CAPACITY, Filters, ItemFacts
from services.settings.blocklist import Blocklist
from streams.decode import ItemRemoved
from streams.events import MAX_TS_MS, Item
from streams.item_times import ItemTimes

NOTHING_LISTED = Blocklist()


class LiveItems:
    """Items in order of arrival; one thread writes, any thread reads.

    An item gets its row here, for good, before a model has its text vectors. Blocking an item takes effect at once,
    whichever model answers. Of several events of an item, the newest by event time counts.

    Args:
        blocklist: items to block in addition to those that the catalogue blocks.

    Attributes:
        rows: the row of each item.
        withdrawals: the number of times that an item was blocked or removed: while it is unchanged, available items
            stay available.
    """

    def __init__(self, blocklist: Blocklist = NOTHING_LISTED) -> None:
        self.rows: dict[str, int] = {}
        self.withdrawals = 0
        self._blocklist, self._facts, self._times = blocklist, ItemFacts(), ItemTimes()
        self._blocked = np.zeros(FIRST_CAPACITY, dtype=np.bool_)
        self._removed: set[str] = set()
        self._changed: dict[str, CatalogueItem] = {}  # by id, in order of arrival
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Return the number of items ever seen."""
        return len(self.rows)

    @property
    def present(self) -> int:
        """The number of items, without removed ones."""
        return len(self.rows) - len(self._removed)

    def __contains__(self, item_id: object) -> bool:
        """Return whether an item was ever seen."""
        return item_id in self.rows

    def take_in(self, event: Item | ItemRemoved, *, latest_ms: int = MAX_TS_MS) -> None:
        """Apply an event of the catalogue. A removed item is only blocked: shoppers' histories still refer to it.

        Args:
            event: an item or its removal; ignored if it is older than the newest event of the item.
            latest_ms: the latest time that the reader accepts, epoch milliseconds.
        """
        if not self._times.update(event, latest_ms=latest_ms):
            return
        if isinstance(event, ItemRemoved):
            if event.item_id in self.rows:
                self._blocked[self.rows[event.item_id]] = True
                self._removed.add(event.item_id)
                self.withdrawals += 1
            return
        item = catalogue_item(event)
        row = self.rows.get(event.item_id, len(self.rows))
        if row == len(self._blocked):
            self._blocked = np.pad(self._blocked, (0, len(self._blocked)))
        self._blocked[row] = event.status == "blocked" or self._blocklist.blocks(event)
        self.withdrawals += bool(self._blocked[row])
        self._facts.set(row, event)
        self._removed.discard(event.item_id)
        with self._lock:
            self._changed[event.item_id] = item
            self.rows[event.item_id] = row

    def are_available(self, rows: IntArray) -> npt.NDArray[np.bool_]:
        """Return for each row whether its item is neither blocked nor removed."""
        return ~self._blocked[rows]

    def matching(self, rows: IntArray, filters: Filters) -> npt.NDArray[np.bool_]:
        """Return for each row whether its item meets the filters."""
        return self._facts.matching(rows, filters)

    def take_changes(self, limit: int) -> list[CatalogueItem]:
        """Remove and return up to `limit` items that arrived or changed, in order of arrival."""
        with self._lock:
            return [self._changed.pop(item_id) for item_id in list(self._changed)[:limit]]

    def return_changes(self, taken: Sequence[CatalogueItem]) -> None:
        """Return changes that could not be processed; they come first again, but a newer change of an item stays."""
        with self._lock:
            self._changed = {item[0]: item for item in taken} | self._changed
