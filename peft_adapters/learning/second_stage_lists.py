"""Lists as the second stage learns from them, before they are learnt."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from peft_adapters.learning.batches import ListBatch
from peft_adapters.learning.losses import DelayedFeedback, list_features
from peft_adapters.ranking.arrays import IntArray
from peft_adapters.ranking.ranker import Ranker
from peft_adapters.ranking.second_stage_features import VectorTable
from peft_adapters.settings import SECOND_STAGE_FEATURES

_LIST_ITEMS = 64  # items of a longer list beyond these are not learnt from


@dataclass(frozen=True, slots=True)
class ListGroups:
    """Lists, without corrections of labels that were learnt before, padded to one width.

    Attributes:
        inputs: [lists, inputs, items] inputs of the shown items.
        scores: [lists, items] scores by the first stage, minus infinity for padding.
        logits: [lists, items] log odds of a click by the first stage and the position.
        clicked: [lists, items] 1 where the item was clicked.
        weight: [lists, items] weight in the loss.
    """

    inputs: Tensor
    scores: Tensor
    logits: Tensor
    clicked: Tensor
    weight: Tensor

    def __len__(self) -> int:
        """Return the number of lists."""
        return len(self.scores)

    @property
    def is_candidate(self) -> Tensor:
        """Return for each place whether it holds an item, [lists, items]."""
        return self.scores > -torch.inf

    def gains(self, output: Tensor) -> Tensor:
        """Return how much a network's outputs [lists, items] improve the NDCG, [lists]; NaN without a click."""
        return self._ndcg(self.scores + output) - self._ndcg(self.scores)

    def _ndcg(self, scores: Tensor) -> Tensor:
        discount = 1 / torch.log2(torch.arange(2, scores.shape[1] + 2))
        order = scores.argsort(dim=1, descending=True, stable=True)
        best = (self.clicked.sort(dim=1, descending=True).values * discount).sum(dim=1)
        return (self.clicked.gather(1, order) * discount).sum(dim=1) / best

    def kept(self) -> dict[str, Tensor]:
        """Return what a step on these lists needs, beside the inputs."""
        return {"logits": self.logits, "clicked": self.clicked, "weight": self.weight}


def known_list_features(batch: ListBatch, ranker: Ranker) -> Tensor:
    """Return the features [FEATURES, shown] of shown items, passed-over items included, under a ranker's weights."""
    query = ranker.vectors("query", batch.context_rows)
    candidate, share = ranker.vectors("candidate", batch.items), ranker.text_share(batch.items)
    return list_features(batch, ranker.global_preference, query, candidate, share)


def list_inputs(batch: ListBatch, ranker: Ranker, features: Tensor) -> Tensor:
    """Return the second stage's inputs [inputs, shown] of shown items.

    Args:
        batch: the observed lists.
        ranker: weights and counters that the score follows from.
        features: [FEATURES, shown] features of the first stage.
    """
    of = ranker.second_stage_features()
    items = np.unique(batch.items)
    query = VectorTable(ranker.vectors("query", batch.context_rows).numpy(), batch.context_rows)
    candidate = VectorTable(ranker.vectors("candidate", items).numpy(), items)
    lengths = np.bincount(batch.owner, minlength=len(batch))
    more = torch.empty(len(SECOND_STAGE_FEATURES), len(batch.items))
    for length in np.unique(lengths[lengths > 0]):  # all lists of one length at a time
        lists = np.flatnonzero(lengths == length)
        places = np.flatnonzero(lengths[batch.owner] == length).reshape(len(lists), length)
        contexts = batch.contexts.part(lists)
        values = of.features(contexts, batch.items[places], query=query, candidate=candidate)
        more[:, torch.from_numpy(places)] = torch.from_numpy(values).transpose(0, 1)
    return torch.cat([features, more, (ranker.heads @ features)[None]])


def list_groups(batch: ListBatch, ranker: Ranker, examination: Tensor, feedback: DelayedFeedback) -> ListGroups:
    """Return lists with what a step on them needs.

    Args:
        batch: the observed lists.
        ranker: weights of the first stage that the network is added to.
        examination: [2] parameters of the examination model, see `losses.lists_loss`.
        feedback: counts of clicks in time and of late ones.
    """
    inputs = list_inputs(batch, ranker, known_list_features(batch, ranker))
    owner, clicked = torch.from_numpy(batch.owner), torch.from_numpy(batch.clicked)
    scores = inputs[-1]
    lengths = torch.bincount(owner, minlength=len(batch)).clamp(min=1)
    means = torch.zeros(len(batch)).index_add(0, owner, scores) / lengths
    position = torch.from_numpy(np.log1p(batch.position)).float()
    logits = scores - means[owner] + examination[0] - examination[1] * position
    weight = feedback.weights(torch.sigmoid(logits), clicked) * batch.weight[owner]
    places = np.flatnonzero(~batch.is_correction & (batch.weight.numpy()[batch.owner] > 0))
    return _laid_out(inputs, (scores, logits, clicked.float(), weight), batch.owner, places)


def _laid_out(
    inputs: Tensor, others: tuple[Tensor, Tensor, Tensor, Tensor], owner: IntArray, places: IntArray
) -> ListGroups:
    """Lay shown items out as lists of one width.

    Args:
        inputs: [inputs, shown] inputs of the shown items.
        others: scores, logits, clicks and weights, [shown] each.
        owner: [shown] index of the item's list, in order.
        places: [used] sorted indices of the items that are learnt from; lists without any are left out.
    """
    lists, row = np.unique(owner[places], return_inverse=True)
    column = np.arange(len(places)) - np.searchsorted(row, row)
    fits = column < _LIST_ITEMS
    to = (..., torch.from_numpy(row[fits]), torch.from_numpy(column[fits]))
    used = torch.from_numpy(places[fits])

    def table(values: Tensor, filler: float) -> Tensor:
        laid_out = torch.full((*values.shape[:-1], len(lists), _LIST_ITEMS), filler)
        laid_out[to] = values[..., used]
        return laid_out

    fillers = (-torch.inf, -torch.inf, 0.0, 0.0)
    return ListGroups(
        table(inputs, 0.0).transpose(0, 1),
        *(table(values, filler) for values, filler in zip(others, fillers, strict=True)),
    )
