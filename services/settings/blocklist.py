"""What is never to be offered, whatever the catalogue says of it."""

from pydantic import BaseModel, ConfigDict, Field, field_validator

from streams.events import Item


def fold_name(name: str) -> str:
    """A brand or a category as it is compared: neither case nor space around it counts.

    >>> fold_name(" Acme ") == fold_name("ACME")
    True
    """
    return name.strip().casefold()


class Blocklist(BaseModel):
    """Items that no call may bring out, by id, brand and category; the catalogue's own `status` counts beside it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    item_ids: frozenset[str] = Field(default=frozenset(), description="ids of items that are never offered")
    brands: frozenset[str] = Field(default=frozenset(), description="brands, in any case, of which nothing is offered")
    categories: frozenset[str] = Field(
        default=frozenset(), description="categories, in any case, of which nothing is offered"
    )

    @field_validator("brands", "categories")
    @classmethod
    def _fold(cls, names: frozenset[str]) -> frozenset[str]:
        """Names as they are compared; an empty one would block whatever names none.

        Raises:
            ValueError: There is an empty one.
        """
        known = frozenset(map(fold_name, names))
        if "" in known:
            raise ValueError("a name must not be empty, got ''; every item without one would be blocked")
        return known

    def blocks(self, item: Item) -> bool:
        """Whether an item is on it."""
        return (
            item.item_id in self.item_ids
            or fold_name(item.brand) in self.brands
            or fold_name(item.category) in self.categories
        )
