"""The part of a version that requests need: plain arrays and lists, without torch, so that processes can share it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from peft_adapters.ranking.arrays import FloatArray, IntArray
from peft_adapters.ranking.request_scorer import RequestScorer
from peft_adapters.ranking.shoppers import Contexts
from peft_adapters.registry.manifest import Manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingModel:
    """One version, ready to answer; it never changes.

    Attributes:
        manifest: manifest of the version.
        item_ids: [items] the updater's items in its order, then items that only the worker knows.
        rows: row of each item, by item id.
        text_vectors: [items, dim] unit vectors of the texts, zero where there is no text.
        has_text: [items] whether an item has a text, and so may be a candidate.
        catalogue_rows: [items] row in the worker's catalogue, -1 for items it does not hold.
        row_of: [catalogue rows] row in this model, the inverse of `catalogue_rows`.
        scorer: scores items and predicts outcomes.
    """

    manifest: Manifest
    item_ids: list[str]
    rows: Mapping[str, int]
    text_vectors: FloatArray
    has_text: npt.NDArray[np.bool_]
    catalogue_rows: IntArray
    row_of: IntArray
    scorer: RequestScorer

    @property
    def version(self) -> int:
        """The version number of the adapter."""
        return self.manifest.version

    def __len__(self) -> int:
        """Return the number of rows, including those of items without text."""
        return len(self.item_ids)

    def context(
        self, catalogue_rows: Sequence[int], ages: Sequence[int], elapsed_ms: Sequence[int] | None = None
    ) -> Contexts:
        """Return a shopper's items as a context in this model's rows; items it does not hold are left out.

        Args:
            catalogue_rows: the items' rows in the worker's catalogue, newest first.
            ages: sessions since each item was looked at.
            elapsed_ms: milliseconds since each item was looked at; None takes all to be of now.
        """
        rows, sessions_ago = np.array(catalogue_rows, dtype=np.int64), np.array(ages, dtype=np.int64)
        elapsed = np.zeros_like(rows) if elapsed_ms is None else np.array(elapsed_ms, dtype=np.int64)
        is_held = rows < len(self.row_of)  # later rows were added after this model was built
        return Contexts(
            self.row_of[rows[is_held]][None],
            sessions_ago[is_held][None],
            np.empty((1, 0), dtype=np.int64),
            elapsed[is_held][None],
        )
