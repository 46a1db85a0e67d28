"""Limits of the guard, computed from the accounts of users, items and the stream.

**Burst limit** (`item_burst`). Let `U` be the events in the stream that counted from users who do not vouch, and `V`
the vouched events. Of unvouched events, an item may have a few, plus as many as the shoppers who lately vouched for it
beyond its usual number (`R_i`), plus about its share of vouched attention:

    burst_events * (1 + 2 U / V) + R_i + burst_factor * U * (V_i + 0.1 (U_i + V_i)) / (V + 0.1 (U + V))

`U / V` and 0.1 are for streams in which hardly anybody vouches, because people come, click once and leave: there an
item is measured by its own past, and the rule fades out.

**Hourly limit** (`item_hour`), for events of users who do not vouch: a share of the hour, plus ten times the share that
the item has in all events so far.

**Shopper limit** (`user_item`): a user counts a few times an hour with one item, or four times as often as others look
at it. The attention of others is measured by shoppers, not by events: a shopper's n-th event in an hour adds 1/n, so
that a few busy users cannot raise it.
"""

from __future__ import annotations

from streams.guard_accounts import Accounts, ItemAccount, UserAccount
from streams.guard_settings import GuardSettings

TIMES_OTHERS = 4  # attention of a user to an item, as a multiple of that of other shoppers
_OWN_SHARE = 0.1  # weight of an item's own past where vouching is rare
_UNKNOWN_SHOPPERS = 4  # shoppers without history that are added, so that the first few shoppers weigh little


class GuardLimits:
    """The limits that apply to an item at the present state of the accounts.

    Args:
        settings: the limits of users and items.
        items: the accounts of the items; changed by the guard.

    Attributes:
        stream: the account of the whole stream.
    """

    def __init__(self, settings: GuardSettings, items: Accounts[ItemAccount]) -> None:
        self._settings, self._items = settings, items
        self.stream = ItemAccount()

    def spread(self, item: ItemAccount) -> float:
        """Return the share of an item in what shoppers look at, each shopper counted about once an hour."""
        return item.spread / (self.stream.spread + _UNKNOWN_SHOPPERS)

    def events_to_vouch(self, item_id: str) -> float:
        """Return the number of events with other items that vouch for one event with this item."""
        item = self._items.get(item_id)
        recent = item.recent_spread / (self.stream.recent_spread + _UNKNOWN_SHOPPERS)
        spread = max(self.spread(item), recent)
        most = self._settings.vouch_events
        return most if spread * (1 + TIMES_OTHERS * most) <= 1 else max(0.5, (1 / spread - 1) / TIMES_OTHERS)

    def vouches(self, user: UserAccount, item_id: str, item: ItemAccount) -> bool:
        """Return whether a user vouches for an item."""
        if user.vouches_for(item_id, self._settings.vouch_events):
            return True
        return item.spread > 0 and user.vouches_for(item_id, self.events_to_vouch(item_id))

    def usual_share(self, item: ItemAccount) -> float:
        """Return the share of an item in all events that counted."""
        return item.events / self.stream.events if self.stream.events else 0.0

    def hourly(self, item: ItemAccount) -> float:
        """Return the number of an item's events that count in an hour from users who do not vouch for it."""
        settings = self._settings
        even_share = settings.item_hour_factor / max(1, len(self._items))
        share = max(settings.item_hour_share, even_share) + settings.item_hour_factor * self.usual_share(item)
        return settings.item_hour_events + share * max(self.stream.hour_events, self.stream.hour_before)

    def burst(self, item: ItemAccount) -> float:
        """Return the fading count of an item's events that count from users who do not vouch for it."""
        stream, settings = self.stream, self._settings
        attention = stream.vouched + _OWN_SHARE * stream.events
        share = (item.vouched + _OWN_SHARE * item.events) / attention if attention else 0.0
        base = settings.burst_events * (1 + 2 * stream.unvouched / (1 + stream.vouched))
        return base + self._surge(item) + settings.burst_factor * stream.unvouched * share

    def batch(self, item_id: str, batch_events: int) -> float:
        """Return the number of an item's events in a micro-batch that have full weight without being vouched for.

        Args:
            item_id: the item of the events.
            batch_events: the number of events in the micro-batch that count.
        """
        usual = self._settings.item_hour_factor * self.usual_share(self._items.get(item_id))
        return max(self._settings.item_batch_events, usual * batch_events)

    def _surge(self, item: ItemAccount) -> float:
        """Return how many more shoppers than usual vouched for an item in the last two hours."""
        usual = item.spread / self.stream.spread if self.stream.spread else 0.0
        return max(0.0, item.recent_spread - usual * self.stream.recent_spread)
