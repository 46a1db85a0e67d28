"""The catalogue as it is this instant: which items there are, which may be offered, what the model has yet to see."""

import threading
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from peft_adapters.ranking.counters import IntArray
from peft_adapters.ranking.modalities import CatalogueItem
from services.items import catalogue_item
from services.scorer.filters import FIRST_CAPACITY, Filters, ItemFacts
from services.settings.blocklist import Blocklist
from streams.decode import ItemRemoved
from streams.events import MAX_TS_MS, Item
from streams.item_times import ItemTimes

NOTHING_LISTED = Blocklist()


class LiveItems:
    """Items in order of arrival; one thread writes, any number read.

    An item has its row here, which it keeps, before it has its text vectors in a model. Whether it is blocked counts at
    once, whatever model answers. Of several events of an item the newest counts, by event time.

    Args:
        blocklist: What is blocked beside what the catalogue itself blocks.

    Attributes:
        rows: Row of each item.
        withdrawn: How often an item was blocked or removed: while it stays the same, what could be offered still can.
    """

    def __init__(self, blocklist: Blocklist = NOTHING_LISTED) -> None:
        self.rows: dict[str, int] = {}
        self.withdrawn = 0
        self._blocklist, self._facts, self._times = blocklist, ItemFacts(), ItemTimes()
        self._blocked = np.zeros(FIRST_CAPACITY, dtype=np.bool_)
        self._removed: set[str] = set()
        self._changed: dict[str, CatalogueItem] = {}  # by id, in order of arrival
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """How many items were ever seen."""
        return len(self.rows)

    @property
    def present(self) -> int:
        """How many items there are, those that were removed left out."""
        return len(self.rows) - len(self._removed)

    def __contains__(self, item_id: object) -> bool:
        """Whether an item was ever seen."""
        return item_id in self.rows

    def take_in(self, event: Item | ItemRemoved, *, latest_ms: int = MAX_TS_MS) -> None:
        """Take in an event of the catalogue. A removed item is blocked: shoppers' histories still lead on from it.

        Args:
            event: an item or its removal; one that is older than what was taken in before changes nothing.
            latest_ms: the latest time that the reader accepts, epoch milliseconds.
        """
        if not self._times.update(event, latest_ms=latest_ms):
            return
        if isinstance(event, ItemRemoved):
            if event.item_id in self.rows:
                self._blocked[self.rows[event.item_id]] = True
                self._removed.add(event.item_id)
                self.withdrawn += 1
            return
        item = catalogue_item(event)
        row = self.rows.get(event.item_id, len(self.rows))
        if row == len(self._blocked):
            self._blocked = np.pad(self._blocked, (0, len(self._blocked)))
        self._blocked[row] = event.status == "blocked" or self._blocklist.blocks(event)
        self.withdrawn += bool(self._blocked[row])
        self._facts.put(row, event)
        self._removed.discard(event.item_id)
        with self._lock:
            self._changed[event.item_id] = item
            self.rows[event.item_id] = row

    def may_be_offered(self, rows: IntArray) -> npt.NDArray[np.bool_]:
        """Which of some rows are neither blocked, nor on the blocklist, nor removed."""
        return ~self._blocked[rows]

    def fitting(self, rows: IntArray, filters: Filters) -> npt.NDArray[np.bool_]:
        """Which of some rows are what filters ask for."""
        return self._facts.fitting(rows, filters)

    def take_changes(self, limit: int) -> list[CatalogueItem]:
        """Up to `limit` items that came or changed since, in order of arrival."""
        with self._lock:
            return [self._changed.pop(item_id) for item_id in list(self._changed)[:limit]]

    def give_back(self, taken: Sequence[CatalogueItem]) -> None:
        """Have changes that were taken given again, before what has changed since; a newer one stays the newer one."""
        with self._lock:
            self._changed = {item[0]: item for item in taken} | self._changed
