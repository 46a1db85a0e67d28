"""Shoppers' states in Redis or Valkey, with the offsets of the events they were derived from.

| key | value |
|---|---|
| `<prefix>:shopper:<pseudonym>` | list of entries, newest first |
| `<prefix>:bought:<pseudonym>` | list of entries of purchases alone, newest first |
| `<prefix>:written` | hash: `format`, `secret`, `beat`; `<topic>/<partition>`, the next offset of each; `<topic>/id`, \
the id of the log that the offsets belong to |
| `<prefix>:writer` | name of the writer; it expires with the lease |

States and offsets change in one transaction, and only if the offsets are still those of the writer's last transaction.
So each record of the log counts once, whichever process is killed when, and after Redis was restored to an older state,
writing continues from that state.
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

_Encodable = bytes | bytearray | memoryview | str | int | float  # the client's type, which it does not export


@dataclass(slots=True)
class Changes:
    """Changes of shoppers' states by a part of the log.

    Attributes:
        forgotten: pseudonyms whose lists are deleted before entries are added.
        added: new entries by pseudonym, oldest first.
        bought: the purchases among them.
    """

    forgotten: set[str] = field(default_factory=set)
    added: dict[str, list[str]] = field(default_factory=dict)
    bought: dict[str, list[str]] = field(default_factory=dict)

    def forget(self, user_id: str) -> None:
        """Delete a shopper's lists, and drop the entries to be added to them."""
        self.forgotten.add(user_id)
        self.added.pop(user_id, None)
        self.bought.pop(user_id, None)

    def add(self, user_id: str, entry: str, *, is_purchase: bool) -> None:
        """Add an entry to a shopper's list."""
        self.added.setdefault(user_id, []).append(entry)
        if is_purchase:
            self.bought.setdefault(user_id, []).append(entry)


class StateStore:
    """Store of shoppers' states, for the writer and for scorers. Thread-safe.

    Args:
        settings: the settings with the address of Redis and the prefix of keys.
        fingerprint: the fingerprint of the secret that pseudonyms are made with.
        timeout_seconds: the longest wait for each answer.

    Raises:
        StateError: the client library is not installed, or the address is invalid.
    """

    def __init__(self, settings: StateSettings, *, fingerprint: str, timeout_seconds: float) -> None:
        self._settings, self.fingerprint = settings, fingerprint
        self._client: Redis = connect(settings, timeout_seconds=timeout_seconds)
        self._written, self._lease = f"{settings.prefix}:written", f"{settings.prefix}:writer"
        self._keep_seconds = max(1, int(settings.keep_days * DAY_SECONDS))

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    # ---- reading

    def entries(self, user_id: str) -> list[str]:
        """Return the entries of a shopper, newest first.

        Raises:
            StateUnavailableError: no Redis answers.
            StateRefusedError: Redis refuses the command.
        """
        with redis_errors(self._settings):
            return cast(list[str], self._client.lrange(self._shopper(user_id), 0, KEPT_EVENTS - 1))

    def bought(self, user_id: str) -> list[str]:
        """Return the purchases of a shopper, newest first.

        Raises:
            StateUnavailableError: no Redis answers.
            StateRefusedError: Redis refuses the command.
        """
        with redis_errors(self._settings):
            return cast(list[str], self._client.lrange(self._bought(user_id), 0, KEPT_PURCHASES - 1))

    def heartbeat(self) -> str | None:
        """Return a value that changes while a writer writes; None if nothing was written yet.

        Raises:
            StateUnavailableError: no Redis answers.
            StateMismatchError: the states were written in another format, or under another secret.
        """
        return self._checked().get("beat")

    def offsets(self) -> Offsets:
        """Return the next offset of each partition; empty if nothing was written yet.

        Raises:
            StateUnavailableError: no Redis answers.
            StateMismatchError: the states were written in another format, or under another secret.
        """
        return _offsets(self._checked())

    def topic_ids(self) -> dict[str, str]:
        """Return the id of the log that each topic's offsets belong to, if it was known.

        Raises:
            StateUnavailableError: no Redis answers.
            StateMismatchError: the states were written in another format, or under another secret.
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
        """Acquire or extend the lease for a few seconds; return False if another writer holds it.

        Raises:
            StateUnavailableError: no Redis answers.
            StateRefusedError: Redis refuses the command.
        """
        lease_ms = int(LEASE_SECONDS * 1000)
        with redis_errors(self._settings):
            if self._client.set(self._lease, writer, nx=True, px=lease_ms):
                return True
            if self._client.get(self._lease) != writer:
                return False
            return bool(self._client.pexpire(self._lease, lease_ms))

    def release(self, writer: str) -> None:
        """Release the lease, so that another writer can take over at once.

        Raises:
            StateUnavailableError: no Redis answers.
            StateRefusedError: Redis refuses the command.
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
        heartbeat: str,
        topic_ids: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Write the changes of a part of the log together with its end: all of it or nothing.

        Args:
            changes: the changes of all records from `before` to `after`.
            before: the offsets expected in Redis.
            after: the offsets that replace them.
            heartbeat: a value that differs from that of the last call.
            topic_ids: the ids of the logs that `after` belongs to, by topic.

        Raises:
            StateUnavailableError: no Redis answers.
            StateRefusedError: Redis refuses the command.
            StateConflictError: Redis has other offsets: another writer has written, or an older state was restored.
        """
        from redis.exceptions import WatchError

        with redis_errors(self._settings), self._client.pipeline() as pipe:
            pipe.watch(self._written)  # type: ignore[no-untyped-call]  # 1. from here on, no other writer may change the offsets
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
            pipe.hset(self._written, mapping=self._mark(after, topic_ids, heartbeat))  # 3. offsets that they came from
            if removed := before.keys() - after.keys():
                pipe.hdel(self._written, *(partition_name(*at) for at in removed))
            try:
                pipe.execute()  # 4. all at once
            except WatchError:
                raise StateConflictError(f"`{self._written}` was changed by another writer; reading it again") from None

    def _push(self, pipe: Pipeline, key: str, entries: list[str], max_entries: int) -> None:
        """Add entries to a list, trim it to its newest entries, and renew its expiry."""
        pipe.lpush(key, *entries)
        pipe.ltrim(key, 0, max_entries - 1)
        pipe.expire(key, self._keep_seconds)

    def _mark(self, offsets: Offsets, topic_ids: Mapping[str, str], heartbeat: str) -> dict[_Encodable, _Encodable]:
        fields: dict[_Encodable, _Encodable] = {"format": FORMAT, "secret": self.fingerprint, "beat": heartbeat}
        fields |= {f"{topic}{_ID}": topic_id for topic, topic_id in topic_ids.items()}
        return fields | {name: str(offset) for name, offset in encode_offsets(offsets).items()}

    def _shopper(self, user_id: str) -> str:
        return f"{self._settings.prefix}:shopper:{user_id}"

    def _bought(self, user_id: str) -> str:
        return f"{self._settings.prefix}:bought:{user_id}"


def _offsets(written: Mapping[str, str]) -> Offsets:
    """Return the offsets among the fields of the hash."""
    return decode_offsets(
        {name: int(value) for name, value in written.items() if is_partition_name(name) and value.isdigit()}
    )
