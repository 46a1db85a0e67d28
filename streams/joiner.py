"""Join of events to training examples: duplicates dropped, clicks joined to impressions, windows in event time.

- A click or purchase is a positive (`Example`) at once, unless its item is not in the catalogue yet: then it waits for
  the item.
- An impression waits until the watermark has passed its click window; the items clicked or bought by then are positives
  of its list, the others are negatives (`ShownList`).
- Until the purchase window has passed, a click or purchase of an item that was learnt as a negative corrects it, and so
  does a purchase of one that was learnt as clicked: a list of one item with `is_correction`. The learner decides how to
  weigh it.

A purchase that names its order repeats another one with the same order and item, on whichever topic; any other event
repeats one with the same topic, kind and event id.

A click finds its impression by request; without a request, by user, item and time: the newest impression of the item to
the user before it. Every event is accounted for, by topic: in = learnt + duplicate + expired + forgotten + pending.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from typing import Any, Literal

from streams.dedupe import Deduplicator
from streams.early_clicks import EarlyClicks
from streams.errors import StateVersionError
from streams.events import Click, Impression, Purchase, UserEvent, normalize_query
from streams.examples import Example, ShownList
from streams.join_store import JoinStore
from streams.pending_impressions import PendingImpression, request_digest

STATE_VERSION = 4
SKEW_MS = 5_000  # storefront clocks differ by that much: a click may seem to precede the impression it answers
_EXPIRE_CHUNK = 1_024

Outcome = Literal["learnt", "duplicate", "expired", "forgotten"]


class Joiner:
    """A join of impressions, clicks and purchases to examples and lists.

    Args:
        is_known: returns whether an item is in the catalogue.
        store: keeps the waiting events; by default they are kept in memory only.
        pseudonymise: replaces ids of users and sessions; nothing behind the joiner sees the originals.
        click_window_seconds: event time after which an item that was shown and not clicked is a negative.
        purchase_window_seconds: event time during which a click or purchase may still correct a negative.
        hold_seconds: event time for which an event waits for its item.
        max_held: the largest number of events that wait for an item; beyond it the oldest expires.
        max_impressions: the largest number of impressions that are kept; beyond it the oldest are dropped.
        dedupe_horizon: the number of event ids that are remembered; a repeat from further back counts as new.

    Raises:
        ValueError: if a limit is out of its range.
    """

    def __init__(
        self,
        *,
        is_known: Callable[[str], bool],
        store: JoinStore | None = None,
        pseudonymise: Callable[[str], str] = str,
        click_window_seconds: float = 600.0,
        purchase_window_seconds: float = 86_400.0,
        hold_seconds: float = 3_600.0,
        max_held: int = 100_000,
        max_impressions: int = 2_000_000,
        dedupe_horizon: int = 400_000,
    ) -> None:
        limits = {
            "click_window_seconds": click_window_seconds,
            "purchase_window_seconds": purchase_window_seconds,
            "hold_seconds": hold_seconds,
            "max_held": max_held,
            "max_impressions": max_impressions,
            "dedupe_horizon": dedupe_horizon,
        }
        for name, value in limits.items():
            if not value > 0:
                raise ValueError(f"`{name}` must be above 0, got {value}; leave it out for the default")
        if purchase_window_seconds < click_window_seconds:
            raise ValueError(
                f"`purchase_window_seconds` must be at least `click_window_seconds`, got {purchase_window_seconds} and "
                f"{click_window_seconds}; a negative can only be corrected after it was learnt"
            )
        self.store = JoinStore(None) if store is None else store
        self._is_known, self._pseudonymise = is_known, pseudonymise
        self._click_window_ms = int(click_window_seconds * 1000)
        self._purchase_window_ms = int(purchase_window_seconds * 1000)
        self._hold_ms = int(hold_seconds * 1000)
        self._max_held, self._max_impressions = max_held, max_impressions
        self._event_ids = Deduplicator(self.store, dedupe_horizon)
        self._early = EarlyClicks()
        self._corrections: list[ShownList] = []  # returned with the next lists
        self._due_seq = self.store.next_numbers[0]  # the first impression whose negatives are not learnt yet
        self._counts: Counter[tuple[str, str]] = Counter()  # (topic, outcome)
        self._waiting_lists: Counter[str] = Counter()  # by topic

    # ---- input

    def offer(self, event: UserEvent | Impression, *, publish_ts_ms: int, topic: str = "") -> list[Example]:
        """Process one event.

        Args:
            event: an impression, a click or a purchase.
            publish_ts_ms: when it was published, epoch milliseconds.
            topic: the topic that it came from, for the counts.

        Returns:
            The positive example of the event; nothing for a duplicate, an impression, or an event that waits for its
            item.
        """
        self._counts[topic, "in"] += 1
        if not self._event_ids.is_new(event.order_line() or f"{topic}/{event.KIND}/{event.event_id}"):
            self._counts[topic, "duplicate"] += 1
            return []
        user_id = self._pseudonymise(event.user_id)
        session_id = None if event.session_id is None else self._pseudonymise(event.session_id)
        if not isinstance(event, (Click, Purchase)):  # ruling out a model is slow: clicks first
            self._add_impression(event, user_id, session_id, publish_ts_ms, topic)
            return []
        position, query, shown = self._join(event, user_id)
        kind: Literal["click", "purchase"] = "click" if isinstance(event, Click) else "purchase"
        example = Example(  # positional: this runs for every event, and keywords take a third longer
            event.event_id, user_id, session_id, event.item_id, event.ts, kind, event.scenario, position, publish_ts_ms,
            topic, 1.0, query, shown,
        )  # fmt: skip
        if self._is_known(event.item_id):
            self._counts[topic, "learnt"] += 1
            return [example]
        self._hold(example)
        return []

    def item_arrived(self, item_id: str) -> list[Example]:
        """Release the examples that waited for an item, in the order in which they were offered."""
        released = [Example(**json.loads(body)) for body in self.store.release(item_id)]
        for example in released:
            self._counts[example.topic, "learnt"] += 1
        return released

    def _hold(self, example: Example) -> None:
        self.store.hold(
            item_id=example.item_id,
            user_id=example.user_id,
            ts=example.ts,
            topic=example.topic,
            body=json.dumps(asdict(example)),
        )
        if self.store.held_count > self._max_held:
            self._count(self.store.drop_oldest_held(), "expired")

    # ---- joining

    def _add_impression(
        self, impression: Impression, user_id: str, session_id: str | None, publish_ts_ms: int, topic: str
    ) -> None:
        pending = PendingImpression(
            ts=min(impression.ts, publish_ts_ms),
            topic=topic,
            request=request_digest(impression.request_id),
            user_id=user_id,
            session_id=session_id,
            item_ids=tuple([item["item_id"] for item in impression.items]),
            positions=tuple([item["position"] for item in impression.items]),
            query=normalize_query(impression.query),
        )
        self.store.add(pending)
        self._waiting_lists[topic] += 1
        if self._early:
            for index, item_id in enumerate(pending.item_ids):
                bought = self._early.take(pending.request, item_id)
                if bought is not None:
                    self.store.mark(pending, index, bought=bought)

    def _join(self, event: Click | Purchase, user_id: str) -> tuple[int | None, str | None, bool]:
        """Mark an item of an impression as clicked or bought.

        Returns:
            The position of the item and the search query, where known, and whether an impression was found.
        """
        event_position = event.position if isinstance(event, Click) else None
        event_query = None if event.query is None else normalize_query(event.query)
        if not len(self.store):
            return event_position, event_query, False
        impression = self._find_impression(event, user_id)
        if impression is None:
            if event.request_id is not None:
                request, bought = request_digest(event.request_id), isinstance(event, Purchase)
                self._early.add(request, event.item_id, ts=event.ts, bought=bought)
            return event_position, event_query, False
        index = impression.item_ids.index(event.item_id)
        bought = isinstance(event, Purchase) and not impression.bought()[index]
        clicked = not impression.marks >> index & 1
        if clicked or bought:
            self.store.mark(impression, index, bought=bought)
            if impression.seq < self._due_seq and self._is_known(event.item_id):
                self._corrections.append(_correction(impression, index, clicked=clicked, bought=bought))
        position = impression.positions[index] if event_position is None else event_position
        return position, event_query or impression.query, True

    def _find_impression(self, event: Click | Purchase, user_id: str) -> PendingImpression | None:
        """Return the impression that an event answers, found by request, else by user, item and time."""
        window_ms = self._click_window_ms if isinstance(event, Click) else self._purchase_window_ms
        candidates: Iterable[PendingImpression]
        if event.request_id is not None:
            impression = self.store.by_request(request_digest(event.request_id))
            candidates = [impression] if impression is not None and impression.user_id == user_id else []
            window_ms = self._purchase_window_ms  # the event names its impression, so the longer window applies
        else:
            candidates = self.store.by_user(user_id)
        for impression in candidates:
            if -SKEW_MS <= event.ts - impression.ts <= window_ms and event.item_id in impression.item_ids:
                return impression
        return None

    # ---- output

    def advance(self, watermark_ms: int, *, max_lists: int = 256) -> list[ShownList]:
        """Close the windows that end before the watermark.

        Args:
            watermark_ms: event time up to which the stream is complete, epoch milliseconds.
            max_lists: the largest number of lists to return at once; the others follow with the next call.

        Returns:
            Corrections of negatives that were learnt before, then lists whose click window has passed, in order of
            arrival.
        """
        self._count(self.store.drop_held_before(watermark_ms - self._hold_ms), "expired")
        self._early.expire(watermark_ms - self._click_window_ms)
        lists, self._corrections = self._corrections, []
        for impression in self.store.from_seq(self._due_seq, limit=max_lists) if self._waiting_lists.total() else ():
            if impression.ts + self._click_window_ms >= watermark_ms:
                break
            self._due_seq = impression.seq + 1
            lists += self._due_list(impression)
        self._drop_old(watermark_ms)
        return lists

    def _due_list(self, impression: PendingImpression) -> list[ShownList]:
        """Return the list of an impression with its known items; nothing if it has none."""
        self._waiting_lists[impression.topic] -= 1
        known = None
        if not all(map(self._is_known, impression.item_ids)):
            known = [index for index, item_id in enumerate(impression.item_ids) if self._is_known(item_id)]
            if not known:
                self._counts[impression.topic, "expired"] += 1
                return []
        self._counts[impression.topic, "learnt"] += 1
        return [impression.to_list(known)]

    def _drop_old(self, watermark_ms: int) -> None:
        """Drop impressions whose purchase window has passed, and the oldest ones beyond the limit."""
        oldest_ms, excess = self.store.oldest_ts, len(self.store) - self._max_impressions
        if oldest_ms is None or (excess <= 0 and oldest_ms + self._purchase_window_ms >= watermark_ms):
            return
        end = 0
        for place, (seq, ts) in enumerate(self.store.oldest(_EXPIRE_CHUNK)):
            closed = seq < self._due_seq and ts + self._purchase_window_ms < watermark_ms
            if not closed and place >= excess:
                break
            end = seq + 1
        if end > self._due_seq:
            for impression in self.store.from_seq(self._due_seq, limit=end - self._due_seq):
                if impression.seq < end:
                    self._waiting_lists[impression.topic] -= 1
                    self._counts[impression.topic, "expired"] += 1
            self._due_seq = end
        if end:
            self.store.drop_before(end)

    def bound_held(self, latest_ms: int) -> None:
        """Move later event times of events that wait for their item back to `latest_ms`: they would never expire."""
        self.store.bound_held(latest_ms)

    def bound(self, now_ms: int) -> None:
        """Move event times of impressions and early clicks that are later than the reader's clock back to it.

        An impression from the future would keep all later ones waiting until its time comes.

        Args:
            now_ms: the time of the reader's clock, epoch milliseconds.
        """
        self.store.bound(now_ms)
        self._early.bound(now_ms)

    def forget(self, user_id: str) -> None:
        """Drop everything of a user that waits."""
        for impression in self.store.forget(user_id):
            if impression.seq >= self._due_seq:
                self._waiting_lists[impression.topic] -= 1
                self._counts[impression.topic, "forgotten"] += 1
        self._count(self.store.forget_held(user_id), "forgotten")
        self._corrections = [correction for correction in self._corrections if correction.user_id != user_id]

    # ---- counts

    def count_forgotten(self, topic: str) -> None:
        """Count an event that is not offered, because its user was forgotten after it had been published."""
        self._counts[topic, "in"] += 1
        self._counts[topic, "forgotten"] += 1

    def counts(self, topic: str = "") -> dict[str, int]:
        """Return the outcomes of a topic's events: in = learnt + duplicate + expired + forgotten + pending."""
        counts = {name: self._counts[topic, name] for name in ("in", "learnt", "duplicate", "expired", "forgotten")}
        return counts | {"pending": self._waiting_lists[topic] + self.store.held_by_topic().get(topic, 0)}

    def _count(self, topics: Iterable[str], outcome: Outcome) -> None:
        for topic in topics:
            self._counts[topic, outcome] += 1

    # ---- the part of a checkpoint that is not in the store

    def state(self) -> dict[str, Any]:
        """Return the state beside the store in a form that JSON can hold; call it when the store commits."""
        self._event_ids.trim()
        return {
            "version": STATE_VERSION,
            "counts": [[topic, outcome, count] for (topic, outcome), count in self._counts.items()],
            "waiting_lists": dict(self._waiting_lists),
            "due_seq": self._due_seq,
            "next_numbers": self.store.next_numbers,
            "early": self._early.state(),
            "late": [correction.to_json() for correction in self._corrections],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned, over the store that was committed with it.

        Raises:
            StateVersionError: if another release wrote the state.
        """
        if state.get("version") != STATE_VERSION:
            raise StateVersionError(
                f"joiner state must be of version {STATE_VERSION}, got {state.get('version')}; "
                "start from a checkpoint that this release wrote"
            )
        self._counts = Counter({(topic, outcome): count for topic, outcome, count in state["counts"]})
        self._waiting_lists = Counter(state["waiting_lists"])
        self._due_seq = state["due_seq"]
        self.store.number_from(*state["next_numbers"])
        self._early.restore(state["early"])
        self._corrections = [ShownList.from_json(fields) for fields in state["late"]]


def _correction(impression: PendingImpression, index: int, *, clicked: bool, bought: bool) -> ShownList:
    """Return the list of a single item that was clicked or bought after its list was learnt."""
    return replace(impression.to_list([index]), clicked=(clicked,), bought=(bought,), is_correction=True)
