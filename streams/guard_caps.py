"""Users and items that the guard caps at present: bounded, and in event time only."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

MAX_KEPT = 1_000  # users and items; the one capped least recently is dropped first


@dataclass(slots=True)
class Cap:
    """The events of one user or item that a rule capped in an hour.

    Attributes:
        key: `user/<pseudonym>` or `item/<item id>`.
        rule: the rule that applied last.
        hour: hours since the epoch, event time.
        left_out: events and lists of the hour that do not count.
        weighed_down: events and lists of the hour that count less.
        is_logged: whether `take_new` returned it in this hour.
    """

    key: str
    rule: str
    hour: int
    left_out: int = 0
    weighed_down: int = 0
    is_logged: bool = False


class Caps:
    """The caps of the current hour and the one before, by key."""

    def __init__(self) -> None:
        self._caps: dict[str, Cap] = {}

    def note(self, key: str, rule: str, hour: int, *, left_out: bool) -> None:
        """Count an event or a list that a rule applied to."""
        cap = self._caps.pop(key, None)
        if cap is None or cap.hour != hour:
            cap = Cap(key, rule, hour)
        cap.rule = rule
        cap.left_out += left_out
        cap.weighed_down += not left_out
        self._caps[key] = cap
        if len(self._caps) > MAX_KEPT:
            del self._caps[next(iter(self._caps))]

    def current(self, hour: int) -> list[Cap]:
        """Return the caps of this hour and the one before, the largest first."""
        caps = [cap for cap in self._caps.values() if cap.hour >= hour - 1]
        return sorted(caps, key=lambda cap: (-cap.left_out, -cap.weighed_down, cap.key))

    def take_new(self) -> list[Cap]:
        """Return the caps that left something out for the first time in their hour since the last call."""
        new = [cap for cap in self._caps.values() if cap.left_out and not cap.is_logged]
        for cap in new:
            cap.is_logged = True
        return new

    def drop(self, key: str) -> None:
        """Drop a user or an item."""
        self._caps.pop(key, None)

    def state(self) -> list[dict[str, Any]]:
        """Return the caps in a form that JSON can hold, in order of last use."""
        return [asdict(cap) for cap in self._caps.values()]

    def restore(self, state: list[dict[str, Any]]) -> None:
        """Restore what `state` returned."""
        self._caps = {row["key"]: Cap(**row) for row in state}
