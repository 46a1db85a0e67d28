"""What the guard remembers of users, of items and of the stream: small, bounded, and by event time alone."""

from __future__ import annotations

from dataclasses import astuple, dataclass, field
from typing import Any, Generic, TypeVar

HOUR_MS = 3_600_000
ITEMS_A_USER = 16  # of which repeats are noticed, the last ones touched
_STRIKES_HALF_LIFE_HOURS = 24


@dataclass(slots=True)
class UserAccount:
    """One user.

    Attributes:
        events: seen so far.
        hour: the latest seen, in hours since the epoch.
        hour_events: seen in it.
        strikes: events left out lately for what the user did.
        items: events with an item so far and in the hour, by item, the one touched last at the end.
    """

    events: int = 0
    hour: int = 0
    hour_events: int = 0
    strikes: float = 0.0
    items: dict[str, list[int]] = field(default_factory=dict)

    def see(self, item_id: str, hour: int) -> None:
        """Take in an event. An hour that is over does not begin again."""
        if hour > self.hour:
            self.strikes *= 0.5 ** ((hour - self.hour) / _STRIKES_HALF_LIFE_HOURS)
            self.hour, self.hour_events = hour, 0
            for counts in self.items.values():
                counts[1] = 0
        self.events += 1
        self.hour_events += 1
        with_item = self.items.pop(item_id, None) or [0, 0]
        self.items[item_id] = [with_item[0] + 1, with_item[1] + 1]
        if len(self.items) > ITEMS_A_USER:
            del self.items[next(iter(self.items))]

    def vouches_for(self, item_id: str, others: int) -> bool:
        """Whether each event with an item is matched by so many with others."""
        own = self.items[item_id][0] if item_id in self.items else 1
        return self.events - own >= others * own

    def row(self) -> list[Any]:
        """All of it, as JSON can hold it."""
        items = [[item_id, *counts] for item_id, counts in self.items.items()]
        return [self.events, self.hour, self.hour_events, self.strikes, items]

    @classmethod
    def of_row(cls, row: list[Any]) -> UserAccount:
        """What `row` gave, as an account again."""
        events, hour, hour_events, strikes, items = row
        return cls(events, hour, hour_events, strikes, {item_id: counts for item_id, *counts in items})


@dataclass(slots=True)
class ItemAccount:
    """One item, or the whole stream.

    Attributes:
        at_ms: event time up to which the counts have faded.
        vouched: events of users who vouch for it, fading.
        unvouched: events of others, let through, fading.
        excess: events of others left out, fading.
        hour: the latest seen, in hours since the epoch.
        hour_events: seen in it.
        hour_before: seen in the one before it.
    """

    at_ms: int = 0
    vouched: float = 0.0
    unvouched: float = 0.0
    excess: float = 0.0
    hour: int = 0
    hour_events: int = 0
    hour_before: int = 0

    @property
    def events(self) -> float:
        """Let through, fading."""
        return self.vouched + self.unvouched

    def advance(self, ts_ms: int, half_life_ms: float) -> None:
        """Let time pass; it never goes back."""
        if ts_ms <= self.at_ms:
            return
        if self.events or self.excess:
            kept = 0.5 ** ((ts_ms - self.at_ms) / half_life_ms)
            self.vouched, self.unvouched, self.excess = self.vouched * kept, self.unvouched * kept, self.excess * kept
        self.at_ms = ts_ms
        hour = ts_ms // HOUR_MS
        if hour > self.hour:
            self.hour_before = self.hour_events if hour == self.hour + 1 else 0
            self.hour, self.hour_events = hour, 0

    def row(self) -> list[Any]:
        """All of it, as JSON can hold it."""
        return list(astuple(self))

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

    def drop(self, key: str) -> None:
        """Forget an id."""
        self._accounts.pop(key, None)

    def state(self) -> dict[str, Any]:
        """All of it, as JSON can hold it, in order of last touch."""
        return {key: account.row() for key, account in self._accounts.items()}

    def restore(self, state: dict[str, Any]) -> None:
        """Put back what `state` gave."""
        self._accounts = {key: self._kind.of_row(row) for key, row in state.items()}
