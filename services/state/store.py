"""Shoppers' states in Redis or Valkey, and the offsets that they were written from.

| key | value |
|---|---|
| `<prefix>:shopper:<pseudonym>` | list of entries, newest first |
| `<prefix>:bought:<pseudonym>` | the same of purchases alone |
| `<prefix>:written` | hash: `format`, `secret`, `beat`; `<topic>/<partition>`, the next offset of each; `<topic>/id`, \
the cluster and the topic that the offsets belong to |
| `<prefix>:writer` | who writes, until when |

States and offsets change in one transaction, and only from the offsets that the writer had before. So each record of
the log counts once, whoever is killed when, and a Redis put back to an older state goes on from that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, cast

from services.settings.state import StateSettings
from services.state.client import connect, display_url, redis_errors
from services.state.entries import FORMAT, KEPT_EVENTS, KEPT_PURCHASES
from services.state.errors import StateConflictError, StateMismatchError
from streams.offsets import Offsets, decode_offsets, encode_offsets, is_partition_name, partition_name

if TYPE_CHECKING:
    from redis import Redis
    from redis.client import Pipeline

LEASE_SECONDS = 5.0
DAY_SECONDS = 86_400
_ID = "/id"  # no topic and no partition has a slash in its name

_Encodable = bytes | bytearray | memoryview | str | int | float  # as the client's types have it


@dataclass(slots=True)
class Changes:
    """What a part of the log changes.

    Attributes:
        forgotten: Pseudonyms whose lists go before anything is added.
        added: New entries by pseudonym, oldest first.
        bought: The purchases among them.
    """

    forgotten: set[str] = field(default_factory=set)
    added: dict[str, list[str]] = field(default_factory=dict)
    bought: dict[str, list[str]] = field(default_factory=dict)

    def forget(self, user_id: str) -> None:
        """Have a shopper's lists go, with what was to be added."""
        self.forgotten.add(user_id)
        self.added.pop(user_id, None)
        self.bought.pop(user_id, None)

    def add(self, user_id: str, entry: str, *, is_purchase: bool) -> None:
        """Have an entry added."""
        self.added.setdefault(user_id, []).append(entry)
        if is_purchase:
            self.bought.setdefault(user_id, []).append(entry)


class StateStore:
    """What a writer writes to, and what scorers look at. Safe to be used from several threads.

    Args:
        settings: Which Redis, and under which prefix.
        fingerprint: Of the secret that pseudonyms are made with.
        timeout_seconds: For each answer.

    Raises:
        StateError: The client library is not installed, or the address is none.
    """

    def __init__(self, settings: StateSettings, *, fingerprint: str, timeout_seconds: float) -> None:
        self._settings, self.fingerprint = settings, fingerprint
        self._client: Redis = connect(settings, timeout_seconds=timeout_seconds)
        self._written, self._lease = f"{settings.prefix}:written", f"{settings.prefix}:writer"
        self._keep_seconds = max(1, int(settings.keep_days * DAY_SECONDS))

    def close(self) -> None:
        """Let go of the connections."""
        self._client.close()

    # ---- reading

    def entries(self, user_id: str) -> list[str]:
        """What is kept of a shopper, newest first.

        Raises:
            StateUnavailableError: Redis does not answer.
            StateRefusedError: It does not give this shopper's list.
        """
        with redis_errors(self._settings):
            return cast(list[str], self._client.lrange(self._shopper(user_id), 0, KEPT_EVENTS - 1))

    def bought(self, user_id: str) -> list[str]:
        """The purchases that are kept of a shopper, newest first.

        Raises:
            StateUnavailableError: Redis does not answer.
            StateRefusedError: It does not give this shopper's list.
        """
        with redis_errors(self._settings):
            return cast(list[str], self._client.lrange(self._bought(user_id), 0, KEPT_PURCHASES - 1))

    def beat(self) -> str | None:
        """What changes for as long as a writer writes; None where nothing was written yet.

        Raises:
            StateUnavailableError: Redis does not answer.
            StateMismatchError: What is there was written in another format, or under another secret.
        """
        return self._checked().get("beat")

    def offsets(self) -> Offsets:
        """The next offset of each partition; empty where nothing was written yet.

        Raises:
            StateUnavailableError: Redis does not answer.
            StateMismatchError: What is there was written in another format, or under another secret.
        """
        return _offsets(self._checked())

    def topic_ids(self) -> dict[str, str]:
        """Return the identity of the log that each topic's offsets belong to, where it was known.

        Raises:
            StateUnavailableError: Redis does not answer.
            StateMismatchError: What is there was written in another format, or under another secret.
        """
        written = self._checked()
        return {name.removesuffix(_ID): value for name, value in written.items() if name.endswith(_ID)}

    def _checked(self) -> dict[str, str]:
        with redis_errors(self._settings):
            written = cast(dict[str, str], self._client.hgetall(self._written))
        for name, expected in (("format", FORMAT), ("secret", self.fingerprint)):
            if written and written.get(name) != expected:
                raise StateMismatchError(
                    f"`{self._written}` at {display_url(self._settings)} must have {name} {expected!r}, got "
                    f"{written.get(name)!r}; give all processes one `privacy.secret`, or take another `state.prefix`"
                )
        return written

    # ---- writing

    def claim(self, writer: str) -> bool:
        """Whether a writer may write for the next few seconds: one at a time, the others stand by.

        Raises:
            StateUnavailableError: Redis does not answer.
            StateRefusedError: It does not do as it is told.
        """
        lease_ms = int(LEASE_SECONDS * 1000)
        with redis_errors(self._settings):
            if self._client.set(self._lease, writer, nx=True, px=lease_ms):
                return True
            if self._client.get(self._lease) != writer:
                return False
            return bool(self._client.pexpire(self._lease, lease_ms))

    def release(self, writer: str) -> None:
        """Let another writer write at once.

        Raises:
            StateUnavailableError: Redis does not answer.
            StateRefusedError: It does not do as it is told.
        """
        with redis_errors(self._settings):
            if self._client.get(self._lease) == writer:
                self._client.delete(self._lease)

    def write(
        self,
        changes: Changes,
        *,
        before: Offsets,
        after: Offsets,
        beat: str,
        topic_ids: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Write what a part of the log changes, and where it ended: all of it or nothing.

        Args:
            changes: Of all records from `before` to `after`.
            before: The offsets that Redis is to have now.
            after: Those that it has then; the others of `before` go.
            beat: Something else each time.
            topic_ids: The identity of the logs that `after` belongs to, by topic.

        Raises:
            StateUnavailableError: Redis does not answer.
            StateRefusedError: It does not do as it is told.
            StateConflictError: Redis has other offsets: another writer has written, or the server came back without.
        """
        from redis.exceptions import WatchError

        with redis_errors(self._settings), self._client.pipeline() as pipe:
            pipe.watch(self._written)  # type: ignore[no-untyped-call]  # 1. from here on nobody else may change the offsets
            if _offsets(cast(dict[str, str], pipe.hgetall(self._written))) != before:
                raise StateConflictError(
                    f"`{self._written}` has other offsets than this writer left; reading them again"
                )
            pipe.multi()
            for user_id in changes.forgotten:  # 2. states
                pipe.delete(self._shopper(user_id), self._bought(user_id))
            for user_id, entries in changes.added.items():
                self._push(pipe, self._shopper(user_id), entries, KEPT_EVENTS)
            for user_id, entries in changes.bought.items():
                self._push(pipe, self._bought(user_id), entries, KEPT_PURCHASES)
            pipe.hset(self._written, mapping=self._mark(after, topic_ids, beat))  # 3. and the offsets they came from
            if gone := before.keys() - after.keys():
                pipe.hdel(self._written, *(partition_name(*at) for at in gone))
            try:
                pipe.execute()  # 4. at once
            except WatchError:
                raise StateConflictError(f"`{self._written}` was changed by another writer; reading it again") from None

    def _push(self, pipe: Pipeline, key: str, entries: list[str], kept: int) -> None:
        """Add entries to a list that is kept so long, and so many of."""
        pipe.lpush(key, *entries)
        pipe.ltrim(key, 0, kept - 1)
        pipe.expire(key, self._keep_seconds)

    def _mark(self, offsets: Offsets, topic_ids: Mapping[str, str], beat: str) -> dict[_Encodable, _Encodable]:
        own: dict[_Encodable, _Encodable] = {"format": FORMAT, "secret": self.fingerprint, "beat": beat}
        own |= {f"{topic}{_ID}": topic_id for topic, topic_id in topic_ids.items()}
        return own | {name: str(offset) for name, offset in encode_offsets(offsets).items()}

    def _shopper(self, user_id: str) -> str:
        return f"{self._settings.prefix}:shopper:{user_id}"

    def _bought(self, user_id: str) -> str:
        return f"{self._settings.prefix}:bought:{user_id}"


def _offsets(written: Mapping[str, str]) -> Offsets:
    """Return the offsets among the fields of the hash."""
    return decode_offsets(
        {name: int(value) for name, value in written.items() if is_partition_name(name) and value.isdigit()}
    )
