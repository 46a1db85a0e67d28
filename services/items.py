"""Conversion of item events to items of the model's catalogue."""

from peft_adapters.ranking.catalogue import item_text
from peft_adapters.ranking.modalities import CatalogueItem, item_vectors
from streams.events import Item


def catalogue_item(item: Item) -> CatalogueItem:
    """Return an item's id, text and, if it has any, vectors and a price."""
    text = item_text(title=item.title, brand=item.brand, category=item.category, description=item.description)
    if item.price is None:
        return (item.item_id, text, item_vectors(item.vectors)) if item.vectors else (item.item_id, text)
    return item.item_id, text, item_vectors(item.vectors or {}), item.price
