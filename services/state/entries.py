"""Encoding of a shopper's clicks and purchases in Redis: a list of entries, newest first.

Sessions are not stored: they are derived from the events. An entry names its event, so that a duplicate counts once,
and its time of publication, so that a forgotten shopper stays forgotten whatever is still to be read.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from streams.events import Click, Purchase

FORMAT = "1"
KEPT_EVENTS = 160  # more than a ranking uses: some are of unknown items, or duplicates
KEPT_PURCHASES = 500
DIGEST_BYTES = 8


@dataclass(frozen=True, slots=True)
class Entry:
    """A click or a purchase.

    Attributes:
        kind: the kind of the event, `click` or `purchase`.
        event: the digest of kind and event id, or of order and item.
        ts_ms: the event time, epoch milliseconds.
        publish_ts_ms: the time of publication, epoch milliseconds.
        session_id: the pseudonym of the session, if it is known.
        item_id: the id of the item.
    """

    kind: str
    event: str
    ts_ms: int
    publish_ts_ms: int
    session_id: str | None
    item_id: str


def pack_entry(event: Click | Purchase, *, publish_ts_ms: int, pseudonymise: Callable[[str], str]) -> str:
    """Encode an event as an entry of its shopper's list."""
    identity = event.order_line() or f"{event.KIND}/{event.event_id}"
    digest = blake2b(identity.encode(), digest_size=DIGEST_BYTES).hexdigest()
    session_id = None if event.session_id is None else pseudonymise(event.session_id)
    entry = [event.KIND, digest, event.ts, publish_ts_ms, session_id, event.item_id]
    return json.dumps(entry, ensure_ascii=False, separators=(",", ":"))


def unpack_entries(entries: Sequence[str]) -> tuple[list[Entry], int]:
    """Decode entries, in the order given, and count those that cannot be decoded."""
    decoded, rejected = [], 0
    for entry in entries:
        try:
            decoded.append(_entry(json.loads(entry)))
        except (ValueError, TypeError, RecursionError):
            rejected += 1
    return decoded, rejected


def _entry(parsed: object) -> Entry:
    match parsed:
        case [str(kind), str(event), int(ts_ms), int(publish_ts_ms), str() | None as session_id, str(item_id)]:
            return Entry(kind, event, ts_ms, publish_ts_ms, session_id, item_id)
    raise ValueError("not an entry")
