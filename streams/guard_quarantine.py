"""Users and items in quarantine, and those released from it."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Any

from streams.control import Quarantine, Quarantined
from streams.examples import Example

KINDS = ("user", "item")


class QuarantineList:
    """Users and items that do not count for now. Keys are `user/<pseudonym>` and `item/<item id>`.

    Args:
        max_entries: the largest number of entries; beyond it the oldest are dropped.

    Attributes:
        entries: the reason for each quarantine, by key.
        counts: the number of quarantines since the start, by kind.
    """

    def __init__(self, max_entries: int) -> None:
        self._max_entries = max_entries
        self.entries: dict[str, Quarantine] = {}
        self.counts: Counter[str] = Counter()
        self._trusted: dict[str, int] = {}  # released keys, and until when they are trusted (event time, ms)
        self._new: list[Quarantined] = []

    def add(self, key: str, example: Example, *, reason: str, count: float, limit: float) -> None:
        """Quarantine a user or an item.

        Args:
            key: the key of the user or item.
            example: the event that exceeded the limit.
            reason: the rule that it broke.
            count: the number of events that were counted.
            limit: the limit of that number.
        """
        # Derived from the event, so that a replay yields the same id; a producer's own id may name people.
        event_id = hashlib.blake2b(f"{key}/{example.event_id}".encode(), digest_size=16).hexdigest()
        why = Quarantine(event_id=event_id, ts=example.ts, reason=reason, count=round(count, 1), limit=limit)
        self.entries[key] = why
        self.counts[key.partition("/")[0]] += 1
        self._new.append(Quarantined(key, why))
        _keep_newest(self.entries, self._max_entries)

    def take_new(self) -> list[Quarantined]:
        """Return the quarantines since the last call."""
        new, self._new = self._new, []
        return new

    def release(self, key: str) -> bool:
        """End a quarantine. Returns False if there was none."""
        self._new = [new for new in self._new if new.key != key]  # published later, it would begin again
        return self.entries.pop(key, None) is not None

    def trust(self, key: str, until_ms: int) -> None:
        """Exempt a user or an item from the rules up to an event time, epoch milliseconds."""
        self._trusted[key] = until_ms
        _keep_newest(self._trusted, self._max_entries)

    def is_trusted(self, key: str, now_ms: int) -> bool:
        """Return whether a user or an item is exempt from the rules at an event time."""
        return bool(self._trusted) and self._trusted.get(key, 0) > now_ms

    def bound(self, latest_ms: int) -> None:
        """Shorten exemptions that last beyond an event time."""
        self._trusted = {key: min(until_ms, latest_ms) for key, until_ms in self._trusted.items()}

    def forget(self, key: str) -> None:
        """Drop everything about a user or an item."""
        self.entries.pop(key, None)
        self._trusted.pop(key, None)
        self._new = [new for new in self._new if new.key != key]

    def sizes(self) -> dict[str, int]:
        """Return the number of entries by kind."""
        return {kind: sum(key.startswith(f"{kind}/") for key in self.entries) for kind in KINDS}

    def state(self) -> dict[str, Any]:
        """Return the state in a form that JSON can hold."""
        return {
            "quarantined": {key: why.model_dump() for key, why in self.entries.items()},
            "trusted": dict(self._trusted),
            "new": [[new.key, new.why.model_dump()] for new in self._new],
            "quarantines": dict(self.counts),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        self.entries = {key: Quarantine.model_validate(why) for key, why in state["quarantined"].items()}
        self._trusted = dict(state["trusted"])
        self._new = [Quarantined(key, Quarantine.model_validate(why)) for key, why in state["new"]]
        self.counts = Counter(state["quarantines"])


def _keep_newest(entries: dict[str, Any], limit: int) -> None:
    while len(entries) > limit:
        del entries[next(iter(entries))]
