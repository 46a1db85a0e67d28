"""Filters of a request, and the facts about items that they test."""

from collections.abc import Sequence
from typing import Annotated, get_args

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, Strict, StringConstraints

from peft_adapters.ranking.arrays import IntArray
from services.settings.blocklist import fold_name
from streams.events import Item, ItemKind

MAX_FILTER_VALUES = 100
MAX_CATEGORY_CHARS = 256
KINDS = get_args(ItemKind)
UNKNOWN_CATEGORY = -1
FIRST_CAPACITY = 1_024

Amount = Annotated[float, Strict(), Field(ge=0, allow_inf_nan=False)]
Category = Annotated[str, StringConstraints(min_length=1, max_length=MAX_CATEGORY_CHARS)]

_FACTS = np.dtype([("kind", np.int8), ("category", np.int32), ("price", np.float64), ("in_stock", np.bool_)])


class Filters(BaseModel):
    """Conditions on the items of an answer; an item must meet all that are given."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kinds: Annotated[tuple[ItemKind, ...], Field(min_length=1, max_length=len(KINDS))] | None = Field(
        default=None, description="of one of these kinds"
    )
    categories: Annotated[tuple[Category, ...], Field(min_length=1, max_length=MAX_FILTER_VALUES)] | None = Field(
        default=None, description="of one of these categories, in any case"
    )
    min_price: Amount | None = Field(default=None, description="the lowest price; leaves out items without a price")
    max_price: Amount | None = Field(default=None, description="the highest price; leaves out items without a price")
    in_stock: Annotated[bool, Strict()] = Field(default=False, description="true: only items in stock")


class ItemFacts:
    """Kind, category, price and stock of items by row; one thread writes, any thread reads."""

    def __init__(self) -> None:
        self._facts = np.zeros(FIRST_CAPACITY, dtype=_FACTS)
        self._categories: dict[str, int] = {}

    def set(self, row: int, item: Item) -> None:
        """Store the facts of an item."""
        if row >= len(self._facts):
            self._facts = np.concatenate([self._facts, np.zeros_like(self._facts)])
        category = self._categories.setdefault(fold_name(item.category), len(self._categories))
        price = np.nan if item.price is None else item.price
        self._facts[row] = (KINDS.index(item.kind), category, price, item.in_stock)

    def matching(self, rows: IntArray, filters: Filters) -> npt.NDArray[np.bool_]:
        """Return for each row whether it meets the filters."""
        facts = self._facts[rows]
        fits = np.ones(len(rows), dtype=np.bool_)
        if filters.kinds is not None:
            fits &= np.isin(facts["kind"], [KINDS.index(kind) for kind in filters.kinds])
        if filters.categories is not None:
            fits &= np.isin(facts["category"], self._codes(filters.categories))
        if filters.min_price is not None:
            fits &= facts["price"] >= filters.min_price
        if filters.max_price is not None:
            fits &= facts["price"] <= filters.max_price
        if filters.in_stock:
            fits &= facts["in_stock"]
        return fits

    def _codes(self, categories: Sequence[str]) -> list[int]:
        return [self._categories.get(fold_name(name), UNKNOWN_CATEGORY) for name in categories]
