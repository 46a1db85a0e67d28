"""Which of several events of one item is the newest: by event time, not by order of arrival."""

from collections.abc import Mapping

from streams.decode import ItemRemoved
from streams.events import Item


class ItemTimes:
    """The time of the newest event of each item, removals included."""

    def __init__(self) -> None:
        self._newest_ms: dict[str, int] = {}

    def update(self, event: Item | ItemRemoved, *, latest_ms: int) -> bool:
        """Note an event of the catalogue. Returns False if a newer one of its item was noted before.

        Of two with the same time the later one in the log is the newer.

        Args:
            event: an item or its removal.
            latest_ms: the latest time that the reader accepts. A kept time beyond it dates from before the reader's
                clock was set back, and counts as `latest_ms`.
        """
        if event.ts < min(self._newest_ms.get(event.item_id, 0), latest_ms):
            return False
        self._newest_ms[event.item_id] = event.ts
        return True

    def state(self) -> dict[str, int]:
        """All of it, as JSON can hold it."""
        return dict(self._newest_ms)

    def restore(self, state: Mapping[str, int]) -> None:
        """Put back what `state` gave."""
        self._newest_ms = dict(state)
