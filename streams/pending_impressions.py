"""Impressions that wait for their windows to close, and their rows in the join store."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from typing import TypeVar

from streams.examples import ShownList

DIGEST_BYTES = 8
_SEPARATOR = "\0"
_AS_JSON = "\1"  # marks a body in JSON: one of its ids contains the separator

Value = TypeVar("Value")


def _digest(text: str) -> int:
    """Return 64 bits of BLAKE2b as a signed integer, as SQLite stores integers."""
    return int.from_bytes(blake2b(text.encode(), digest_size=DIGEST_BYTES).digest(), "little", signed=True)


# The same users return often, and a click follows soon after the impression it answers.
user_digest = lru_cache(maxsize=65_536)(_digest)
request_digest = lru_cache(maxsize=65_536)(_digest)


@dataclass(slots=True)
class PendingImpression:
    """An impression that waits for clicks and purchases.

    Attributes:
        ts: event time, epoch milliseconds, never later than its record's time.
        request: the digest of the request id.
        query: the search query that the impression answered, if any.
        marks: bit `n` is set once the item at index `n` was clicked or bought, bit `items + n` once it was bought.
        seq: the number in the order of arrival; the store assigns it.
        user: the digest of the user id, by which the store finds it.
    """

    ts: int
    topic: str
    request: int
    user_id: str
    session_id: str | None
    item_ids: tuple[str, ...]
    positions: tuple[int, ...]
    query: str | None = None
    marks: int = 0
    seq: int = 0
    user: int = field(init=False)

    def __post_init__(self) -> None:
        """Compute the digest of the user id."""
        self.user = user_digest(self.user_id)

    def clicked(self) -> tuple[bool, ...]:
        """Return one flag per item: whether it was clicked or bought."""
        return _bits(self.marks, len(self.item_ids))

    def bought(self) -> tuple[bool, ...]:
        """Return one flag per item: whether it was bought."""
        return _bits(self.marks >> len(self.item_ids), len(self.item_ids))

    def to_list(self, indices: Sequence[int] | None = None) -> ShownList:
        """Return the list of examples of the impression.

        Args:
            indices: the items to include; all by default.
        """
        return ShownList(
            user_id=self.user_id,
            session_id=self.session_id,
            ts=self.ts,
            item_ids=_select(self.item_ids, indices),
            positions=_select(self.positions, indices),
            clicked=_select(self.clicked(), indices),
            bought=_select(self.bought(), indices),
            topic=self.topic,
            query=self.query,
        )

    # ---- the row in the store

    def marks_text(self) -> str | None:
        """Return the marks in hexadecimal digits; None if no item is marked."""
        return f"{self.marks:x}" if self.marks else None

    def body(self) -> str:
        """Return the fields that no query needs as one text."""
        in_order = self.positions == tuple(range(len(self.positions)))
        positions = "" if in_order else ",".join(map(str, self.positions))
        parts = (self.topic, self.user_id, self.session_id or "", positions, self.query or "", *self.item_ids)
        text = _SEPARATOR.join(parts)
        return text if text.count(_SEPARATOR) == len(parts) - 1 else _AS_JSON + json.dumps(parts)

    @classmethod
    def from_row(cls, seq: int, ts: int, request: int, marks: str | None, body: str) -> "PendingImpression":
        """Return the impression of a row.

        Args:
            seq: the number in the order of arrival.
            ts: event time, epoch milliseconds.
            request: the digest of the request id.
            marks: the text of `marks_text`.
            body: the text of `body`.
        """
        parts = json.loads(body[1:]) if body.startswith(_AS_JSON) else body.split(_SEPARATOR)
        topic, user_id, session_id, positions, query, *item_ids = parts
        return cls(
            seq=seq,
            ts=ts,
            topic=topic,
            request=request,
            user_id=user_id,
            session_id=session_id or None,
            item_ids=tuple(item_ids),
            positions=tuple(map(int, positions.split(","))) if positions else tuple(range(len(item_ids))),
            query=query or None,
            marks=int(marks, 16) if marks else 0,
        )


def _bits(marks: int, count: int) -> tuple[bool, ...]:
    return tuple([bool(marks >> index & 1) for index in range(count)]) if marks else (False,) * count


def _select(values: tuple[Value, ...], indices: Sequence[int] | None) -> tuple[Value, ...]:
    return values if indices is None else tuple([values[index] for index in indices])
