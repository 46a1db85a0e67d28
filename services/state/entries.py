"""What is kept of a shopper in Redis: a list of what they did, newest first, each entry by itself.

Sessions are no part of it: they follow from the events, the same way wherever a ranking is made. An entry names its
event, so that one that comes twice counts once, and its time of publication, so that a shopper who was forgotten stays
so whatever is still to be read.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from streams.events import Click, Purchase

FORMAT = "1"
KEPT_EVENTS = 160  # more than a ranking looks at: some are of items that are not known yet, or came twice
KEPT_PURCHASES = 500
DIGEST_BYTES = 8


@dataclass(frozen=True, slots=True)
class Entry:
    """A click or a purchase.

    Attributes:
        kind: click or purchase.
        event: Digest of kind and event id, or of order and item.
        ts_ms: Event time, epoch milliseconds.
        publish_ts_ms: When it was published, epoch milliseconds.
        session_id: Pseudonym of the session, where one is known.
        item_id: Which item.
    """

    kind: str
    event: str
    ts_ms: int
    publish_ts_ms: int
    session_id: str | None
    item_id: str


def pack_entry(event: Click | Purchase, *, publish_ts_ms: int, pseudonymise: Callable[[str], str]) -> str:
    """An event as an entry of its shopper's list."""
    identity = event.order_line() or f"{event.KIND}/{event.event_id}"
    digest = blake2b(identity.encode(), digest_size=DIGEST_BYTES).hexdigest()
    session_id = None if event.session_id is None else pseudonymise(event.session_id)
    entry = [event.KIND, digest, event.ts, publish_ts_ms, session_id, event.item_id]
    return json.dumps(entry, ensure_ascii=False, separators=(",", ":"))


def unpack_entries(entries: Sequence[str]) -> tuple[list[Entry], int]:
    """Entries, in the order given, and how many of them are no entries."""
    found, refused = [], 0
    for entry in entries:
        try:
            found.append(_entry(json.loads(entry)))
        except (ValueError, TypeError, RecursionError):
            refused += 1
    return found, refused


def _entry(parsed: object) -> Entry:
    match parsed:
        case [str(kind), str(event), int(ts_ms), int(publish_ts_ms), str() | None as session_id, str(item_id)]:
            return Entry(kind, event, ts_ms, publish_ts_ms, session_id, item_id)
    raise ValueError("not an entry")
