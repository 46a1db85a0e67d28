"""What a storefront may ask."""

from collections.abc import Callable
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field

from streams.events import EpochMs, Id

MAX_SESSION_ITEMS = 5_000  # the newest count, as many as the learner looks at
MAX_EARLIER_SESSIONS = 128
MAX_EXCLUDED_ITEMS = 1_000

SessionItems = Annotated[tuple[Id, ...], Field(max_length=MAX_SESSION_ITEMS)]
EarlierSessions = Annotated[tuple[SessionItems, ...], Field(max_length=MAX_EARLIER_SESSIONS)]


class _Request(BaseModel):
    """Who asks.

    Attributes:
        user_id: The shopper; without it the session alone speaks.
        session_id: The session at hand; without it, a pause of 30 minutes begins a new one.
        session_items: Items of the session at hand, oldest first, in place of what the worker knows of it.
        earlier_sessions: Items of the sessions before it, the oldest session first, in place of what the worker knows.
        ts: When, epoch milliseconds or RFC 3339; now, if it is not given.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    user_id: Id | None = None
    session_id: Id | None = None
    session_items: SessionItems | None = None
    earlier_sessions: EarlierSessions | None = None
    ts: EpochMs | None = None

    def under_pseudonym(self, pseudonymise: Callable[[str], str]) -> Self:
        """The same request without the ids that came with it: the rest of the scorer knows shoppers by pseudonym."""
        ids = {"user_id": self.user_id, "session_id": self.session_id}
        return self.model_copy(update={name: pseudonymise(value) for name, value in ids.items() if value is not None})


class RankRequest(_Request):
    """Order given candidates."""

    candidates: tuple[Id, ...] = Field(min_length=1)


class RecommendRequest(_Request):
    """The best of the catalogue, without the items excluded."""

    k: int = Field(default=20, ge=1)
    exclude: Annotated[tuple[Id, ...], Field(max_length=MAX_EXCLUDED_ITEMS)] = ()
