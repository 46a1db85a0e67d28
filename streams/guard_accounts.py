"""The guard's accounts of users, items and the stream: small, bounded, and in event time only."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

HOUR_MS = 3_600_000
ITEMS_PER_USER = 8  # the most recent ones, of which repeats are counted
_STRIKES_HALF_LIFE_HOURS = 24


@dataclass(slots=True)
class PairAccount:
    """The account of one user with one item.

    Attributes:
        events: all events so far.
        hour_events: events in the user's latest hour.
        waiting: events that counted without being vouched for.
        refused: events that did not count and are not vouched for.
        purchases: events that are purchases.
        hour_purchases: purchases in the user's latest hour.
    """

    events: int = 0
    hour_events: int = 0
    waiting: int = 0
    refused: int = 0
    purchases: int = 0
    hour_purchases: int = 0

    @property
    def looks(self) -> int:
        """The number of events, where a click and the purchase that follows it count as one."""
        return max(self.purchases, self.events - self.purchases)

    @property
    def hour_looks(self) -> int:
        """The number of such events in the user's latest hour."""
        return max(self.hour_purchases, self.hour_events - self.hour_purchases)

    def to_row(self) -> list[int]:
        """Return the account in a form that JSON can hold."""
        return [self.events, self.hour_events, self.waiting, self.refused, self.purchases, self.hour_purchases]


@dataclass(slots=True)
class UserAccount:
    """The account of one user.

    Attributes:
        events: all events so far.
        hour: the latest hour with an event, in hours since the epoch.
        hour_events: events in that hour.
        strikes: events that were left out for the user's behaviour, fading.
        doubted: events with items that the user does not vouch for.
        items: the account with each item, the most recent one last.
    """

    events: int = 0
    hour: int = 0
    hour_events: int = 0
    strikes: float = 0.0
    doubted: int = 0
    items: dict[str, PairAccount] = field(default_factory=dict)

    def record(self, item_id: str, hour: int, *, is_purchase: bool) -> PairAccount:
        """Count an event and return the account with its item; an hour that is over does not begin again.

        Args:
            item_id: the item of the event.
            hour: the hour of the event, in hours since the epoch.
            is_purchase: whether the event is a purchase.
        """
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
        if len(self.items) > ITEMS_PER_USER:
            oldest = self.items.pop(next(iter(self.items)))
            self.doubted -= oldest.waiting + oldest.refused
        return pair

    def bound(self, hour: int) -> None:
        """Move an hour that the reader's clock has not reached back to it."""
        self.hour = min(self.hour, hour)

    def vouches_for(self, item_id: str, others: float) -> bool:
        """Return whether each event with an item is matched by `others` events with other items."""
        pair = self.items.get(item_id)
        if pair is None:
            return self.events - 1 >= others
        return self.events - pair.events >= others * pair.looks

    def doubt(self, pair: PairAccount, *, counted: bool) -> None:
        """Count an event with an item that the user does not vouch for."""
        self.doubted += 1
        pair.waiting += counted
        pair.refused += not counted

    def newly_vouched(self, others: Callable[[str], float]) -> list[tuple[str, int, int]]:
        """Return the items that the user vouches for by now, with their events that counted and that did not.

        Args:
            others: returns the number of events with other items that vouch for one event with an item.
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

    def to_row(self) -> list[Any]:
        """Return the account in a form that JSON can hold."""
        items = [[item_id, *pair.to_row()] for item_id, pair in self.items.items()]
        return [self.events, self.hour, self.hour_events, self.strikes, self.doubted, items]

    @classmethod
    def from_row(cls, row: list[Any]) -> UserAccount:
        """Return the account that `to_row` stored."""
        events, hour, hour_events, strikes, doubted, items = row
        return cls(
            events, hour, hour_events, strikes, doubted, {item_id: PairAccount(*pair) for item_id, *pair in items}
        )


@dataclass(slots=True)
class ItemAccount:
    """The account of one item, or of the whole stream.

    Attributes:
        at_ms: the event time up to which the counts have faded.
        vouched: events of users who vouch for it, fading.
        unvouched: events of other users that counted, fading.
        excess: events of other users that did not count, fading.
        hour: the latest hour with an event, in hours since the epoch.
        hour_events: events in that hour; of an item, only those that counted from users who do not vouch for it.
        hour_before: the same count for the hour before.
        spread: shoppers who vouch for it, fading: a shopper's n-th event in an hour adds 1/n.
        hour_spread: shoppers who vouch for it in the latest hour.
        spread_before: the same count for the hour before.
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
        """The number of events that counted, fading."""
        return self.vouched + self.unvouched

    @property
    def recent_spread(self) -> float:
        """The shoppers who vouch for it in this hour and the one before."""
        return self.hour_spread + self.spread_before

    def advance(self, ts_ms: int, half_life_ms: float) -> None:
        """Advance to an event time and fade the counts; only `bound` moves the time back.

        Args:
            ts_ms: the event time, epoch milliseconds.
            half_life_ms: the time in which the counts halve.
        """
        if ts_ms <= self.at_ms:
            return
        if self.events or self.excess:
            factor = 0.5 ** ((ts_ms - self.at_ms) / half_life_ms)
            self.vouched, self.unvouched = self.vouched * factor, self.unvouched * factor
            self.excess *= factor
            self.spread *= factor
        self.at_ms = ts_ms
        hour = ts_ms // HOUR_MS
        if hour > self.hour:
            follows = hour == self.hour + 1
            self.hour_before, self.spread_before = (self.hour_events, self.hour_spread) if follows else (0, 0.0)
            self.hour, self.hour_events, self.hour_spread = hour, 0, 0.0

    def add_shoppers(self, shoppers: float) -> None:
        """Add to the shoppers who vouch for it."""
        self.spread += shoppers
        self.hour_spread += shoppers

    def bound(self, now_ms: int) -> None:
        """Move a time that the reader's clock has not reached back to it."""
        self.at_ms = min(self.at_ms, now_ms)
        self.hour = min(self.hour, now_ms // HOUR_MS)

    def add_vouched(self, events: int, *, of_unvouched: int) -> None:
        """Count earlier events as vouched for.

        Args:
            events: the number of events.
            of_unvouched: the number of these that were counted as unvouched before.
        """
        self.vouched += events
        self.unvouched = max(0.0, self.unvouched - of_unvouched)

    def to_row(self) -> list[Any]:
        """Return the account in a form that JSON can hold."""
        return [
            self.at_ms, self.vouched, self.unvouched, self.excess, self.hour, self.hour_events, self.hour_before,
            self.spread, self.hour_spread, self.spread_before,
        ]  # fmt: skip

    @classmethod
    def from_row(cls, row: list[Any]) -> ItemAccount:
        """Return the account that `to_row` stored."""
        return cls(*row)


A = TypeVar("A", UserAccount, ItemAccount)


class Accounts(Generic[A]):
    """Accounts by id up to a limit; the least recently used is dropped first.

    Args:
        kind: the class of the accounts.
        limit: the largest number of accounts.
    """

    def __init__(self, kind: type[A], limit: int) -> None:
        self._kind: type[A] = kind
        self._limit = limit
        self._accounts: dict[str, A] = {}

    def __len__(self) -> int:
        """Return the number of accounts."""
        return len(self._accounts)

    def touch(self, key: str) -> A:
        """Return the account of an id as the most recent one; create it if there is none."""
        account = self._accounts.pop(key, None) or self._kind()
        self._accounts[key] = account
        if len(self._accounts) > self._limit:
            del self._accounts[next(iter(self._accounts))]
        return account

    def get(self, key: str) -> A:
        """Return the account of an id; without one, a new account that is not kept."""
        return self._accounts.get(key) or self._kind()

    def all(self) -> Iterable[A]:
        """Return all accounts."""
        return self._accounts.values()

    def drop(self, key: str) -> None:
        """Drop the account of an id."""
        self._accounts.pop(key, None)

    def state(self) -> dict[str, Any]:
        """Return the accounts in a form that JSON can hold, the most recent one last."""
        return {key: account.to_row() for key, account in self._accounts.items()}

    def restore(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        self._accounts = {key: self._kind.from_row(row) for key, row in state.items()}
