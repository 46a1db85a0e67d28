"""The immutable model that a scoring worker answers from: one version over the items that the worker knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from peft_adapters.encoder.encoder import MergedSuffix
from peft_adapters.errors import BundleFormatError
from peft_adapters.ranking.arrays import IntArray
from peft_adapters.ranking.ranker import FrozenRanker
from peft_adapters.ranking.shoppers import Contexts
from peft_adapters.registry.manifest import Manifest
from peft_adapters.serving.model_state import ModelState

_HISTORY_ITEMS = 20  # length of the history in the context that `require_finite_scores` tries


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One version, ready to answer; it never changes.

    Attributes:
        manifest: manifest of the version.
        state: learned state that the next delta builds on.
        item_ids: [items] the updater's items in its order, then items that only the worker knows.
        rows: row of each item, by item id.
        texts: [items] text of each item, None where the worker has no text.
        text_vectors: [items, dim] unit vectors of the texts, zero where there is no text.
        content_vectors: [items, dim] text vectors plus the projected vectors of other modalities.
        has_text: [items] whether an item has a text, and so may be a candidate.
        catalogue_rows: [items] row in the worker's catalogue, -1 for items it does not hold.
        row_of: [catalogue rows] row in this model, the inverse of `catalogue_rows`.
        unused_vectors: number of vectors of other modalities whose length does not match the version's projection.
        suffix: encoder layers above the split with the version's adapter merged in; encodes search queries.
        ranker: scores items and predicts outcomes.
    """

    manifest: Manifest
    state: ModelState
    item_ids: list[str]
    rows: Mapping[str, int]
    texts: list[str | None]
    text_vectors: Tensor
    content_vectors: Tensor
    has_text: npt.NDArray[np.bool_]
    catalogue_rows: IntArray
    row_of: IntArray
    unused_vectors: int
    suffix: MergedSuffix
    ranker: FrozenRanker

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


def require_finite_scores(model: ServedModel) -> None:
    """Score every candidate for a new shopper and for one with a history.

    An item whose score is not finite would be missing from every list without notice.

    Raises:
        BundleFormatError: an item has no finite score, or no finite probability.
    """
    rows = np.flatnonzero(model.has_text)
    busiest = np.argsort(-model.ranker.counters.events, kind="stable")[:_HISTORY_ITEMS]
    for history in (busiest[:0], busiest):
        now = np.zeros_like(history)[None]
        context = Contexts(history[None], now, np.empty((1, 0), dtype=np.int64), now)
        scores, probabilities = model.ranker.score_with_probabilities(context, rows)
        for name, values in {"score": scores, **probabilities}.items():
            finite = int(np.isfinite(values).sum())
            if finite < len(rows):
                raise BundleFormatError(
                    f"version {model.version} of {model.manifest.scenario!r}: expected a finite {name} for each of "
                    f"{len(rows)} items, got {finite}; publish a full bundle from an intact learner"
                )
