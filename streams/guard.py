"""What a user or an item may weigh in what is learnt, so that nobody clicks an item to the top.

Volume alone says nothing: there are bestsellers, and baskets of hundreds of items. What is told apart is attention
that comes from nowhere. A user **vouches** for an item once each event with it is matched by `vouch_events`
with other items, before or after; who comes for one item alone, once or often, does not. Under however many ids spam
comes, its users do not vouch for what it is about, and honest users do, of a bestseller as of all else. So of the
events of users who do not vouch, `U` that counted in the stream, an item is allowed a few, and about its share of all
other attention, the vouched `V`:

    allowed_i = burst_events * (1 + 2 U / V) + burst_factor * U * (V_i + 0.1 (U_i + V_i)) / (V + 0.1 (U + V))

`U / V` and 0.1 are for streams in which hardly anybody vouches, because people come,
click once and go: there an item is measured by itself, and the rule fades out. All these counts fade with
`memory_hours`, in event time.

| rule | of what goes beyond |
|---|---|
| `user_hour`, `user_item`, `item_hour`: events in an hour | nothing counts |
| `item_burst`: `allowed`, above | nothing counts; in quarantine nothing of users who do not vouch |
| `user_batch`, `item_batch`: events in a batch | all of them share the limit's weight |
| `quarantine`: a user in quarantine | nothing counts |

An item in quarantine still counts for users who vouch for it: else spam would be a way to bury what a rival sells.
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
from streams.guard_accounts import HOUR_MS, Accounts, ItemAccount, PairAccount, UserAccount
from streams.joiner import Example, ShownList

RULES = ("user_batch", "user_hour", "user_item", "item_batch", "item_hour", "item_burst", "quarantine")
KINDS = ("user", "item")

_OWN_SHARE = 0.1  # of an item's own past, where vouching is rare
_BOT_HOURS = 10  # times `user_hour_events` in one hour: no basket is that large
_QUARANTINE_FACTOR = 5  # times what an item is allowed


class GuardSettings(BaseModel):
    """What a user or an item may weigh in what is learnt, and from where on it is in quarantine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    user_batch_events: int = Field(default=128, ge=1, description="of one user in a batch; more share the weight")
    user_hour_events: int = Field(default=2_000, ge=1, description="of one user in an hour that count")
    user_item_hour_events: int = Field(default=5, ge=1, description="of one user with one item in an hour that count")
    item_batch_events: int = Field(default=32, ge=1, description="of one item in a batch; more share the weight")
    item_hour_events: int = Field(
        default=20, ge=1, description="of one item in an hour that count, beside its share and its usual"
    )
    item_hour_share: float = Field(default=0.05, ge=0, le=1, description="of the hour's events that count for one item")
    item_hour_factor: float = Field(
        default=10.0, ge=1, description="times an item's usual hour that count, and times an even share of an hour"
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
        """Weights of a slice's positives, in their order; what does not count has the weight 0."""
        rules = [self._rule(example) for example in examples]
        # What does not count must not take weight from what does: else spam could bury an item.
        counting = [example for example, rule in zip(examples, rules, strict=True) if rule is None]
        users = Counter(example.user_id for example in counting)
        items = Counter(example.item_id for example in counting)
        return [
            _weighed(example, 0.0 if rule else self._shared(users[example.user_id], items[example.item_id]))
            for example, rule in zip(examples, rules, strict=True)
        ]

    def _rule(self, example: Example) -> str | None:
        """The rule by which an event does not count, None if it does; it is in the accounts then."""
        user, item = self._users.touch(example.user_id), self._items.touch(example.item_id)
        # A producer may say what time it likes, but nothing happens after it was published.
        self._stream.advance(min(example.ts, example.publish_ts_ms, self._now_ms), self._memory_ms)
        item.advance(self._stream.at_ms, self._memory_ms)
        self._stream.hour_events += 1
        pair = user.see(example.item_id, self._stream.hour)
        self._believe(user)
        rule = self._broken(example, user, item, pair)
        if rule is not None:
            self._downweighted[rule] += 1
        return rule

    def _believe(self, user: UserAccount) -> None:
        """Believe earlier events with items that a user vouches for by now."""
        for item_id, counted, refused in user.newly_vouched(self._settings.vouch_events):
            for account in (self._items.get(item_id), self._stream):
                account.believe(counted + refused, of_unvouched=counted)

    def _broken(self, example: Example, user: UserAccount, item: ItemAccount, pair: PairAccount) -> str | None:
        if f"user/{example.user_id}" in self.quarantined:
            return "quarantine"
        rule = self._broken_by_user(example, user, pair) or self._broken_by_item(example, user, item, pair)
        if rule in ("user_item", "item_burst"):
            user.strikes += 1
            if user.strikes >= self._settings.user_quarantine_events:
                self._quarantine("user", example.user_id, example, rule, user.strikes)
        return rule

    def _broken_by_user(self, example: Example, user: UserAccount, pair: PairAccount) -> str | None:
        if self._is_trusted(f"user/{example.user_id}"):
            return None
        if user.hour_events > self._settings.user_hour_events:
            if user.hour_events >= _BOT_HOURS * self._settings.user_hour_events:
                self._quarantine("user", example.user_id, example, "user_hour", user.hour_events)
            return "user_hour"
        return "user_item" if pair.hour_events > self._settings.user_item_hour_events else None

    def _broken_by_item(self, example: Example, user: UserAccount, item: ItemAccount, pair: PairAccount) -> str | None:
        trusted = self._is_trusted(f"item/{example.item_id}")
        vouched = user.vouches_for(example.item_id, self._settings.vouch_events)
        rule = None
        if not (vouched or trusted) and item.unvouched + 1 > self._allowed(example.item_id, item):
            self._exceed(example, item)
            rule = "item_burst"
        elif not trusted and item.hour_events >= self._hourly(item):
            rule = "item_hour"
        else:
            item.count(vouched=vouched)
            self._stream.vouched += vouched
            self._stream.unvouched += not vouched
        if not vouched:
            user.doubt(pair, counted=rule is None)
        return rule

    def _hourly(self, item: ItemAccount) -> float:
        """Events of an item in an hour that count."""
        settings, stream = self._settings, self._stream
        usual = item.events * 0.693 / settings.memory_hours  # ln 2: what fades in an hour is what came in one
        share = max(settings.item_hour_share, settings.item_hour_factor / len(self._items))
        of_hour = share * max(stream.hour_events, stream.hour_before)
        return settings.item_hour_events + of_hour + settings.item_hour_factor * usual

    def _allowed(self, item_id: str, item: ItemAccount) -> float:
        """Fading count of an item's events that may come from users who do not vouch for it."""
        if f"item/{item_id}" in self.quarantined:
            return 0.0
        stream, settings = self._stream, self._settings
        attention = stream.vouched + _OWN_SHARE * stream.events
        share = (item.vouched + _OWN_SHARE * item.events) / attention if attention else 0.0
        few = settings.burst_events * (1 + 2 * stream.unvouched / (1 + stream.vouched))
        return few + settings.burst_factor * stream.unvouched * share

    def _exceed(self, example: Example, item: ItemAccount) -> None:
        item.excess += 1
        allowed = _QUARANTINE_FACTOR * self._allowed(example.item_id, item)
        # Where many land and most go at once, those who stay are too many to be spam.
        if item.excess >= max(self._settings.item_quarantine_events, allowed, item.vouched):
            self._quarantine("item", example.item_id, example, "item_burst", item.excess)

    def _shared(self, user_batch: int, item_batch: int) -> float:
        weight = 1.0
        for rule, count in (("user_batch", user_batch), ("item_batch", item_batch)):
            limit = self._settings.user_batch_events if rule == "user_batch" else self._settings.item_batch_events
            if count > limit:
                self._downweighted[rule] += 1
                weight = min(weight, limit / count)
        return weight

    # ---- lists

    def weigh_lists(self, lists: Sequence[ShownList]) -> list[ShownList]:
        """Weights of a slice's lists: 0 where a click in it would not count now."""
        users = Counter(shown.user_id for shown in lists)
        return [self._weighed_list(shown, users[shown.user_id]) for shown in lists]

    def _weighed_list(self, shown: ShownList, user_batch: int) -> ShownList:
        limit = self._settings.user_batch_events
        rule = self._broken_by_list(shown) or ("user_batch" if user_batch > limit else None)
        if rule is None:
            return shown
        self._downweighted[rule] += 1
        return replace(shown, weight=limit / user_batch if rule == "user_batch" else 0.0)

    def _broken_by_list(self, shown: ShownList) -> str | None:
        if f"user/{shown.user_id}" in self.quarantined:
            return "quarantine"
        user = self._users.get(shown.user_id)
        answered = zip(shown.item_ids, shown.clicked, shown.bought, strict=True)
        chosen = [item_id for item_id, clicked, bought in answered if clicked or bought]
        return "item_burst" if any(self._is_spam(item_id, user) for item_id in chosen) else None

    def _is_spam(self, item_id: str, user: UserAccount) -> bool:
        if user.vouches_for(item_id, self._settings.vouch_events) or self._is_trusted(f"item/{item_id}"):
            return False
        item = self._items.get(item_id)
        return item.unvouched + 1 > self._allowed(item_id, item)

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

    # ---- counts and state

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


def _weighed(example: Example, weight: float) -> Example:
    return example if weight == example.weight else replace(example, weight=weight)


def _keep_newest(kept: dict[str, Any], limit: int) -> None:
    while len(kept) > limit:
        del kept[next(iter(kept))]
