"""Baseline `stan`: session-kNN alone (Garg et al. 2019), updated after every event.

Ranks by the items that came after the shared one in similar sessions, and by STAN's own score with less weight; the
current session's items count a tenth, and popularity decides where similar sessions say nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from peft_adapters.learning.batches import Positive, ShownList
from peft_adapters.learning.lists import JudgedLists
from peft_adapters.ranking.modalities import CatalogueItem
from peft_adapters.ranking.session_neighbours import SessionNeighbours
from peft_adapters.ranking.shoppers import Contexts, Shoppers, pad

_STAN_WEIGHT = 0.3  # beside the score of the items that came after
_IN_SESSION_WEIGHT = 0.1
_POPULARITY_WEIGHT = 0.001  # below what a single similar session says
_POPULARITY_DECAY = 0.9  # per micro-batch


class StanBaseline:
    """Session-kNN on the stream's events.

    Args:
        items: the catalogue; only ids are used.
    """

    def __init__(self, items: Sequence[CatalogueItem]) -> None:
        self._rows = {item_id: row for row, item_id in enumerate(dict.fromkeys(item[0] for item in items))}
        self._neighbours = SessionNeighbours()
        self._neighbours.grow(len(self._rows))
        self._shoppers = Shoppers()  # as of the last event learnt
        self._popularity = np.zeros(len(self._rows), dtype=np.float32)

    @property
    def rows(self) -> Mapping[str, int]:
        """Return the row of each item in scores."""
        return self._rows

    def learn(self, examples: Sequence[Positive]) -> None:
        """Add a micro-batch to the sessions."""
        rows = np.array([self._rows[example.item_id] for example in examples], dtype=np.int64)
        sessions = []
        for example, row in zip(examples, rows.tolist(), strict=True):
            self._shoppers.update(example.user_id, example.session_id, example.ts, row)
            sessions.append(self._shoppers.session_key_of(example.user_id))
        self._neighbours.update(rows, np.array(sessions), np.array([example.ts for example in examples]))
        self._popularity *= np.float32(_POPULARITY_DECAY)
        np.add.at(self._popularity, rows, 1)

    def learn_lists(self, lists: Sequence[ShownList]) -> None:
        """Ignore lists: their clicks are events too."""

    def publish(self) -> None:
        """Do nothing: it is published after every micro-batch, and ranks by all that it has learnt."""

    def scores(self, examples: Sequence[Positive], contexts: Contexts) -> Tensor:
        """Return scores [events, catalogue]."""
        return self._scores(contexts, [example.ts for example in examples])

    def judge_lists(self, lists: Sequence[ShownList], shoppers: Shoppers) -> JudgedLists:
        """Return scores of the items in lists; there are no probabilities."""
        known = [shoppers.context(shown.user_id, shown.session_id, shown.ts, only_before=True) for shown in lists]
        scores = self._scores(pad(known), [shown.ts for shown in lists])
        rows = [[self._rows[item_id] for item_id in shown.item_ids] for shown in lists]
        return JudgedLists([of_list[columns] for of_list, columns in zip(scores, rows, strict=True)], {})

    def _scores(self, contexts: Contexts, now_ms: Sequence[int]) -> Tensor:
        (stan, after, _), totals = self._neighbours.scores(contexts, np.array(now_ms, dtype=np.int64))
        popularity = self._popularity / max(1.0, float(self._popularity.max(initial=0.0)))
        scores = after + np.float32(_STAN_WEIGHT) * stan
        scores += np.float32(_POPULARITY_WEIGHT) * np.maximum(totals, np.float32(1e-3))[:, None] * popularity
        event, place = np.nonzero(contexts.ages == 0)
        of_session = np.ones_like(scores)
        of_session[event, contexts.items[event, place]] = _IN_SESSION_WEIGHT
        return torch.from_numpy(scores * of_session)
