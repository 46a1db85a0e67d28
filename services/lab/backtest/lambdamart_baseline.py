"""Baseline `lambdamart`: LightGBM's LambdaMART over candidates, refitted as the stream goes.

What a good engineer builds first: candidates from session-kNN, co-visitation, repeats, popularity and frozen text;
features over them; boosted trees that optimise NDCG (Burges 2010) over a window of recent events, beginning from a
linear score, refitted whenever the number of events has grown by a quarter. Counts are always current: only the trees
are as old as the last fit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import lightgbm
import numpy as np
import torch
from torch import Tensor

from peft_adapters.learning.batches import Positive, ShownList
from peft_adapters.learning.lists import JudgedLists
from peft_adapters.ranking.arrays import FloatArray, IntArray
from peft_adapters.ranking.counters import PAIR_WINDOW_ITEMS
from peft_adapters.ranking.shoppers import Contexts, Shoppers, pad
from services.lab.backtest.lambdamart_features import (
    FEATURES,
    FIRST_STAGE,
    CandidateFeatures,
    Candidates,
    Request,
    log_prices,
)

_TREES = 200
_PARAMETERS = {
    "objective": "lambdarank",
    "lambdarank_truncation_level": 30,
    "label_gain": [0, 1],
    "learning_rate": 0.04,
    "num_leaves": 15,
    "min_data_in_leaf": 50,
    "lambda_l2": 1.0,
    "feature_fraction": 0.8,
    "deterministic": True,
    "force_row_wise": True,
    "verbosity": -1,
}
_FIRST_FIT_EVENTS = 500
_GROWTH = 1.25  # of the number of events between two fits
_WINDOW_EVENTS = 15_000  # newest events that a fit learns from
_NEGATIVES = 60  # random candidates per event that it learns from
_NOT_A_CANDIDATE = -1_000.0  # below the score of every candidate
_FIRST_STAGE_SCALE = 0.5  # of the linear score that trees begin from
_FIRST_STAGE = FEATURES.index(FIRST_STAGE)


class LambdaMartBaseline:
    """LightGBM's LambdaMART on the stream's events.

    Args:
        rows: row of each item in scores.
        text: [items, dim] frozen unit text vectors.
        prices: price of each item that has one.
        guests: ids of shoppers without a user id in the data.
        seed: seed of the negatives and of LightGBM.
    """

    def __init__(
        self,
        rows: Mapping[str, int],
        text: FloatArray,
        *,
        prices: Mapping[str, float],
        guests: Collection[str],
        seed: int,
    ) -> None:
        self._rows, self._seed = rows, seed
        self._features = CandidateFeatures(text, log_prices(list(rows), prices), guests)
        self._shoppers = Shoppers()  # as of the last event learnt
        self._window = deque[tuple[FloatArray, int]](maxlen=_WINDOW_EVENTS)  # features, and the place of the item
        self._generator = np.random.default_rng(seed)
        self._events, self._next_fit = 0, float(_FIRST_FIT_EVENTS)
        self._trees: Any = None  # fitted
        self._served: Any = None  # published

    @property
    def rows(self) -> Mapping[str, int]:
        """Return the row of each item in scores."""
        return self._rows

    def learn(self, examples: Sequence[Positive]) -> None:
        """Add a micro-batch to the window and the counts, and refit the trees if it is time."""
        rows = np.array([self._rows[example.item_id] for example in examples], dtype=np.int64)
        contexts, before, sessions = self._observe(examples, rows)
        for candidates, row in zip(self._of(examples, contexts), rows.tolist(), strict=True):
            self._add(candidates, row)
        self._features.count(examples, rows, before, sessions)
        self._events += len(examples)
        if self._events >= self._next_fit:
            self._trees = self._fit()
            self._next_fit = self._events * _GROWTH

    def learn_lists(self, lists: Sequence[ShownList]) -> None:
        """Ignore lists: their clicks are events too."""

    def publish(self) -> None:
        """Rank by the trees of the last fit from now on; counts are as of the last event learnt."""
        self._served = self._trees

    def scores(self, examples: Sequence[Positive], contexts: Contexts) -> Tensor:
        """Return scores [events, catalogue]; what is no candidate ranks below all candidates, by the linear score."""
        found = self._of(examples, contexts)
        scores = _NOT_A_CANDIDATE + np.stack([candidates.first_stage for candidates in found])
        for row, candidates, values in zip(scores, found, self._rank(found), strict=True):
            row[candidates.rows] = values
        return torch.from_numpy(scores)

    def judge_lists(self, lists: Sequence[ShownList], shoppers: Shoppers) -> JudgedLists:
        """Return scores of the items in lists; there are no probabilities."""
        known = [shoppers.context(shown.user_id, shown.session_id, shown.ts, only_before=True) for shown in lists]
        rows = [np.array([self._rows[item_id] for item_id in shown.item_ids], dtype=np.int64) for shown in lists]
        requests = [Request(shown.user_id, shown.ts) for shown in lists]
        found = self._features.of_candidates(requests, pad(known), rows)
        return JudgedLists([torch.from_numpy(values) for values in self._rank(found)], {})

    # ---- parts

    def _observe(self, examples: Sequence[Positive], rows: IntArray) -> tuple[Contexts, list[list[int]], IntArray]:
        """Return each event's context, earlier items of its session and key of its session; updates the shoppers."""
        contexts, before, sessions = [], [], []
        for example, row in zip(examples, rows.tolist(), strict=True):
            who = (example.user_id, example.session_id, example.ts)
            contexts.append(self._shoppers.context(*who))
            before.append(self._shoppers.session_before(*who, limit=PAIR_WINDOW_ITEMS))
            self._shoppers.update(*who, row)
            sessions.append(self._shoppers.session_key_of(example.user_id))
        return pad(contexts), before, np.array(sessions, dtype=np.int64)

    def _of(self, examples: Sequence[Positive], contexts: Contexts) -> list[Candidates]:
        return self._features.of_candidates([Request(example.user_id, example.ts) for example in examples], contexts)

    def _add(self, candidates: Candidates, row: int) -> None:
        """Add an event to the window, unless its item is no candidate: then no order of them would have found it."""
        is_item = candidates.rows == row
        if is_item.any():
            others = self._generator.permutation(np.flatnonzero(~is_item))[:_NEGATIVES]
            place = int(self._generator.integers(len(others) + 1))
            self._window.append((candidates.features[np.insert(others, place, int(is_item.argmax()))], place))

    def _fit(self) -> Any:
        groups = [len(features) for features, _ in self._window]
        starts = np.cumsum([0, *groups[:-1]])
        labels = np.zeros(sum(groups), dtype=np.float32)
        labels[starts + [place for _, place in self._window]] = 1
        rows = np.concatenate([features for features, _ in self._window])
        begin_from = _FIRST_STAGE_SCALE * rows[:, _FIRST_STAGE].astype(np.float64)
        data = lightgbm.Dataset(rows, labels, group=groups, init_score=begin_from, params=_PARAMETERS)
        parameters = _PARAMETERS | {"seed": self._seed, "num_threads": torch.get_num_threads()}
        return lightgbm.train(parameters, data, num_boost_round=_TREES)

    def _rank(self, found: Sequence[Candidates]) -> list[FloatArray]:
        """Return the scores [candidates] of each request's candidates."""
        rows = np.concatenate([candidates.features for candidates in found])
        scores = _FIRST_STAGE_SCALE * rows[:, _FIRST_STAGE]
        if self._served is not None:
            scores = scores + self._served.predict(rows, num_threads=torch.get_num_threads())
        ends = np.cumsum([len(candidates.rows) for candidates in found])[:-1]
        return np.split(scores.astype(np.float32), ends)
