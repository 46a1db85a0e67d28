"""Purchases by shopper, which requests can exclude."""

from collections import OrderedDict

MAX_BOUGHT_ITEMS = 500  # of one shopper, the newest


class Bought:
    """Items that each shopper bought. The shoppers with the oldest last purchase are forgotten first.

    Args:
        max_shoppers: the number of shoppers remembered.
    """

    def __init__(self, *, max_shoppers: int) -> None:
        self._max_shoppers = max_shoppers
        self._items: OrderedDict[str, dict[str, None]] = OrderedDict()

    def add(self, user_id: str, item_id: str) -> None:
        """Add a purchase; a repeat only makes it the newest."""
        items = self._items.setdefault(user_id, {})
        self._items.move_to_end(user_id)
        items.pop(item_id, None)
        items[item_id] = None
        if len(items) > MAX_BOUGHT_ITEMS:
            del items[next(iter(items))]
        if len(self._items) > self._max_shoppers:
            self._items.popitem(last=False)

    def of(self, user_id: str) -> tuple[str, ...]:
        """Return the items of a shopper, newest last."""
        return tuple(self._items.get(user_id, ()))

    def forget(self, user_id: str) -> None:
        """Forget a shopper."""
        self._items.pop(user_id, None)
