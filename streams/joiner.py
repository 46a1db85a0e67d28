"""From events to examples: duplicates are dropped, events of unknown items wait for their item.

Whatever comes in is accounted for: seen = emitted + duplicates + expired + pending, at any time.
"""

import base64
import heapq
import struct
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from hashlib import blake2b
from typing import Any, Literal

from streams.events import Click, Purchase, UserEvent

STATE_VERSION = 1


@dataclass(frozen=True, slots=True)
class Example:
    """One positive to learn from: a user, an item, and what the user did."""

    event_id: str
    user_id: str
    session_id: str | None
    item_id: str
    ts: int  # epoch ms, event time
    kind: Literal["click", "purchase"]
    scenario: str
    position: int | None
    publish_ts_ms: int  # epoch ms, when the producer published it


@dataclass(frozen=True, slots=True)
class JoinCounts:
    """Where the events went: `seen == emitted + duplicates + expired + pending`."""

    seen: int = 0
    emitted: int = 0
    duplicates: int = 0
    expired: int = 0
    pending: int = 0


class Joiner:
    """Turns clicks and purchases into examples.

    Args:
        is_known: Whether an item is in the catalogue.
        hold_seconds: How long, in event time, an event waits for its item.
        max_held: How many wait at most; beyond it the one that waits longest expires.
        dedupe_horizon: How many event ids are remembered; a repeat from further back is taken for new.

    Raises:
        ValueError: If a limit is out of its range.
    """

    def __init__(
        self,
        *,
        is_known: Callable[[str], bool],
        hold_seconds: float = 3600.0,
        max_held: int = 100_000,
        dedupe_horizon: int = 200_000,
    ) -> None:
        for name, value in (("hold_seconds", hold_seconds), ("max_held", max_held), ("dedupe_horizon", dedupe_horizon)):
            if not value > 0:
                raise ValueError(f"`{name}` must be above 0, got {value}; leave it out for the default")
        self._is_known = is_known
        self._hold_ms = int(hold_seconds * 1000)
        self._max_held = max_held
        self._horizon = dedupe_horizon
        self._order: deque[int] = deque()  # digests, oldest first
        self._digests: set[int] = set()
        self._reset_held()
        self._seen = self._emitted = self._duplicates = self._expired = 0

    @property
    def counts(self) -> JoinCounts:
        """Where the events went so far."""
        return JoinCounts(self._seen, self._emitted, self._duplicates, self._expired, len(self._held))

    def offer(self, event: UserEvent, *, publish_ts_ms: int) -> list[Example]:
        """Takes one event.

        Args:
            event: A click or a purchase.
            publish_ts_ms: When it was published, epoch milliseconds.

        Returns:
            Its example; nothing if it is a duplicate, or waits for its item.
        """
        self._seen += 1
        if not self._remember(event.event_id):
            self._duplicates += 1
            return []
        example = example_of(event, publish_ts_ms=publish_ts_ms)
        if self._is_known(event.item_id):
            self._emitted += 1
            return [example]
        self._hold(example)
        if len(self._held) > self._max_held:
            self._drop(next(iter(self._held)))
            self._expired += 1
        return []

    def item_arrived(self, item_id: str) -> list[Example]:
        """Releases what waited for an item, in the order in which it was offered."""
        released = [self._held.pop(ticket) for ticket in self._by_item.pop(item_id, ())]
        self._emitted += len(released)
        return released

    def advance(self, watermark_ms: int) -> int:
        """Gives up events whose item has not come within the hold.

        Args:
            watermark_ms: Event time up to which the stream is complete, epoch milliseconds.

        Returns:
            How many were given up now.
        """
        given_up = 0
        while self._by_ts and self._by_ts[0][0] + self._hold_ms < watermark_ms:
            _, ticket = heapq.heappop(self._by_ts)
            if ticket in self._held:  # else it was released, or dropped for want of room
                self._drop(ticket)
                given_up += 1
        self._expired += given_up
        return given_up

    def state(self) -> dict[str, Any]:
        """All of it, as JSON can hold it: `restore` of it goes on exactly from here."""
        packed = struct.pack(f"<{len(self._order)}Q", *self._order)
        return {
            "version": STATE_VERSION,
            "counts": {name: count for name, count in asdict(self.counts).items() if name != "pending"},
            "digests": base64.b64encode(packed).decode("ascii"),
            "held": [asdict(example) for example in self._held.values()],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from a `state`.

        Raises:
            ValueError: If the state was written by another version.
        """
        if state.get("version") != STATE_VERSION:
            raise ValueError(
                f"joiner state must be of version {STATE_VERSION}, got {state.get('version')}; "
                "start from a checkpoint that this release wrote"
            )
        packed = base64.b64decode(state["digests"])
        self._order = deque(struct.unpack(f"<{len(packed) // 8}Q", packed))
        self._digests = set(self._order)
        self._trim()
        counts = state["counts"]
        self._seen, self._emitted = counts["seen"], counts["emitted"]
        self._duplicates, self._expired = counts["duplicates"], counts["expired"]
        self._reset_held()
        for held in state["held"]:
            self._hold(Example(**held))

    def _remember(self, event_id: str) -> bool:
        """Whether the id is new; it is remembered then."""
        digest = int.from_bytes(blake2b(event_id.encode(), digest_size=8).digest(), "little")
        if digest in self._digests:
            return False
        self._digests.add(digest)
        self._order.append(digest)
        self._trim()
        return True

    def _trim(self) -> None:
        while len(self._order) > self._horizon:
            self._digests.discard(self._order.popleft())

    def _reset_held(self) -> None:
        self._next_ticket = 0
        self._held: OrderedDict[int, Example] = OrderedDict()  # by ticket, in the order offered
        self._by_item: dict[str, dict[int, None]] = {}  # item_id -> tickets, in the order offered
        self._by_ts: list[tuple[int, int]] = []  # heap of (event time in ms, ticket), of the held and of some released

    def _hold(self, example: Example) -> None:
        ticket = self._next_ticket
        self._next_ticket += 1
        self._held[ticket] = example
        self._by_item.setdefault(example.item_id, {})[ticket] = None
        heapq.heappush(self._by_ts, (example.ts, ticket))

    def _drop(self, ticket: int) -> None:
        item_id = self._held.pop(ticket).item_id
        tickets = self._by_item[item_id]
        del tickets[ticket]
        if not tickets:
            del self._by_item[item_id]


def example_of(event: Click | Purchase, *, publish_ts_ms: int) -> Example:
    """The positive that a click or purchase is."""
    return Example(
        event_id=event.event_id,
        user_id=event.user_id,
        session_id=event.session_id,
        item_id=event.item_id,
        ts=event.ts,
        kind="click" if isinstance(event, Click) else "purchase",
        scenario=event.scenario,
        position=event.position if isinstance(event, Click) else None,
        publish_ts_ms=publish_ts_ms,
    )
