"""Scores of a served model in one context, and a catalogue that counts the text vectors it computes."""

from collections.abc import Sequence

import torch
from tiny_model import titled

from peft_adapters.ranking.catalogue import Catalogue
from peft_adapters.serving.served_model import ServedModel

ITEMS = titled(30)
CONTEXT: tuple[list[str], list[int]] = (["item-3", "item-7", "item-1"], [0, 0, 2])


def scores(model: ServedModel, catalogue: Catalogue) -> dict[str, float]:
    """Return the score of every item in one context."""
    items, ages = CONTEXT
    context = model.context([catalogue.rows[item] for item in items], ages)
    return dict(zip(model.item_ids, model.ranker.score(context)[0].tolist(), strict=True))


class CountingCatalogue(Catalogue):
    """Counts the text vectors that are computed."""

    computed = 0

    def vectors(self, suffix: object, rows: Sequence[int]) -> torch.Tensor:
        self.computed += len(rows)
        return super().vectors(suffix, rows)  # type: ignore[arg-type]
