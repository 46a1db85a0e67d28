"""Deduplication of events by their ids, over restarts."""

from hashlib import blake2b

from streams.join_store import JoinStore
from streams.pending_impressions import DIGEST_BYTES
from streams.recent_ids import RecentIds


class Deduplicator:
    """The newest event ids: their digests in memory, and in the store for the next start.

    Args:
        store: the join store that keeps the digests.
        horizon: the number of event ids that are remembered; a repeat from further back counts as new.
    """

    def __init__(self, store: JoinStore, horizon: int) -> None:
        self._store, self._horizon = store, horizon
        self._recent_ids = RecentIds(horizon)
        self._recent_ids.update(map(_as_number, store.digests(horizon)))

    def is_new(self, event: str) -> bool:
        """Remember the id of an event. Returns False if it was remembered already."""
        digest = blake2b(event.encode(), digest_size=DIGEST_BYTES).digest()
        if not self._recent_ids.add(_as_number(digest)):
            return False
        self._store.add_digest(digest)
        return True

    def trim(self) -> None:
        """Drop the stored digests beyond the horizon."""
        self._store.trim_digests(self._horizon)


def _as_number(digest: bytes) -> int:
    return int.from_bytes(digest, "little")
