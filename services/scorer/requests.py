"""What a storefront may ask."""

from collections.abc import Callable
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict

from services.scorer.filters import Amount, Category, Filters
from services.web.json_types import NUMBER_ONLY, Flag, rfc_3339_only
from streams.events import MAX_QUERY_CHARS, EpochMs, Id, ItemKind, Scenario

MAX_SESSION_ITEMS = 5_000  # the newest count, as many as the learner looks at
MAX_EARLIER_SESSIONS = 128
MAX_EXCLUDED_ITEMS = 1_000
DEFAULT_K = 20

Moment = Annotated[EpochMs, BeforeValidator(rfc_3339_only)]
SessionItems = Annotated[tuple[Id, ...], Field(max_length=MAX_SESSION_ITEMS)]
EarlierSessions = Annotated[tuple[SessionItems, ...], Field(max_length=MAX_EARLIER_SESSIONS)]
Count = Annotated[int, Field(ge=1), NUMBER_ONLY]
Words = Annotated[str, Field(min_length=1, max_length=MAX_QUERY_CHARS, pattern=r"\S")]
Share = Annotated[float, Strict(), Field(ge=0, le=1)]


class ShopperRequest(BaseModel):
    """Who asks."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scenario: Scenario | None = Field(
        default=None, description="which ranking, with an adapter of its own; the worker's, if it is not given"
    )
    user_id: Id | None = Field(default=None, description="the shopper; without it the session alone speaks")
    session_id: Id | None = Field(default=None, description="without it, a pause of 30 minutes begins a new session")
    session_items: SessionItems | None = Field(
        default=None, description="items of the session, oldest first, in place of what the worker knows of it"
    )
    earlier_sessions: EarlierSessions | None = Field(
        default=None, description="items of the sessions before it, oldest first, in place of what the worker knows"
    )
    ts: Moment | None = Field(default=None, description="when; now, if it is not given")

    def under_pseudonym(self, pseudonymise: Callable[[str], str]) -> Self:
        """The same request without the ids that came with it: the rest of the scorer knows shoppers by pseudonym."""
        ids = {"user_id": self.user_id, "session_id": self.session_id}
        return self.model_copy(update={name: pseudonymise(value) for name, value in ids.items() if value is not None})


class ListRequest(ShopperRequest):
    """A list is wanted, and not any."""

    filters: Filters | None = Field(default=None, description="what an item must be to be in the answer")
    exclude_bought: Flag = Field(
        default=False, description="true: without what the worker knows that the shopper bought"
    )
    diversity: Share = Field(
        default=0.0, description="0 orders by score alone, 1 after the first by how little each is like those before"
    )


class RankRequest(ListRequest):
    """Order given candidates."""

    candidates: tuple[Id, ...] = Field(min_length=1, description="item ids, in any order")
    query: Words | None = Field(default=None, description="what the shopper searches for, in words; part of the score")
    bids: dict[Id, Amount] | None = Field(
        default=None, description="by item id, what is paid; the order is then by expected value, without a bid 0"
    )
    pay_per: Literal["click", "purchase"] = Field(default="click", description="what a bid is paid for")


class RecommendRequest(ListRequest):
    """The best of the catalogue, without the items excluded."""

    k: Count = Field(default=DEFAULT_K, description="how many")
    exclude: Annotated[tuple[Id, ...], Field(max_length=MAX_EXCLUDED_ITEMS)] = Field(
        default=(), description="items that are not wanted"
    )


class RankCall(RankRequest):
    """`/v1/rank` as one of a batch."""

    call: Literal["rank"]


class RecommendCall(RecommendRequest):
    """`/v1/recommend` as one of a batch."""

    call: Literal["recommend"]


class BatchRequest(BaseModel):
    """Several calls at once, such as the shelves of a page."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    requests: tuple[Annotated[RankCall | RecommendCall, Field(discriminator="call")], ...] = Field(min_length=1)


def _true_or_false(value: object) -> object:
    """Takes the two words alone, where pydantic would take `yes`, `on` and others for a truth.

    Raises:
        ValueError: It is another word.
    """
    if value not in (True, False, "true", "false"):
        raise ValueError(f"must be `true` or `false`, got {str(value)[:40]!r}")
    return value in (True, "true")


class SimilarQuery(BaseModel):
    """What of an item's related ones is wanted; the parameters of a GET."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scenario: Scenario | None = Field(default=None, description="which ranking; the worker's, if it is not given")
    k: int = Field(default=DEFAULT_K, ge=1, description="how many")
    by: Literal["behaviour", "likeness"] = Field(
        default="behaviour",
        description="`behaviour`: what shoppers who look at it go on to; `likeness`: what takes the same place",
    )
    kind: list[ItemKind] = Field(default=[], description="of one of these kinds")
    category: list[Category] = Field(default=[], max_length=100, description="of one of these categories")
    min_price: float | None = Field(default=None, ge=0, allow_inf_nan=False, description="at least so dear")
    max_price: float | None = Field(default=None, ge=0, allow_inf_nan=False, description="at most so dear")
    in_stock: Annotated[bool, BeforeValidator(_true_or_false)] = Field(
        default=False, description="true: only what is in stock"
    )
    diversity: float = Field(default=0.0, ge=0, le=1, description="as in /v1/recommend")

    def filters(self) -> Filters:
        """The same filters as the other calls have."""
        return Filters(
            kinds=tuple(dict.fromkeys(self.kind)) or None,
            categories=tuple(self.category) or None,
            min_price=self.min_price,
            max_price=self.max_price,
            in_stock=self.in_stock,
        )
