"""Request bodies of the ranking calls."""

from collections.abc import Callable
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict

from services.scorer.filters import Amount, Category, Filters
from services.web.json_types import NUMBER_ONLY, Flag, rfc_3339_only
from streams.events import MAX_QUERY_CHARS, EpochMs, Id, ItemKind, Scenario

MAX_SESSION_ITEMS = 5_000  # of which the model uses the newest
MAX_EARLIER_SESSIONS = 128
MAX_EXCLUDED_ITEMS = 1_000
DEFAULT_K = 20

Moment = Annotated[EpochMs, BeforeValidator(rfc_3339_only)]
SessionItems = Annotated[tuple[Id, ...], Field(max_length=MAX_SESSION_ITEMS)]
EarlierSessions = Annotated[tuple[SessionItems, ...], Field(max_length=MAX_EARLIER_SESSIONS)]
Count = Annotated[int, Field(ge=1), NUMBER_ONLY]
Words = Annotated[str, Field(min_length=1, max_length=MAX_QUERY_CHARS, pattern=r"\S")]
Share = Annotated[float, Strict(), Field(ge=0, le=1)]
EmptyBecause = Literal["no_items", "none_available", "filters", "exclude", "exclude_bought"]


class ShopperRequest(BaseModel):
    """The shopper and the session of a request."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scenario: Scenario | None = Field(
        default=None, description="the scenario, each with an adapter of its own; without it, the worker's default"
    )
    user_id: Id | None = Field(default=None, description="the shopper; without it, only the session counts")
    session_id: Id | None = Field(
        default=None, description="the session; without it, 30 minutes without events end one"
    )
    session_items: SessionItems | None = Field(
        default=None, description="items of the session, oldest first, in place of those that the worker has recorded"
    )
    earlier_sessions: EarlierSessions | None = Field(
        default=None,
        description="items of earlier sessions, oldest first, in place of those that the worker has recorded",
    )
    ts: Moment | None = Field(default=None, description="the time of the request; without it, now")

    def under_pseudonym(self, pseudonymise: Callable[[str], str]) -> Self:
        """Return the request with pseudonyms in place of the ids of user and session."""
        ids = {"user_id": self.user_id, "session_id": self.session_id}
        return self.model_copy(update={name: pseudonymise(value) for name, value in ids.items() if value is not None})


class ListRequest(ShopperRequest):
    """Conditions on the items of a list."""

    filters: Filters | None = Field(default=None, description="conditions that each item of the answer meets")
    exclude_bought: Flag = Field(
        default=False, description="true: leave out items that the shopper is known to have bought"
    )
    diversity: Share = Field(
        default=0.0,
        description="0 orders by score alone; 1, after the first item, by dissimilarity to the items before",
    )


class RankRequest(ListRequest):
    """A request to order given candidates."""

    candidates: tuple[Id, ...] = Field(min_length=1, description="item ids, in any order")
    query: Words | None = Field(default=None, description="the query of the shopper, in words; part of the score")
    bids: dict[Id, Amount] | None = Field(
        default=None, description="bid by item id; the order is then by expected value, which is 0 without a bid"
    )
    pay_per: Literal["click", "purchase"] = Field(default="click", description="the outcome that a bid pays for")


class RecommendRequest(ListRequest):
    """A request for the best items of the catalogue."""

    k: Count = Field(default=DEFAULT_K, description="the number of items")
    exclude: Annotated[tuple[Id, ...], Field(max_length=MAX_EXCLUDED_ITEMS)] = Field(
        default=(), description="items to leave out"
    )


class RankCall(RankRequest):
    """A `/v1/rank` call in a batch."""

    call: Literal["rank"]


class RecommendCall(RecommendRequest):
    """A `/v1/recommend` call in a batch."""

    call: Literal["recommend"]


class BatchRequest(BaseModel):
    """Several calls in one request, such as the shelves of a page."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    requests: tuple[Annotated[RankCall | RecommendCall, Field(discriminator="call")], ...] = Field(min_length=1)


def _true_or_false(value: object) -> object:
    """Return the value of `true` or `false`; pydantic alone would also accept `yes`, `on` and others.

    Raises:
        ValueError: it is another word.
    """
    if value not in (True, False, "true", "false"):
        raise ValueError(f"must be `true` or `false`, got {str(value)[:40]!r}")
    return value in (True, "true")


class SimilarQuery(BaseModel):
    """The query parameters of a request for related items."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scenario: Scenario | None = Field(default=None, description="the scenario; without it, the worker's default")
    k: int = Field(default=DEFAULT_K, ge=1, description="the number of items")
    by: Literal["behaviour", "likeness"] = Field(
        default="behaviour",
        description="`behaviour`: items that shoppers look at next; `likeness`: substitutes for it",
    )
    kind: list[ItemKind] = Field(default=[], description="of one of these kinds")
    category: list[Category] = Field(default=[], max_length=100, description="of one of these categories")
    min_price: float | None = Field(default=None, ge=0, allow_inf_nan=False, description="the lowest price")
    max_price: float | None = Field(default=None, ge=0, allow_inf_nan=False, description="the highest price")
    in_stock: Annotated[bool, BeforeValidator(_true_or_false)] = Field(
        default=False, description="true: only items in stock"
    )
    diversity: float = Field(default=0.0, ge=0, le=1, description="as in /v1/recommend")

    def filters(self) -> Filters:
        """Return the parameters as filters."""
        return Filters(
            kinds=tuple(dict.fromkeys(self.kind)) or None,
            categories=tuple(self.category) or None,
            min_price=self.min_price,
            max_price=self.max_price,
            in_stock=self.in_stock,
        )
