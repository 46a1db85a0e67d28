"""Optional fields of the scorer's calls, as keyword arguments of the clients."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict


class ShopperOptions(TypedDict, total=False):
    """Optional fields of every call: who the ranking is for, and which items may be in it."""

    scenario: str
    user_id: str
    session_id: str
    session_items: Sequence[str]
    earlier_sessions: Sequence[Sequence[str]]
    ts: str | int
    filters: Mapping[str, Any]
    exclude_bought: bool
    diversity: float


class RankOptions(ShopperOptions, total=False):
    """Optional fields of `/v1/rank`."""

    query: str
    bids: Mapping[str, float]
    pay_per: Literal["click", "purchase"]


class RecommendOptions(ShopperOptions, total=False):
    """Optional fields of `/v1/recommend` and `/v1/search`."""

    exclude: Sequence[str]


class ExplainOptions(RankOptions, total=False):
    """Optional fields of `/v1/explain`."""

    history: int
