"""The newest event of each item, by event time rather than by order of arrival."""

from collections.abc import Mapping

from streams.decode import ItemRemoved
from streams.events import Item


class ItemTimes:
    """The time of the newest event of each item, including removals."""

    def __init__(self) -> None:
        self._newest_ms: dict[str, int] = {}

    def update(self, event: Item | ItemRemoved, *, latest_ms: int) -> bool:
        """Record an event of the catalogue. Returns False if a newer one of its item was recorded before.

        Of two events with the same time, the later one in the log is the newer.

        Args:
            event: an item or its removal.
            latest_ms: the latest time that the reader accepts. A recorded time beyond it dates from before the
                reader's clock was set back, and counts as `latest_ms`.
        """
        if event.ts < min(self._newest_ms.get(event.item_id, 0), latest_ms):
            return False
        self._newest_ms[event.item_id] = event.ts
        return True

    def state(self) -> dict[str, int]:
        """Return the times in a form that JSON can hold."""
        return dict(self._newest_ms)

    def restore(self, state: Mapping[str, int]) -> None:
        """Restore what `state` returned."""
        self._newest_ms = dict(state)
