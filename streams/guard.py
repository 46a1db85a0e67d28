"""What a user or an item may weigh in what is learnt, so that nobody clicks an item to the top.

The guard limits attention that is concentrated, never popularity. It asks of each event, from strong to weak:

1. **Vouched**: the user also looks at other items. Each event with an item needs `vouch_events` with others, before or
   after (a click and its purchase are one here); fewer for an item that other shoppers look at that often, too
   (`_needed`). Such events count, however many.
2. **Shown**: the event joined an impression. It counts up to the hourly limit below.
3. Neither: a new user comes for one item alone. It counts up to the burst limit and the hourly limit.

**Burst limit** (`item_burst`). Of the events of users who do not vouch, with `U` of them counted in the stream, an item
is allowed a few, as many as shoppers who lately vouched for it beyond its usual (`R_i`), and about its share of vouched
attention `V`:

    burst_events * (1 + 2 U / V) + R_i + burst_factor * U * (V_i + 0.1 (U_i + V_i)) / (V + 0.1 (U + V))

`U / V` and 0.1 are for streams in which hardly anybody vouches, because people come, click once and go: there an item
is measured by itself, and the rule fades out.

**Hourly limit** (`item_hour`), of events of users who do not vouch: a share of the hour, and ten times the share that
the item has of all events so far.

**Shopper limit** (`user_item`): a user counts a few times an hour with one item, or four times as often as others look
at it. How often others do is measured by shoppers, not by events: a shopper's n-th event in an hour adds 1/n, so that
a few busy users cannot raise it.

| rule | of what goes beyond |
|---|---|
| `user_hour`, `user_item`, `item_hour`, `item_burst` | nothing counts |
| `user_batch`, `item_batch`: events in a batch; of an item, those not vouched for | all share the limit's weight |
| `quarantine`: a user in quarantine | nothing counts |

An item in quarantine still counts for users who vouch for it or were shown it: else spam would be a way to bury what a
rival sells. All counts fade with `memory_hours`, in event time.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from streams.control import Quarantine, Quarantined
from streams.events import MAX_TS_MS
from streams.examples import Example, ShownList
from streams.guard_accounts import HOUR_MS, Accounts, ItemAccount, PairAccount, UserAccount
from streams.guard_caps import Cap, Caps

RULES = ("user_batch", "user_hour", "user_item", "item_batch", "item_hour", "item_burst", "quarantine")
KINDS = ("user", "item")

_OWN_SHARE = 0.1  # of an item's own past, where vouching is rare
_BOT_HOURS = 10  # times `user_hour_events` in one hour: no basket is that large
_QUARANTINE_FACTOR = 5  # times what an item is allowed
_TIMES_OTHERS = 4  # what a user may look at an item, against what other shoppers do
_UNKNOWN_SHOPPERS = 4  # who have looked at nothing: so that the first few shoppers say little


class GuardSettings(BaseModel):
    """What a user or an item may weigh in what is learnt, and from where on it is in quarantine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    user_batch_events: int = Field(default=128, ge=1, description="of one user in a batch; more share the weight")
    user_hour_events: int = Field(default=2_000, ge=1, description="of one user in an hour that count")
    user_item_hour_events: int = Field(default=5, ge=1, description="of one user with one item in an hour that count")
    item_batch_events: int = Field(
        default=32, ge=1, description="of one item in a batch of users who do not vouch; more share"
    )
    item_hour_events: int = Field(
        default=20, ge=1, description="of one item in an hour of users who do not vouch, beside its share"
    )
    item_hour_share: float = Field(default=0.05, ge=0, le=1, description="of the hour's events, likewise")
    item_hour_factor: float = Field(
        default=10.0, ge=1, description="times an item's usual share of the hour, likewise, and times an even share"
    )
    vouch_events: int = Field(
        default=3, ge=1, description="events with other items that make one event with an item believed"
    )
    burst_events: float = Field(default=2.0, ge=0, description="of users who do not vouch, allowed any item")
    burst_factor: float = Field(default=3.0, ge=1, description="times its share of attention, allowed besides")
    memory_hours: float = Field(default=168.0, gt=0, description="event time in which counts fade to one half")
    user_quarantine_events: int = Field(default=100, ge=1, description="left out of one user: quarantine")
    item_quarantine_events: int = Field(default=50, ge=1, description="left out of one item, at least: quarantine")
    max_users: int = Field(default=10_000, ge=1, description="remembered; those not seen for longest go first")
    max_items: int = Field(default=10_000, ge=1, description="remembered; those not seen for longest go first")
    max_quarantined: int = Field(default=10_000, ge=1, description="kept in quarantine; the oldest go first")


class Guard:
    """Weighs what is learnt, by user and by item. The same events in the same order are always weighed the same.

    Args:
        settings: the limits.

    Attributes:
        quarantined: what is in quarantine, `user/<pseudonym>` or `item/<item id>`, and why.
    """

    def __init__(self, settings: GuardSettings) -> None:
        self._settings = settings
        self._memory_ms = settings.memory_hours * HOUR_MS
        self._users = Accounts(UserAccount, settings.max_users)
        self._items = Accounts(ItemAccount, settings.max_items)
        self._stream = ItemAccount()
        self._now_ms = MAX_TS_MS
        self.quarantined: dict[str, Quarantine] = {}
        self._trusted: dict[str, int] = {}  # released, until then (event time, ms)
        self._new: list[Quarantined] = []
        self._downweighted: Counter[str] = Counter()  # by rule
        self._quarantines: Counter[str] = Counter()  # by kind
        self._caps = Caps()

    def bound(self, now_ms: int) -> None:
        """Bound the guard's time by the reader's clock: what it has counted so far, and what comes until the next call.

        Args:
            now_ms: what the reader's clock shows, epoch milliseconds.
        """
        self._now_ms = now_ms
        if self._stream.at_ms <= now_ms:
            return  # no account is ahead of the stream's
        for account in (self._stream, *self._items.all()):
            account.bound(now_ms)
        for user in self._users.all():
            user.bound(now_ms // HOUR_MS)
        latest_ms = now_ms + int(self._memory_ms)
        self._trusted = {key: min(until_ms, latest_ms) for key, until_ms in self._trusted.items()}

    # ---- positives

    def weigh(self, examples: Sequence[Example]) -> list[Example]:
        """Weigh a slice's positives, in their order; what does not count has weight 0 and a reason in `left_out`."""
        ruled = [self._rule(example) for example in examples]
        # What does not count must not take weight from what does: else spam could bury an item.
        counting = [example for example, (left_out, _) in zip(examples, ruled, strict=True) if not left_out]
        users = Counter(example.user_id for example in counting)
        items = Counter(
            example.item_id
            for example, (left_out, vouched) in zip(examples, ruled, strict=True)
            if not (left_out or vouched)
        )
        weighed = []
        for example, (left_out, vouched) in zip(examples, ruled, strict=True):
            weight = 0.0
            if not left_out:
                item_batch = 0 if vouched else items[example.item_id]
                weight = self._shared(example, users[example.user_id], item_batch, len(counting))
            weighed.append(example if weight == example.weight else replace(example, weight=weight, left_out=left_out))
        return weighed

    def _rule(self, example: Example) -> tuple[str, bool]:
        """Enter an event into the accounts; return the outcome if it does not count, and whether it is vouched."""
        user, item, stream = self._users.touch(example.user_id), self._items.touch(example.item_id), self._stream
        # A producer may say what time it likes, but nothing happens after it was published.
        stream.advance(min(example.ts, example.publish_ts_ms, self._now_ms), self._memory_ms)
        item.advance(stream.at_ms, self._memory_ms)
        stream.hour_events += 1
        pair = user.see(example.item_id, stream.hour, is_purchase=example.kind == "purchase")
        if user.doubted:
            self._believe(user)
        rule, vouched = self._broken(example, user, item, pair)
        if rule is not None:
            self._downweighted[rule] += 1
            self._note(rule, example.user_id, example.item_id, left_out=True)
            return self._outcome(rule, example.item_id), vouched
        if user.events - pair.events >= self._settings.vouch_events:
            self._reach(item, user)
        return "", vouched

    def _outcome(self, rule: str, item_id: str) -> str:
        in_quarantine = rule == "quarantine" or (rule == "item_burst" and f"item/{item_id}" in self.quarantined)
        return "quarantined" if in_quarantine else "capped"

    def _reach(self, item: ItemAccount, user: UserAccount) -> None:
        """Count a user among the shoppers who look at an item: with all events of an hour about once."""
        shopper = 1 / user.hour_events
        item.reach(shopper)
        self._stream.reach(shopper)

    def _believe(self, user: UserAccount) -> None:
        """Believe earlier events with items that a user vouches for by now."""
        for item_id, counted, refused in user.newly_vouched(self._needed):
            item = self._items.get(item_id)
            for account in (item, self._stream):
                account.believe(counted + refused, of_unvouched=counted)
            self._reach(item, user)

    def _spread(self, item: ItemAccount) -> float:
        """Return the share of an item in what shoppers look at, each shopper counted about once an hour."""
        return item.spread / (self._stream.spread + _UNKNOWN_SHOPPERS)

    def _needed(self, item_id: str) -> float:
        """Return how many events with other items an event with this one needs to be vouched for."""
        item = self._items.get(item_id)
        recent = item.recent_spread / (self._stream.recent_spread + _UNKNOWN_SHOPPERS)
        spread = max(self._spread(item), recent)
        most = self._settings.vouch_events
        return most if spread * (1 + _TIMES_OTHERS * most) <= 1 else max(0.5, (1 / spread - 1) / _TIMES_OTHERS)

    def _broken(
        self, example: Example, user: UserAccount, item: ItemAccount, pair: PairAccount
    ) -> tuple[str | None, bool]:
        if self.quarantined and f"user/{example.user_id}" in self.quarantined:
            return "quarantine", False
        rule, vouched = self._broken_by_user(example, user, item, pair), False
        if rule is None:
            rule, vouched = self._broken_by_item(example, user, item, pair)
        if rule in ("user_item", "item_burst"):
            user.strikes += 1
            if user.strikes >= self._settings.user_quarantine_events:
                self._quarantine("user", example.user_id, example, rule, user.strikes)
        return rule, vouched

    def _broken_by_user(self, example: Example, user: UserAccount, item: ItemAccount, pair: PairAccount) -> str | None:
        if self._is_trusted(f"user/{example.user_id}"):
            return None
        if user.hour_events > self._settings.user_hour_events:
            if user.hour_events >= _BOT_HOURS * self._settings.user_hour_events:
                self._quarantine("user", example.user_id, example, "user_hour", user.hour_events)
            return "user_hour"
        if pair.hour_looks <= self._settings.user_item_hour_events:
            return None
        return "user_item" if pair.hour_looks > _TIMES_OTHERS * self._spread(item) * user.hour_events else None

    def _broken_by_item(
        self, example: Example, user: UserAccount, item: ItemAccount, pair: PairAccount
    ) -> tuple[str | None, bool]:
        if self._vouches(user, example.item_id, item):
            item.vouched += 1
            self._stream.vouched += 1
            return None, True
        rule = None
        if not self._is_trusted(f"item/{example.item_id}"):
            if not example.shown and item.unvouched + 1 > self._allowed(example.item_id, item):
                self._exceed(example, item)
                rule = "item_burst"
            elif item.hour_events >= self._hourly(item):
                rule = "item_hour"
        if rule is None:
            item.hour_events += 1
            item.unvouched += 1
            self._stream.unvouched += 1
        user.doubt(pair, counted=rule is None)
        return rule, False

    def _vouches(self, user: UserAccount, item_id: str, item: ItemAccount) -> bool:
        most = self._settings.vouch_events
        return user.vouches_for(item_id, most) or (item.spread > 0 and user.vouches_for(item_id, self._needed(item_id)))

    def _hourly(self, item: ItemAccount) -> float:
        """Return how many events of an item count in an hour, of users who do not vouch for it."""
        settings, stream = self._settings, self._stream
        even = settings.item_hour_factor / max(1, len(self._items))
        share = max(settings.item_hour_share, even) + settings.item_hour_factor * self._usual(item)
        return settings.item_hour_events + share * max(stream.hour_events, stream.hour_before)

    def _usual(self, item: ItemAccount) -> float:
        """Return the share of an item in all events that counted."""
        return item.events / self._stream.events if self._stream.events else 0.0

    def _allowed(self, item_id: str, item: ItemAccount) -> float:
        """Fading count of an item's events that may come from users who do not vouch for it."""
        if f"item/{item_id}" in self.quarantined:
            return 0.0
        stream, settings = self._stream, self._settings
        attention = stream.vouched + _OWN_SHARE * stream.events
        share = (item.vouched + _OWN_SHARE * item.events) / attention if attention else 0.0
        few = settings.burst_events * (1 + 2 * stream.unvouched / (1 + stream.vouched))
        return few + self._surge(item) + settings.burst_factor * stream.unvouched * share

    def _surge(self, item: ItemAccount) -> float:
        """Return how many more shoppers vouched for an item in these two hours than usually do."""
        usual = item.spread / stream.spread if (stream := self._stream).spread else 0.0
        return max(0.0, item.recent_spread - usual * stream.recent_spread)

    def _exceed(self, example: Example, item: ItemAccount) -> None:
        item.excess += 1
        allowed = _QUARANTINE_FACTOR * self._allowed(example.item_id, item)
        # Where many land and most go at once, those who stay are too many to be spam.
        if item.excess >= max(self._settings.item_quarantine_events, allowed, item.vouched):
            self._quarantine("item", example.item_id, example, "item_burst", item.excess)

    def _shared(self, example: Example, user_batch: int, item_batch: int, batch: int) -> float:
        settings, weight = self._settings, 1.0
        if user_batch > settings.user_batch_events:
            weight = settings.user_batch_events / user_batch
            self._weigh_down("user_batch", example.user_id, example.item_id)
        if item_batch > settings.item_batch_events:
            usual = settings.item_hour_factor * self._usual(self._items.get(example.item_id))
            limit = max(settings.item_batch_events, usual * batch)
            if item_batch > limit:
                weight = min(weight, limit / item_batch)
                self._weigh_down("item_batch", example.user_id, example.item_id)
        return weight

    def _weigh_down(self, rule: str, user_id: str, item_id: str) -> None:
        self._downweighted[rule] += 1
        self._note(rule, user_id, item_id, left_out=False)

    def _note(self, rule: str, user_id: str, item_id: str, *, left_out: bool) -> None:
        key = f"item/{item_id}" if rule.startswith("item_") else f"user/{user_id}"
        self._caps.note(key, rule, self._stream.hour, left_out=left_out)

    # ---- lists

    def weigh_lists(self, lists: Sequence[ShownList]) -> list[ShownList]:
        """Weights of a slice's lists: 0 where a click in it would not count now."""
        users = Counter(shown.user_id for shown in lists)
        return [self._weighed_list(shown, users[shown.user_id]) for shown in lists]

    def _weighed_list(self, shown: ShownList, user_batch: int) -> ShownList:
        limit = self._settings.user_batch_events
        rule, item_id = self._broken_by_list(shown)
        if rule is not None:
            self._downweighted[rule] += 1
            self._note(rule, shown.user_id, item_id, left_out=True)
            return replace(shown, weight=0.0, left_out="quarantined" if rule == "quarantine" else "capped")
        if user_batch > limit:
            self._weigh_down("user_batch", shown.user_id, "")
            return replace(shown, weight=limit / user_batch)
        return shown

    def _broken_by_list(self, shown: ShownList) -> tuple[str | None, str]:
        """Return the rule by which a list does not count, and the item that it names."""
        if f"user/{shown.user_id}" in self.quarantined:
            return "quarantine", ""
        user = self._users.get(shown.user_id)
        answered = zip(shown.item_ids, shown.clicked, shown.bought, strict=True)
        for item_id in [item_id for item_id, clicked, bought in answered if clicked or bought]:
            if self._is_capped(item_id, user):
                return "item_hour", item_id
        return None, ""

    def _is_capped(self, item_id: str, user: UserAccount) -> bool:
        """Return whether an event with an item that this user was shown would be left out now."""
        item = self._items.get(item_id)
        if item.hour < self._stream.hour or item.hour_events < self._hourly(item):
            return False
        return not (self._vouches(user, item_id, item) or self._is_trusted(f"item/{item_id}"))

    # ---- quarantine

    def _quarantine(self, kind: str, name: str, example: Example, reason: str, count: float) -> None:
        key = f"{kind}/{name}"
        if key in self.quarantined or self._is_trusted(key):
            return
        limit = self._settings.user_quarantine_events if kind == "user" else self._settings.item_quarantine_events
        if reason == "user_hour":
            limit = self._settings.user_hour_events
        # Made from the event that was one too many, so that a repeat says the same; a producer's id may name people.
        event_id = hashlib.blake2b(f"{key}/{example.event_id}".encode(), digest_size=16).hexdigest()
        why = Quarantine(event_id=event_id, ts=example.ts, reason=reason, count=round(count, 1), limit=limit)
        self.quarantined[key] = why
        self._quarantines[kind] += 1
        self._new.append(Quarantined(key, why))
        _keep_newest(self.quarantined, self._settings.max_quarantined)

    def newly_quarantined(self) -> list[Quarantined]:
        """What went into quarantine since the last call."""
        new, self._new = self._new, []
        return new

    def release(self, key: str) -> None:
        """Let a user or an item out of quarantine; for `memory_hours` it counts whatever comes.

        An item can be released that is not in quarantine, before a campaign; a user cannot.

        Args:
            key: `user/<pseudonym>` or `item/<item id>`.
        """
        was_in = self.quarantined.pop(key, None) is not None
        self._new = [new for new in self._new if new.key != key]  # told later, it would be in again
        kind, _, name = key.partition("/")
        if kind == "user" and not was_in:
            return
        if kind == "user":
            self._users.get(name).strikes = 0.0
        else:
            self._items.get(name).excess = 0.0
        self._trusted[key] = self._stream.at_ms + int(self._memory_ms)
        _keep_newest(self._trusted, self._settings.max_quarantined)

    def _is_trusted(self, key: str) -> bool:
        return bool(self._trusted) and self._trusted.get(key, 0) > self._stream.at_ms

    def forget(self, user_id: str) -> None:
        """Forget a user."""
        self._users.drop(user_id)
        self.quarantined.pop(f"user/{user_id}", None)
        self._trusted.pop(f"user/{user_id}", None)
        self._new = [new for new in self._new if new.key != f"user/{user_id}"]
        self._caps.drop(f"user/{user_id}")

    # ---- counts and state

    @property
    def caps(self) -> list[Cap]:
        """What is left out or weighed down in this hour of event time and the one before, the most first."""
        return self._caps.current(self._stream.hour)

    def newly_capped(self) -> list[Cap]:
        """Return the users and items of which something was left out for the first time in an hour of event time."""
        return self._caps.take_new()

    @property
    def downweighted(self) -> dict[str, int]:
        """Events that count less or not at all, by rule."""
        return {rule: self._downweighted[rule] for rule in RULES}

    @property
    def quarantines(self) -> dict[str, int]:
        """Users and items that went into quarantine since the beginning, by kind."""
        return {kind: self._quarantines[kind] for kind in KINDS}

    @property
    def in_quarantine(self) -> dict[str, int]:
        """Users and items in quarantine now, by kind."""
        return {kind: sum(key.startswith(f"{kind}/") for key in self.quarantined) for kind in KINDS}

    def state(self) -> dict[str, Any]:
        """All of it, as JSON can hold it."""
        return {
            "users": self._users.state(),
            "items": self._items.state(),
            "stream": self._stream.row(),
            "quarantined": {key: why.model_dump() for key, why in self.quarantined.items()},
            "trusted": dict(self._trusted),
            "new": [[new.key, new.why.model_dump()] for new in self._new],
            "downweighted": dict(self._downweighted),
            "quarantines": dict(self._quarantines),
            "caps": self._caps.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Put back what `state` gave."""
        self._users.restore(state["users"])
        self._items.restore(state["items"])
        self._stream = ItemAccount.of_row(state["stream"])
        self.quarantined = {key: Quarantine.model_validate(why) for key, why in state["quarantined"].items()}
        self._trusted = dict(state["trusted"])
        self._new = [Quarantined(key, Quarantine.model_validate(why)) for key, why in state["new"]]
        self._downweighted, self._quarantines = Counter(state["downweighted"]), Counter(state["quarantines"])
        self._caps.restore(state.get("caps", []))  # earlier releases kept none


def _keep_newest(kept: dict[str, Any], limit: int) -> None:
    while len(kept) > limit:
        del kept[next(iter(kept))]
