"""What shoppers have bought, so that it need not be offered again."""

from collections import OrderedDict

MAX_BOUGHT_ITEMS = 500  # of one shopper, the newest


class Bought:
    """Items that each shopper bought, bounded: the shoppers who bought longest ago are forgotten first.

    Args:
        max_shoppers: How many are remembered.
    """

    def __init__(self, *, max_shoppers: int) -> None:
        self._max_shoppers = max_shoppers
        self._items: OrderedDict[str, dict[str, None]] = OrderedDict()

    def add(self, user_id: str, item_id: str) -> None:
        """Take in a purchase; the same one again changes nothing."""
        items = self._items.setdefault(user_id, {})
        self._items.move_to_end(user_id)
        items.pop(item_id, None)
        items[item_id] = None
        if len(items) > MAX_BOUGHT_ITEMS:
            del items[next(iter(items))]
        if len(self._items) > self._max_shoppers:
            self._items.popitem(last=False)

    def of(self, user_id: str) -> tuple[str, ...]:
        """Items of a shopper, the newest last."""
        return tuple(self._items.get(user_id, ()))

    def forget(self, user_id: str) -> None:
        """Drop a shopper."""
        self._items.pop(user_id, None)
