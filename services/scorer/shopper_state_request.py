"""Shoppers' states from requests alone: the storefront keeps them, the worker keeps nothing."""

from collections.abc import Sequence

from peft_adapters.ranking.shoppers import History
from services.scorer.shopper_state import NOTHING, Baskets, with_request
from streams.events import UserEvent


class RequestState:
    """A source of states that only knows what each request states."""

    reads_events = False

    def __len__(self) -> int:
        """Return 0: no state is held."""
        return 0

    def take_in(self, event: UserEvent, *, publish_ts_ms: int) -> None:
        """Do nothing."""

    def item_arrived(self, item_id: str) -> None:
        """Do nothing."""

    def forget(self, user_id: str, *, until_ms: int) -> None:
        """Do nothing."""

    def context(
        self,
        user_id: str | None,
        session_id: str | None,
        ts_ms: int,
        *,
        session: Sequence[int] | None = None,
        earlier: Baskets | None = None,
    ) -> History:
        """Return the history that the request states."""
        return with_request(NOTHING, session=session, earlier=earlier)

    def bought(self, user_id: str) -> tuple[str, ...]:
        """Return nothing: a request lists the items to exclude."""
        return ()

    def problem(self) -> str | None:
        """Return None: there is no dependency."""
        return None
