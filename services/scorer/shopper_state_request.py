"""Shoppers' states from the requests alone: the storefront knows them, and the worker keeps nothing of anybody."""

from collections.abc import Sequence

from services.scorer.shopper_state import Baskets, Context, as_told
from streams.events import UserEvent


class RequestState:
    """What each request says of its shopper."""

    reads_events = False

    def __len__(self) -> int:
        """None is held."""
        return 0

    def take_in(self, event: UserEvent, *, publish_ts_ms: int) -> None:
        """Nothing is kept."""

    def item_arrived(self, item_id: str) -> None:
        """Nothing waits."""

    def forget(self, user_id: str, *, until_ms: int) -> None:
        """Nothing is known."""

    def context(
        self,
        user_id: str | None,
        session_id: str | None,
        ts_ms: int,
        *,
        session: Sequence[int] | None = None,
        earlier: Baskets | None = None,
    ) -> Context:
        """What a ranking is made from: what the request says."""
        return as_told(([], []), session=session, earlier=earlier)

    def bought(self, user_id: str) -> tuple[str, ...]:
        """Nothing is known; a request names what it wants excluded."""
        return ()

    def problem(self) -> str | None:
        """None: there is nothing that could be away."""
        return None
