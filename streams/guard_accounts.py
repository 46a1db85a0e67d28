"""What the guard remembers of users, of items and of the stream: small, bounded, and by event time alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

HOUR_MS = 3_600_000
ITEMS_A_USER = 8  # of which repeats are noticed, the last ones touched
_STRIKES_HALF_LIFE_HOURS = 24


@dataclass(slots=True)
class PairAccount:
    """One user with one item.

    Attributes:
        events: so far.
        hour_events: in the user's latest hour.
        waiting: events that counted, and that the user has not vouched for.
        refused: events that did not, likewise.
        purchases: events that are purchases.
        hour_purchases: likewise, in the user's latest hour.
    """

    events: int = 0
    hour_events: int = 0
    waiting: int = 0
    refused: int = 0
    purchases: int = 0
    hour_purchases: int = 0

    @property
    def looks(self) -> int:
        """Events, where a click and the purchase that follows it are one."""
        return max(self.purchases, self.events - self.purchases)

    @property
    def hour_looks(self) -> int:
        """Likewise, in the user's latest hour."""
        return max(self.hour_purchases, self.hour_events - self.hour_purchases)

    def row(self) -> list[int]:
        """All of it, as JSON can hold it."""
        return [self.events, self.hour_events, self.waiting, self.refused, self.purchases, self.hour_purchases]


@dataclass(slots=True)
class UserAccount:
    """One user.

    Attributes:
        events: seen so far.
        hour: the latest seen, in hours since the epoch.
        hour_events: seen in it.
        strikes: events left out lately for what the user did.
        doubted: events with items that the user does not vouch for.
        items: what there is with each item, the one touched last at the end.
    """

    events: int = 0
    hour: int = 0
    hour_events: int = 0
    strikes: float = 0.0
    doubted: int = 0
    items: dict[str, PairAccount] = field(default_factory=dict)

    def see(self, item_id: str, hour: int, *, is_purchase: bool) -> PairAccount:
        """Take in an event. An hour that is over does not begin again."""
        if hour > self.hour:
            self.strikes *= 0.5 ** ((hour - self.hour) / _STRIKES_HALF_LIFE_HOURS)
            self.hour, self.hour_events = hour, 0
            for pair in self.items.values():
                pair.hour_events = pair.hour_purchases = 0
        self.events += 1
        self.hour_events += 1
        pair = self.items.pop(item_id) if item_id in self.items else PairAccount()
        pair.events += 1
        pair.hour_events += 1
        pair.purchases += is_purchase
        pair.hour_purchases += is_purchase
        self.items[item_id] = pair
        if len(self.items) > ITEMS_A_USER:
            oldest = self.items.pop(next(iter(self.items)))
            self.doubted -= oldest.waiting + oldest.refused
        return pair

    def bound(self, hour: int) -> None:
        """Take back an hour that the reader's clock has not reached."""
        self.hour = min(self.hour, hour)

    def vouches_for(self, item_id: str, others: float) -> bool:
        """Return whether each look at an item is matched by so many events with others."""
        pair = self.items.get(item_id)
        if pair is None:
            return self.events - 1 >= others
        return self.events - pair.events >= others * pair.looks

    def doubt(self, pair: PairAccount, *, counted: bool) -> None:
        """Note an event with an item that the user does not vouch for."""
        self.doubted += 1
        pair.waiting += counted
        pair.refused += not counted

    def newly_vouched(self, others: Callable[[str], float]) -> list[tuple[str, int, int]]:
        """Return items that the user vouches for by now: events that counted, and events that did not.

        Args:
            others: Events with other items that one event with this item needs.
        """
        if not self.doubted:
            return []
        vouched = []
        for item_id, pair in self.items.items():
            if (pair.waiting or pair.refused) and self.vouches_for(item_id, others(item_id)):
                vouched.append((item_id, pair.waiting, pair.refused))
                self.doubted -= pair.waiting + pair.refused
                pair.waiting = pair.refused = 0
        return vouched

    def row(self) -> list[Any]:
        """All of it, as JSON can hold it."""
        items = [[item_id, *pair.row()] for item_id, pair in self.items.items()]
        return [self.events, self.hour, self.hour_events, self.strikes, self.doubted, items]

    @classmethod
    def of_row(cls, row: list[Any]) -> UserAccount:
        """What `row` gave, as an account again."""
        events, hour, hour_events, strikes, doubted, items = row
        return cls(
            events, hour, hour_events, strikes, doubted, {item_id: PairAccount(*pair) for item_id, *pair in items}
        )


@dataclass(slots=True)
class ItemAccount:
    """One item, or the whole stream.

    Attributes:
        at_ms: event time up to which the counts have faded.
        vouched: events of users who vouch for it, fading.
        unvouched: events of others that counted, fading.
        excess: events of others that did not count, fading.
        hour: the latest seen, in hours since the epoch.
        hour_events: in it, of the stream all of them, of an item those that counted of users who do not vouch for it.
        hour_before: likewise, in the one before it.
        spread: shoppers who vouch for it, fading: a shopper's n-th event in an hour adds 1/n.
        hour_spread: shoppers who vouch for it, in the latest hour.
        spread_before: likewise, in the hour before it.
    """

    at_ms: int = 0
    vouched: float = 0.0
    unvouched: float = 0.0
    excess: float = 0.0
    hour: int = 0
    hour_events: int = 0
    hour_before: int = 0
    spread: float = 0.0
    hour_spread: float = 0.0
    spread_before: float = 0.0

    @property
    def events(self) -> float:
        """Vouched for or not, fading."""
        return self.vouched + self.unvouched

    @property
    def recent_spread(self) -> float:
        """Shoppers who vouch for it, in this hour and the one before."""
        return self.hour_spread + self.spread_before

    def advance(self, ts_ms: int, half_life_ms: float) -> None:
        """Let time pass; only `bound` takes it back."""
        if ts_ms <= self.at_ms:
            return
        if self.events or self.excess:
            kept = 0.5 ** ((ts_ms - self.at_ms) / half_life_ms)
            self.vouched, self.unvouched, self.excess = self.vouched * kept, self.unvouched * kept, self.excess * kept
            self.spread *= kept
        self.at_ms = ts_ms
        hour = ts_ms // HOUR_MS
        if hour > self.hour:
            follows = hour == self.hour + 1
            self.hour_before, self.spread_before = (self.hour_events, self.hour_spread) if follows else (0, 0.0)
            self.hour, self.hour_events, self.hour_spread = hour, 0, 0.0

    def reach(self, shoppers: float) -> None:
        """Add to the shoppers who vouch for it."""
        self.spread += shoppers
        self.hour_spread += shoppers

    def bound(self, now_ms: int) -> None:
        """Take back a time that the reader's clock has not reached."""
        self.at_ms = min(self.at_ms, now_ms)
        self.hour = min(self.hour, now_ms // HOUR_MS)

    def believe(self, events: int, *, of_unvouched: int) -> None:
        """Take events for vouched after all, some of which were taken for unvouched."""
        self.vouched += events
        self.unvouched = max(0.0, self.unvouched - of_unvouched)

    def row(self) -> list[Any]:
        """All of it, as JSON can hold it."""
        return [
            self.at_ms, self.vouched, self.unvouched, self.excess, self.hour, self.hour_events, self.hour_before,
            self.spread, self.hour_spread, self.spread_before,
        ]  # fmt: skip

    @classmethod
    def of_row(cls, row: list[Any]) -> ItemAccount:
        """What `row` gave, as an account again."""
        return cls(*row)


A = TypeVar("A", UserAccount, ItemAccount)


class Accounts(Generic[A]):
    """Accounts by id, up to a limit; the one touched least lately goes first.

    Args:
        kind: what they are of.
        limit: how many.
    """

    def __init__(self, kind: type[A], limit: int) -> None:
        self._kind: type[A] = kind
        self._limit = limit
        self._accounts: dict[str, A] = {}

    def __len__(self) -> int:
        """How many there are."""
        return len(self._accounts)

    def touch(self, key: str) -> A:
        """The account of an id, new if there is none."""
        account = self._accounts.pop(key, None) or self._kind()
        self._accounts[key] = account
        if len(self._accounts) > self._limit:
            del self._accounts[next(iter(self._accounts))]
        return account

    def get(self, key: str) -> A:
        """The account of an id, as if new if there is none; it is not kept for that."""
        return self._accounts.get(key) or self._kind()

    def all(self) -> Iterable[A]:
        """All accounts."""
        return self._accounts.values()

    def drop(self, key: str) -> None:
        """Forget an id."""
        self._accounts.pop(key, None)

    def state(self) -> dict[str, Any]:
        """All of it, as JSON can hold it, in order of last touch."""
        return {key: account.row() for key, account in self._accounts.items()}

    def restore(self, state: dict[str, Any]) -> None:
        """Put back what `state` gave."""
        self._accounts = {key: self._kind.of_row(row) for key, row in state.items()}
