"""Settings of the blocklist: items that are never recommended."""

from pydantic import BaseModel, ConfigDict, Field, field_validator

from streams.events import Item


def fold_name(name: str) -> str:
    """Return a brand or category in the form that is compared: without outer space, in lower case.

    >>> fold_name(" Acme ") == fold_name("ACME")
    True
    """
    return name.strip().casefold()


class Blocklist(BaseModel):
    """Items that no answer contains, by id, brand and category, beside those that the catalogue's `status` hides."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    item_ids: frozenset[str] = Field(default=frozenset(), description="ids of items that are never shown")
    brands: frozenset[str] = Field(default=frozenset(), description="brands, in any case, whose items are never shown")
    categories: frozenset[str] = Field(
        default=frozenset(), description="categories, in any case, whose items are never shown"
    )

    @field_validator("brands", "categories")
    @classmethod
    def _fold(cls, names: frozenset[str]) -> frozenset[str]:
        """Fold names for comparison, and reject empty ones: they would block all items without a brand or category.

        Raises:
            ValueError: a name is empty.
        """
        folded = frozenset(map(fold_name, names))
        if "" in folded:
            raise ValueError("a name must not be empty, got ''; every item without one would be blocked")
        return folded

    def blocks(self, item: Item) -> bool:
        """Return whether an item is blocked."""
        return (
            item.item_id in self.item_ids
            or fold_name(item.brand) in self.brands
            or fold_name(item.category) in self.categories
        )
