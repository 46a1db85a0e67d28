"""The catalogue as it is this instant: which items there are, which may be offered, what the model has yet to see."""

import threading
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from peft_adapters.catalogue import item_text
from peft_adapters.counters import IntArray
from streams.decode import ItemRemoved
from streams.events import Item

FIRST_CAPACITY = 1_024


class LiveItems:
    """Items in order of arrival; one thread writes, any number read.

    An item has its row here, which it keeps, before it has its text vectors in a model. Whether it is blocked counts at
    once, whatever model answers.
    """

    def __init__(self) -> None:
        self.rows: dict[str, int] = {}
        self._blocked = np.zeros(FIRST_CAPACITY, dtype=np.bool_)
        self._changed: dict[str, str] = {}  # item -> its text, in order of arrival
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """How many items were ever seen."""
        return len(self.rows)

    def __contains__(self, item_id: object) -> bool:
        """Whether an item was ever seen."""
        return item_id in self.rows

    def take_in(self, event: Item | ItemRemoved) -> None:
        """Take in an event of the catalogue. A removed item is blocked: shoppers' histories still lead on from it."""
        if isinstance(event, ItemRemoved):
            if event.item_id in self.rows:
                self._blocked[self.rows[event.item_id]] = True
            return
        text = item_text(title=event.title, brand=event.brand, category=event.category, description=event.description)
        row = self.rows.get(event.item_id, len(self.rows))
        if row == len(self._blocked):
            self._blocked = np.pad(self._blocked, (0, len(self._blocked)))
        self._blocked[row] = event.status == "blocked"
        with self._lock:
            self._changed[event.item_id] = text
            self.rows[event.item_id] = row

    def may_be_offered(self, rows: IntArray) -> npt.NDArray[np.bool_]:
        """Which of some rows are neither blocked nor removed."""
        return ~self._blocked[rows]

    def take_changes(self, limit: int) -> list[tuple[str, str]]:
        """Ids and texts of up to `limit` items that came or changed since, in order of arrival."""
        with self._lock:
            taken = [(item_id, self._changed[item_id]) for item_id in list(self._changed)[:limit]]
            for item_id, _ in taken:
                del self._changed[item_id]
        return taken

    def give_back(self, taken: Sequence[tuple[str, str]]) -> None:
        """Have changes that were taken given again, before what has changed since; a newer text stays the newer one."""
        with self._lock:
            self._changed = dict(taken) | self._changed
