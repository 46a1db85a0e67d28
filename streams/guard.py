"""Guard against click spam: limits the weight that one user or one item has in training.

The guard limits concentrated attention, never popularity. It classifies each event (see `guard_limits` for the limits):

1. **Vouched**: the user also looks at other items. Each event with an item needs `vouch_events` events with others,
   before or after it (a click and its purchase count as one here); fewer for an item that other shoppers look at that
   often, too (`GuardLimits.events_to_vouch`). All such events count.
2. **Shown**: the event joined an impression. It counts up to the hourly limit.
3. Neither: a new user comes for one item only. It counts up to the burst limit and the hourly limit.

| rule | events beyond the limit |
|---|---|
| `user_hour`, `user_item`, `item_hour`, `item_burst` | do not count |
| `user_batch`, `item_batch`: events in a micro-batch; of an item, those not vouched for | share the limit's weight |
| `quarantine`: any event of a user in quarantine | do not count |

An item in quarantine still counts for users who vouch for it or were shown it: otherwise spam would be a way to bury
the products of a competitor. All counts fade with `memory_hours`, in event time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from streams.control import Quarantine, Quarantined
from streams.events import MAX_TS_MS
from streams.examples import Example, ShownList
from streams.guard_accounts import HOUR_MS, Accounts, ItemAccount, PairAccount, UserAccount
from streams.guard_caps import Cap, Caps
from streams.guard_limits import TIMES_OTHERS, GuardLimits
from streams.guard_quarantine import KINDS, QuarantineList
from streams.guard_settings import GuardSettings

RULES = ("user_batch", "user_hour", "user_item", "item_batch", "item_hour", "item_burst", "quarantine")

_BOT_HOURS = 10  # multiple of `user_hour_events` in one hour that no basket reaches
_QUARANTINE_FACTOR = 5  # multiple of an item's burst limit that must be left out before it is quarantined


class Guard:
    """Weights for examples and lists, by user and by item. The same events in the same order get the same weights.

    Args:
        settings: the limits of users and items.
    """

    def __init__(self, settings: GuardSettings) -> None:
        self._settings = settings
        self._memory_ms = settings.memory_hours * HOUR_MS
        self._users = Accounts(UserAccount, settings.max_users)
        self._items = Accounts(ItemAccount, settings.max_items)
        self._limits = GuardLimits(settings, self._items)
        self._now_ms = MAX_TS_MS
        self._quarantine = QuarantineList(settings.max_quarantined)
        self._downweighted: Counter[str] = Counter()  # by rule
        self._caps = Caps()

    @property
    def _stream(self) -> ItemAccount:
        return self._limits.stream

    def bound(self, now_ms: int) -> None:
        """Bound the guard's time by the reader's clock: existing counts, and events until the next call.

        Args:
            now_ms: the time of the reader's clock, epoch milliseconds.
        """
        self._now_ms = now_ms
        if self._stream.at_ms <= now_ms:
            return  # no account is ahead of the stream
        for account in (self._stream, *self._items.all()):
            account.bound(now_ms)
        for user in self._users.all():
            user.bound(now_ms // HOUR_MS)
        self._quarantine.bound(now_ms + int(self._memory_ms))

    # ---- examples

    def weigh(self, examples: Sequence[Example]) -> list[Example]:
        """Weigh the examples of a slice, in order; one that does not count has weight 0 and a reason in `left_out`."""
        outcomes = [self._account(example) for example in examples]
        # Examples that do not count must not take weight from those that do: otherwise spam could bury an item.
        counting = [example for example, (left_out, _) in zip(examples, outcomes, strict=True) if not left_out]
        users = Counter(example.user_id for example in counting)
        items = Counter(
            example.item_id
            for example, (left_out, vouched) in zip(examples, outcomes, strict=True)
            if not (left_out or vouched)
        )
        weighed = []
        for example, (left_out, vouched) in zip(examples, outcomes, strict=True):
            weight = 0.0
            if not left_out:
                item_events = 0 if vouched else items[example.item_id]
                weight = self._batch_weight(example, users[example.user_id], item_events, len(counting))
            weighed.append(example if weight == example.weight else replace(example, weight=weight, left_out=left_out))
        return weighed

    def _account(self, example: Example) -> tuple[str, bool]:
        """Enter an event into the accounts; return its outcome if it does not count, and whether it is vouched."""
        user, item, stream = self._users.touch(example.user_id), self._items.touch(example.item_id), self._stream
        # A producer may state any time, but nothing happens after it was published.
        stream.advance(min(example.ts, example.publish_ts_ms, self._now_ms), self._memory_ms)
        item.advance(stream.at_ms, self._memory_ms)
        stream.hour_events += 1
        pair = user.record(example.item_id, stream.hour, is_purchase=example.kind == "purchase")
        if user.doubted:
            self._vouch_for_earlier(user)
        rule, vouched = self._violated_rule(example, user, item, pair)
        if rule is not None:
            self._downweighted[rule] += 1
            self._note(rule, example.user_id, example.item_id, left_out=True)
            return self._outcome(rule, example.item_id), vouched
        if user.events - pair.events >= self._settings.vouch_events:
            self._add_shopper(item, user)
        return "", vouched

    def _outcome(self, rule: str, item_id: str) -> str:
        is_quarantined = rule == "quarantine" or (rule == "item_burst" and f"item/{item_id}" in self.quarantined)
        return "quarantined" if is_quarantined else "capped"

    def _add_shopper(self, item: ItemAccount, user: UserAccount) -> None:
        """Count a user among the shoppers who look at an item: about once with all events of an hour."""
        shopper = 1 / user.hour_events
        item.add_shoppers(shopper)
        self._stream.add_shoppers(shopper)

    def _vouch_for_earlier(self, user: UserAccount) -> None:
        """Count earlier events as vouched for whose items the user vouches for by now."""
        for item_id, counted, refused in user.newly_vouched(self._limits.events_to_vouch):
            item = self._items.get(item_id)
            for account in (item, self._stream):
                account.add_vouched(counted + refused, of_unvouched=counted)
            self._add_shopper(item, user)

    def _violated_rule(
        self, example: Example, user: UserAccount, item: ItemAccount, pair: PairAccount
    ) -> tuple[str | None, bool]:
        """Return the rule by which an event does not count, if any, and whether the event is vouched."""
        if self.quarantined and f"user/{example.user_id}" in self.quarantined:
            return "quarantine", False
        rule, vouched = self._violated_by_user(example, user, item, pair), False
        if rule is None:
            rule, vouched = self._violated_by_item(example, user, item, pair)
        if rule in ("user_item", "item_burst"):
            user.strikes += 1
            limit = self._settings.user_quarantine_events
            if user.strikes >= limit:
                self._add_quarantine(f"user/{example.user_id}", example, rule, user.strikes, limit)
        return rule, vouched

    def _violated_by_user(self, event: Example, user: UserAccount, item: ItemAccount, pair: PairAccount) -> str | None:
        key, limit = f"user/{event.user_id}", self._settings.user_hour_events
        if self._is_trusted(key):
            return None
        if user.hour_events > limit:
            if user.hour_events >= _BOT_HOURS * limit:
                self._add_quarantine(key, event, "user_hour", user.hour_events, limit)
            return "user_hour"
        if pair.hour_looks <= self._settings.user_item_hour_events:
            return None
        return "user_item" if pair.hour_looks > TIMES_OTHERS * self._limits.spread(item) * user.hour_events else None

    def _violated_by_item(
        self, example: Example, user: UserAccount, item: ItemAccount, pair: PairAccount
    ) -> tuple[str | None, bool]:
        if self._limits.vouches(user, example.item_id, item):
            item.vouched += 1
            self._stream.vouched += 1
            return None, True
        rule = None
        if not self._is_trusted(f"item/{example.item_id}"):
            if not example.shown and item.unvouched + 1 > self._burst_limit(example.item_id, item):
                self._record_excess(example, item)
                rule = "item_burst"
            elif item.hour_events >= self._limits.hourly(item):
                rule = "item_hour"
        if rule is None:
            item.hour_events += 1
            item.unvouched += 1
            self._stream.unvouched += 1
        user.doubt(pair, counted=rule is None)
        return rule, False

    def _burst_limit(self, item_id: str, item: ItemAccount) -> float:
        return 0.0 if f"item/{item_id}" in self.quarantined else self._limits.burst(item)

    def _record_excess(self, example: Example, item: ItemAccount) -> None:
        """Count an event beyond the burst limit; quarantine the item once these are too many."""
        item.excess += 1
        allowed = _QUARANTINE_FACTOR * self._burst_limit(example.item_id, item)
        limit = self._settings.item_quarantine_events
        # Where many users land and most leave at once, those who stay are too many to be spam.
        if item.excess >= max(limit, allowed, item.vouched):
            self._add_quarantine(f"item/{example.item_id}", example, "item_burst", item.excess, limit)

    def _batch_weight(self, example: Example, user_events: int, item_events: int, batch_events: int) -> float:
        """Return the weight of an example that counts: events beyond a limit share the limit's weight.

        Args:
            example: the example to weigh.
            user_events: the number of the user's events in the micro-batch.
            item_events: the number of the item's events in it that are not vouched for.
            batch_events: the number of all its events that count.
        """
        settings, weight = self._settings, 1.0
        if user_events > settings.user_batch_events:
            weight = settings.user_batch_events / user_events
            self._note_downweighted("user_batch", example.user_id, example.item_id)
        if item_events > settings.item_batch_events:
            limit = self._limits.batch(example.item_id, batch_events)
            if item_events > limit:
                weight = min(weight, limit / item_events)
                self._note_downweighted("item_batch", example.user_id, example.item_id)
        return weight

    def _note_downweighted(self, rule: str, user_id: str, item_id: str) -> None:
        self._downweighted[rule] += 1
        self._note(rule, user_id, item_id, left_out=False)

    def _note(self, rule: str, user_id: str, item_id: str, *, left_out: bool) -> None:
        key = f"item/{item_id}" if rule.startswith("item_") else f"user/{user_id}"
        self._caps.note(key, rule, self._stream.hour, left_out=left_out)

    # ---- lists

    def weigh_lists(self, lists: Sequence[ShownList]) -> list[ShownList]:
        """Weigh the lists of a slice; a list has weight 0 if one of its clicks would not count now."""
        users = Counter(shown.user_id for shown in lists)
        return [self._weigh_list(shown, users[shown.user_id]) for shown in lists]

    def _weigh_list(self, shown: ShownList, user_lists: int) -> ShownList:
        limit = self._settings.user_batch_events
        rule, item_id = self._violated_by_list(shown)
        if rule is not None:
            self._downweighted[rule] += 1
            self._note(rule, shown.user_id, item_id, left_out=True)
            return replace(shown, weight=0.0, left_out="quarantined" if rule == "quarantine" else "capped")
        if user_lists > limit:
            self._note_downweighted("user_batch", shown.user_id, "")
            return replace(shown, weight=limit / user_lists)
        return shown

    def _violated_by_list(self, shown: ShownList) -> tuple[str | None, str]:
        """Return the rule by which a list does not count, if any, and the item that violates it."""
        if f"user/{shown.user_id}" in self.quarantined:
            return "quarantine", ""
        user = self._users.get(shown.user_id)
        for item_id, clicked, bought in zip(shown.item_ids, shown.clicked, shown.bought, strict=True):
            if (clicked or bought) and self._is_capped(item_id, user):
                return "item_hour", item_id
        return None, ""

    def _is_capped(self, item_id: str, user: UserAccount) -> bool:
        """Return whether an event with an item that this user was shown would be left out now."""
        item = self._items.get(item_id)
        if item.hour < self._stream.hour or item.hour_events < self._limits.hourly(item):
            return False
        return not (self._limits.vouches(user, item_id, item) or self._is_trusted(f"item/{item_id}"))

    # ---- quarantine

    @property
    def quarantined(self) -> dict[str, Quarantine]:
        """The reason for each quarantine, by `user/<pseudonym>` or `item/<item id>`."""
        return self._quarantine.entries

    def _add_quarantine(self, key: str, example: Example, reason: str, count: float, limit: float) -> None:
        if key not in self.quarantined and not self._is_trusted(key):
            self._quarantine.add(key, example, reason=reason, count=count, limit=limit)

    def _is_trusted(self, key: str) -> bool:
        return self._quarantine.is_trusted(key, self._stream.at_ms)

    def newly_quarantined(self) -> list[Quarantined]:
        """Return the quarantines since the last call."""
        return self._quarantine.take_new()

    def release(self, key: str) -> None:
        """Release a user or an item from quarantine; all its events count for `memory_hours`.

        An item can also be released in advance, before a campaign; a user cannot.

        Args:
            key: `user/<pseudonym>` or `item/<item id>`.
        """
        was_quarantined = self._quarantine.release(key)
        kind, _, name = key.partition("/")
        if kind != "user":
            self._items.get(name).excess = 0.0
        elif was_quarantined:
            self._users.get(name).strikes = 0.0
        else:
            return
        self._quarantine.trust(key, self._stream.at_ms + int(self._memory_ms))

    def forget(self, user_id: str) -> None:
        """Drop everything about a user."""
        self._users.drop(user_id)
        self._quarantine.forget(f"user/{user_id}")
        self._caps.drop(f"user/{user_id}")

    # ---- counts and state

    @property
    def caps(self) -> list[Cap]:
        """The users and items that are capped in this hour of event time and the one before, the largest first."""
        return self._caps.current(self._stream.hour)

    def newly_capped(self) -> list[Cap]:
        """Return the users and items of which something was left out for the first time in an hour of event time."""
        return self._caps.take_new()

    @property
    def downweighted(self) -> dict[str, int]:
        """The number of events that count less or not at all, by rule."""
        return {rule: self._downweighted[rule] for rule in RULES}

    @property
    def quarantines(self) -> dict[str, int]:
        """The number of quarantines since the start, by kind."""
        return {kind: self._quarantine.counts[kind] for kind in KINDS}

    @property
    def in_quarantine(self) -> dict[str, int]:
        """The number of users and items in quarantine now, by kind."""
        return self._quarantine.sizes()

    def state(self) -> dict[str, Any]:
        """Return the state in a form that JSON can hold."""
        return {
            "users": self._users.state(),
            "items": self._items.state(),
            "stream": self._stream.to_row(),
            **self._quarantine.state(),
            "downweighted": dict(self._downweighted),
            "caps": self._caps.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        self._users.restore(state["users"])
        self._items.restore(state["items"])
        self._limits.stream = ItemAccount.from_row(state["stream"])
        self._quarantine.restore(state)
        self._downweighted = Counter(state["downweighted"])
        self._caps.restore(state.get("caps", []))  # earlier releases stored none
