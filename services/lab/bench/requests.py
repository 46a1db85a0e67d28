"""Requests as a storefront would have sent them when the events of a data set happened."""

import json
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from streams.events import Click, Event, Impression, Item, Purchase

CANDIDATES = 100
TOP = 20
SESSION_ITEMS = 50


@dataclass(frozen=True, slots=True)
class StorefrontRequest:
    """A request of a storefront.

    Attributes:
        shopper: `user_id`, `session_id`, `session_items` (oldest first) and `ts` of the request.
        offered: items that were shown then, or the one that was clicked or bought.
    """

    shopper: dict[str, Any]
    offered: tuple[str, ...]

    def rank(self, candidates: Sequence[str]) -> str:
        """Return the body of a `/v1/rank`."""
        return json.dumps({**self.shopper, "candidates": list(candidates)})

    def recommend(self, k: int = TOP) -> str:
        """Return the body of a `/v1/recommend`."""
        return json.dumps({**self.shopper, "k": k})


def requests_before(events: Iterable[Event], *, newest: int) -> list[StorefrontRequest]:
    """Return the requests just before events: before each list was shown, or if there are none, before each purchase.

    Args:
        events: the events in order.
        newest: number of requests to return, the newest.
    """
    lists: deque[StorefrontRequest] = deque(maxlen=newest)
    singles: deque[StorefrontRequest] = deque(maxlen=newest)
    sessions: dict[str, list[str]] = {}
    for event in events:
        if isinstance(event, Impression):
            lists.append(StorefrontRequest(_shopper(event, sessions), tuple(shown["item_id"] for shown in event.items)))
        elif isinstance(event, Click | Purchase):
            singles.append(StorefrontRequest(_shopper(event, sessions), (event.item_id,)))
            sessions.setdefault(_session(event), []).append(event.item_id)
    return list(lists or singles)


def rank_bodies(requests: Sequence[StorefrontRequest], items: Sequence[Item], *, seed: int = 0) -> list[str]:
    """Return bodies of `/v1/rank`: the items offered then, with other items up to 100 candidates, shuffled."""
    chance = np.random.default_rng(seed)
    ids = [item.item_id for item in items]
    bodies = []
    for request in requests:
        others = (ids[row] for row in chance.choice(len(ids), size=min(CANDIDATES, len(ids)), replace=False))
        candidates = list(dict.fromkeys([*request.offered, *others]))[:CANDIDATES]
        chance.shuffle(candidates)
        bodies.append(request.rank(candidates))
    return bodies


def _shopper(event: Impression | Click | Purchase, sessions: dict[str, list[str]]) -> dict[str, Any]:
    session = sessions.get(_session(event), [])[-SESSION_ITEMS:]
    known = {"user_id": event.user_id, "session_id": event.session_id, "session_items": session, "ts": event.ts}
    return {name: value for name, value in known.items() if value is not None}


def _session(event: Impression | Click | Purchase) -> str:
    return event.session_id or event.user_id
