"""From events to what is learnt from: duplicates dropped, clicks joined to what was shown, windows kept.

- A click or purchase is a positive at once (`Example`), unless its item has not come yet: then it waits for it.
- An impression waits until the watermark has passed its click window; what was clicked or bought by then is a positive
  of its list, the rest are negatives (`ShownList`).
- Until its purchase window has passed, a click or purchase of what was learnt as a negative corrects it, and so does a
  purchase of what was learnt as clicked: a list of one, `late`. How that is weighed is the learner's matter.

A purchase that names its order is a repeat of one with the same order and item, on whichever topic; any other event is
a repeat of one with the same topic, kind and event id.

A click finds its impression by request; without one, by user, item and time: the newest impression of the item to the
user before it. Whatever comes in is accounted for, by topic: in = learnt + duplicate + expired + forgotten + pending.
"""

import json
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from hashlib import blake2b
from typing import Any, Literal

from streams.errors import StateVersionError
from streams.events import Click, Impression, Purchase, UserEvent, normalize_query
from streams.join_store import DIGEST_BYTES, JoinStore, PendingImpression, request_digest
from streams.recent_ids import RecentIds

STATE_VERSION = 4
MAX_EARLY = 10_000  # clicks remembered that came before their impression
SKEW_MS = 5_000  # clocks of a storefront differ by that much: a click may seem to come before what it answers
_EXPIRE_CHUNK = 1_024

Outcome = Literal["learnt", "duplicate", "expired", "forgotten"]


@dataclass(slots=True)  # not frozen: that would double the time it takes to make one
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
    topic: str = ""
    weight: float = 1.0
    query: str | None = None  # what the user had searched for
    shown: bool = False  # joined to an impression of this user
    left_out: str = ""  # outcome of an event that the guard left out: capped or quarantined


@dataclass(slots=True)
class ShownList:
    """An impression whose click window has passed.

    Attributes:
        item_ids: what was shown and is in the catalogue.
        positions: where, 0 is the first.
        clicked: whether each was clicked or bought before its negatives were due.
        is_correction: whether this is a single item that was clicked or bought after it was learnt as a negative, or
            bought after it was learnt as clicked; `clicked` and `bought` say which of the two is new.
        bought: whether each was bought before its negatives were due; left out, nothing was.
        query: what the user had searched for, where that is why it was shown.
        left_out: outcome of a list that the guard left out: capped or quarantined.
    """

    user_id: str
    session_id: str | None
    ts: int  # epoch ms, event time
    item_ids: tuple[str, ...]
    positions: tuple[int, ...]
    clicked: tuple[bool, ...]
    is_correction: bool = False
    topic: str = ""
    weight: float = 1.0
    bought: tuple[bool, ...] = ()
    query: str | None = None
    left_out: str = ""

    def __post_init__(self) -> None:
        """One flag an item."""
        self.bought = self.bought or (False,) * len(self.item_ids)


class Joiner:
    """Turn impressions, clicks and purchases into examples and lists.

    Args:
        is_known: whether an item is in the catalogue.
        store: keeps what waits; without one, memory alone.
        pseudonymise: what ids of users and sessions become; nothing behind the joiner knows them otherwise.
        click_window_seconds: event time after which what was shown and not clicked is a negative.
        purchase_window_seconds: event time for which a click or purchase may still correct that.
        hold_seconds: how long, in event time, an event waits for its item.
        max_held: how many wait for an item at most; beyond it the one that waits longest expires.
        max_impressions: how many impressions are kept at most; beyond it the oldest go.
        dedupe_horizon: how many event ids are remembered; a repeat from further back is taken for new.

    Raises:
        ValueError: a limit is out of its range.
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
                f"{click_window_seconds}; a negative cannot be corrected before it is one"
            )
        self.store = JoinStore(None) if store is None else store
        self._is_known, self._pseudonymise = is_known, pseudonymise
        self._click_window_ms = int(click_window_seconds * 1000)
        self._purchase_window_ms = int(purchase_window_seconds * 1000)
        self._hold_ms = int(hold_seconds * 1000)
        self._max_held, self._max_impressions, self._horizon = max_held, max_impressions, dedupe_horizon
        self._recent_ids = RecentIds(dedupe_horizon)
        self._recent_ids.update(map(_as_number, self.store.digests(dedupe_horizon)))
        # (request, item) -> ms and whether bought, of what came before its impression
        self._early: OrderedDict[tuple[int, str], tuple[int, bool]] = OrderedDict()
        self._late: list[ShownList] = []  # corrections, to go with the next lists
        self._due_seq = self.store.next_numbers[0]  # the first impression whose negatives are not learnt yet
        self._counts: Counter[tuple[str, str]] = Counter()  # (topic, outcome)
        self._waiting_lists: Counter[str] = Counter()  # by topic

    # ---- in

    def offer(self, event: UserEvent | Impression, *, publish_ts_ms: int, topic: str = "") -> list[Example]:
        """Take one event.

        Args:
            event: an impression, a click or a purchase.
            publish_ts_ms: when it was published, epoch milliseconds.
            topic: where it was, for the counts.

        Returns:
            The positive that it is; nothing if it is a duplicate, an impression, or waits for its item.
        """
        self._counts[topic, "in"] += 1
        if not self._remember(event.order_line() or f"{topic}/{event.KIND}/{event.event_id}"):
            self._counts[topic, "duplicate"] += 1
            return []
        user_id = self._pseudonymise(event.user_id)
        session_id = None if event.session_id is None else self._pseudonymise(event.session_id)
        if not isinstance(event, (Click, Purchase)):  # ruling out a model is slow: clicks first
            self._show(event, user_id, session_id, publish_ts_ms, topic)
            return []
        position, query, shown = self._join(event, user_id)
        kind: Literal["click", "purchase"] = "click" if isinstance(event, Click) else "purchase"
        example = Example(  # by position: this is done for every event, and names cost a third more
            event.event_id, user_id, session_id, event.item_id, event.ts, kind, event.scenario, position, publish_ts_ms,
            topic, 1.0, query, shown,
        )  # fmt: skip
        if self._is_known(event.item_id):
            self._counts[topic, "learnt"] += 1
            return [example]
        self._hold(example)
        return []

    def item_arrived(self, item_id: str) -> list[Example]:
        """Release what waited for an item, in the order in which it was offered."""
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
            self._settle(self.store.give_up_oldest(), "expired")

    # ---- joined

    def _show(
        self, impression: Impression, user_id: str, session_id: str | None, publish_ts_ms: int, topic: str
    ) -> None:
        shown = PendingImpression(
            ts=min(impression.ts, publish_ts_ms),
            topic=topic,
            request=request_digest(impression.request_id),
            user_id=user_id,
            session_id=session_id,
            item_ids=tuple([item["item_id"] for item in impression.items]),
            positions=tuple([item["position"] for item in impression.items]),
            query=normalize_query(impression.query),
        )
        self.store.add(shown)
        self._waiting_lists[topic] += 1
        if self._early:
            for index, item_id in enumerate(shown.item_ids):
                early = self._early.pop((shown.request, item_id), None)
                if early is not None:
                    self.store.mark(shown, index, bought=early[1])

    def _join(self, event: Click | Purchase, user_id: str) -> tuple[int | None, str | None, bool]:
        """Mark what was shown as clicked or bought.

        Returns:
            Its position and what was searched for, where they are known, and whether an impression was found.
        """
        own_position = event.position if isinstance(event, Click) else None
        if not len(self.store):
            return own_position, None, False
        shown = self._shown(event, user_id)
        if shown is None:
            self._keep_early(event)
            return own_position, None, False
        index = shown.item_ids.index(event.item_id)
        bought = isinstance(event, Purchase) and not shown.bought()[index]
        clicked = not shown.marks >> index & 1
        if clicked or bought:
            self.store.mark(shown, index, bought=bought)
            if shown.seq < self._due_seq and self._is_known(event.item_id):
                self._late.append(_correction(shown, index, clicked=clicked, bought=bought))
        return shown.positions[index] if own_position is None else own_position, shown.query, True

    def _keep_early(self, event: Click | Purchase) -> None:
        """Remember what may have come before its impression."""
        if event.request_id is not None:
            key = request_digest(event.request_id), event.item_id
            _, bought = self._early.get(key, (0, False))
            self._early[key] = event.ts, bought or isinstance(event, Purchase)
            if len(self._early) > MAX_EARLY:
                self._early.popitem(last=False)

    def _shown(self, event: Click | Purchase, user_id: str) -> PendingImpression | None:
        """The impression that an event answers, by request, or else by user, item and time."""
        window_ms = self._click_window_ms if isinstance(event, Click) else self._purchase_window_ms
        candidates: Iterable[PendingImpression]
        if event.request_id is not None:
            found = self.store.by_request(request_digest(event.request_id))
            candidates = [found] if found is not None and found.user_id == user_id else []
            window_ms = self._purchase_window_ms  # it says itself which; how late it may be is the longer window's say
        else:
            candidates = self.store.by_user(user_id)
        for shown in candidates:
            if -SKEW_MS <= event.ts - shown.ts <= window_ms and event.item_id in shown.item_ids:
                return shown
        return None

    # ---- out

    def advance(self, watermark_ms: int, *, max_lists: int = 256) -> list[ShownList]:
        """Close windows.

        Args:
            watermark_ms: event time up to which the stream is complete, epoch milliseconds.
            max_lists: how many lists are given out at once; the others follow at the next call.

        Returns:
            Corrections of negatives learnt before, then lists whose click window has passed, in order of arrival.
        """
        self._settle(self.store.give_up_before(watermark_ms - self._hold_ms), "expired")
        while self._early and next(iter(self._early.values()))[0] + self._click_window_ms < watermark_ms:
            self._early.popitem(last=False)
        lists, self._late = self._late, []
        for shown in self.store.from_seq(self._due_seq, limit=max_lists) if self._waiting_lists.total() else ():
            if shown.ts + self._click_window_ms >= watermark_ms:
                break
            self._due_seq = shown.seq + 1
            lists += self._due(shown)
        self._drop_old(watermark_ms)
        return lists

    def _due(self, shown: PendingImpression) -> list[ShownList]:
        self._waiting_lists[shown.topic] -= 1
        item_ids, positions, clicked, bought = shown.item_ids, shown.positions, shown.clicked(), shown.bought()
        if not all(map(self._is_known, item_ids)):
            known = [index for index, item_id in enumerate(item_ids) if self._is_known(item_id)]
            if not known:
                self._counts[shown.topic, "expired"] += 1
                return []
            item_ids, positions = _at(item_ids, known), _at(positions, known)
            clicked, bought = _at(clicked, known), _at(bought, known)
        self._counts[shown.topic, "learnt"] += 1
        return [
            ShownList(
                user_id=shown.user_id,
                session_id=shown.session_id,
                ts=shown.ts,
                item_ids=item_ids,
                positions=positions,
                clicked=clicked,
                bought=bought,
                topic=shown.topic,
                query=shown.query,
            )
        ]

    def _drop_old(self, watermark_ms: int) -> None:
        """Drop impressions whose purchase window has passed, and the oldest beyond the limit."""
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
            for shown in self.store.from_seq(self._due_seq, limit=end - self._due_seq):
                if shown.seq < end:
                    self._waiting_lists[shown.topic] -= 1
                    self._counts[shown.topic, "expired"] += 1
            self._due_seq = end
        if end:
            self.store.drop_before(end)

    def bound_held(self, latest_ms: int) -> None:
        """Take back event times later than a time, of events that wait for their item: they would never expire."""
        self.store.bound_held(latest_ms)

    def bound(self, now_ms: int) -> None:
        """Take back event times that the reader's clock has not reached, of impressions and of early clicks.

        An impression that is ahead would keep all that came after it waiting until its time comes.

        Args:
            now_ms: what the reader's clock shows, epoch milliseconds.
        """
        self.store.bound(now_ms)
        self._early = OrderedDict((key, (min(ts, now_ms), bought)) for key, (ts, bought) in self._early.items())

    def forget(self, user_id: str) -> None:
        """Drop all that waits of a user."""
        for shown in self.store.forget(user_id):
            if shown.seq >= self._due_seq:
                self._waiting_lists[shown.topic] -= 1
                self._counts[shown.topic, "forgotten"] += 1
        self._settle(self.store.forget_held(user_id), "forgotten")
        self._late = [late for late in self._late if late.user_id != user_id]

    # ---- counts

    def counts(self, topic: str = "") -> dict[str, int]:
        """What became of a topic's events: in = learnt + duplicate + expired + forgotten + pending."""
        counts = {name: self._counts[topic, name] for name in ("in", "learnt", "duplicate", "expired", "forgotten")}
        return counts | {"pending": self._waiting_lists[topic] + self.store.held_by_topic().get(topic, 0)}

    def _settle(self, topics: Iterable[str], outcome: Outcome) -> None:
        for topic in topics:
            self._counts[topic, outcome] += 1

    # ---- event ids

    def _remember(self, event: str) -> bool:
        """Whether an event is new; it is remembered then."""
        event_digest = blake2b(event.encode(), digest_size=DIGEST_BYTES).digest()
        if not self._recent_ids.add(_as_number(event_digest)):
            return False
        self.store.saw(event_digest)
        return True

    # ---- what a checkpoint keeps beside the store

    def state(self) -> dict[str, Any]:
        """What is not in the store, as JSON can hold it; taken when the store commits."""
        self.store.trim_digests(self._horizon)
        return {
            "version": STATE_VERSION,
            "counts": [[topic, outcome, count] for (topic, outcome), count in self._counts.items()],
            "waiting_lists": dict(self._waiting_lists),
            "due_seq": self._due_seq,
            "next_numbers": self.store.next_numbers,
            "early": [[*key, *early] for key, early in self._early.items()],
            "late": [_to_json(correction) for correction in self._late],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state`, over the store that was committed with it.

        Raises:
            StateVersionError: If another release wrote the state.
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
        self._early = OrderedDict(((request, item), (ts, bought)) for request, item, ts, bought in state["early"])
        self._late = [_from_json(fields) for fields in state["late"]]


def example_of(event: Click | Purchase, *, publish_ts_ms: int, query: str | None = None) -> Example:
    """The positive that a click or purchase is by itself, joined to nothing but what was searched for."""
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
        query=query,
    )


def _as_number(event_digest: bytes) -> int:
    return int.from_bytes(event_digest, "little")


def _at(whole: tuple[Any, ...], indices: list[int]) -> tuple[Any, ...]:
    return tuple([whole[index] for index in indices])


def _correction(shown: PendingImpression, index: int, *, clicked: bool, bought: bool) -> ShownList:
    return ShownList(
        user_id=shown.user_id,
        session_id=shown.session_id,
        ts=shown.ts,
        item_ids=(shown.item_ids[index],),
        positions=(shown.positions[index],),
        clicked=(clicked,),
        bought=(bought,),
        is_correction=True,
        topic=shown.topic,
        query=shown.query,
    )


def _to_json(shown: ShownList) -> dict[str, Any]:
    """Return a list as the checkpoint format has it: a correction is named `late` there."""
    fields = asdict(shown)
    return {"late" if name == "is_correction" else name: value for name, value in fields.items()}


def _from_json(fields: dict[str, Any]) -> ShownList:
    """Return the list that `_to_json` wrote; JSON has turned its tuples into lists."""
    tuples: dict[str, Any] = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
    fields = fields | tuples
    return ShownList(is_correction=fields.pop("late"), **fields)
