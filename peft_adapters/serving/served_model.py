"""The immutable model that a scoring worker builds: one version over the items that the worker knows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from peft_adapters.encoder.encoder import MergedSuffix
from peft_adapters.errors import BundleFormatError
from peft_adapters.ranking.ranker import FrozenRanker
from peft_adapters.ranking.shoppers import Contexts
from peft_adapters.serving.model_state import ModelState
from peft_adapters.serving.serving_model import ServingModel

_HISTORY_ITEMS = 20  # length of the history in the context that `require_finite_scores` tries


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel(ServingModel):
    """One version in the process that builds it, with what the next version and explanations need; it never changes.

    Attributes:
        state: learned state that the next delta builds on.
        texts: [items] text of each item, None where the worker has no text.
        content_vectors: [items, dim] text vectors plus the projected vectors of other modalities.
        unused_vectors: number of vectors of other modalities whose length does not match the version's projection.
        suffix: encoder layers above the split with the version's adapter merged in; encodes search queries.
        ranker: the frozen ranker, whose scorer is `scorer`.
    """

    state: ModelState
    texts: list[str | None]
    content_vectors: Tensor
    unused_vectors: int
    suffix: MergedSuffix
    ranker: FrozenRanker


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
        scores, probabilities = model.scorer.score_with_probabilities(context, rows, None)
        for name, values in {"score": scores, **probabilities}.items():
            finite = int(np.isfinite(values).sum())
            if finite < len(rows):
                raise BundleFormatError(
                    f"version {model.version} of {model.manifest.scenario!r}: expected a finite {name} for each of "
                    f"{len(rows)} items, got {finite}; publish a full bundle from an intact learner"
                )
