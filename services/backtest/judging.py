"""Ranks of judged events, and the figures that follow from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats
from torch import Tensor

from peft_adapters.evaluation import list_ndcg

CUTOFF = 20

Floats = npt.NDArray[np.float64]


@dataclass(slots=True)
class Ranks:
    """What one run of one policy was judged by, one entry an event.

    Attributes:
        rank: 1 is best; ties count against the item, and so does a score that is no number.
        auc: share of other items sold before that score below it, ties half; NaN when there was none.
        first_of_item: no event of the item came before, in the data judged or learnt.
        new_user: no event of the user came before.
        candidates: size of the catalogue that was ranked.
        list_ndcg: NDCG@10 of each list in which something was clicked and something was not.
    """

    rank: list[int] = field(default_factory=list)
    auc: list[float] = field(default_factory=list)
    first_of_item: list[bool] = field(default_factory=list)
    new_user: list[bool] = field(default_factory=list)
    candidates: int = 0
    list_ndcg: list[float] = field(default_factory=list)

    def add(self, scores: Tensor, items: npt.NDArray[np.int64], sold: npt.NDArray[np.bool_]) -> None:
        """Judge events.

        Args:
            scores: [events, catalogue].
            items: [events] rows of what was bought.
            sold: [catalogue] items that had an event before the batch.
        """
        own = scores.gather(1, torch.from_numpy(items)[:, None])
        self.rank += (scores.shape[1] - (scores < own).sum(dim=1)).tolist()
        self.candidates = scores.shape[1]
        others = torch.from_numpy(sold).float()
        own_sold = others[torch.from_numpy(items)]
        below = (scores < own).float() @ others
        tied = (scores == own).float() @ others - own_sold
        self.auc += ((below + 0.5 * tied) / (others.sum() - own_sold)).tolist()

    def add_lists(self, scores: Sequence[Tensor], clicked: Sequence[Sequence[bool]]) -> None:
        """Judge lists by the scores of what was shown [items of the list] and what was clicked of it."""
        for own_scores, own_clicked in zip(scores, clicked, strict=True):
            if 0 < sum(own_clicked) < len(own_clicked):
                self.list_ndcg.append(list_ndcg(own_scores, own_clicked))


def figures(ranks: Ranks) -> dict[str, float]:
    """HR@20, NDCG@20, MRR and AUC, over all events and over the slices; AUC only where another item was sold before.

    Where lists were judged, NDCG@10 within lists too.
    """
    rank, first, new = np.array(ranks.rank), np.array(ranks.first_of_item), np.array(ranks.new_user)
    auc = np.array(ranks.auc)
    values = _of(rank, auc, "")
    for name, slice_ in (("first_of_item", first), ("new_user", new)):
        values[f"events_{name}"] = float(slice_.sum())
        if slice_.any():
            values |= _of(rank[slice_], auc[slice_], f"_{name}")
    if ranks.list_ndcg:
        values |= {"lists": float(len(ranks.list_ndcg)), "ndcg10_lists": float(np.mean(ranks.list_ndcg))}
    return values


def _of(rank: npt.NDArray[np.int64], auc: Floats, suffix: str) -> dict[str, float]:
    hit = rank <= CUTOFF
    finite = auc[np.isfinite(auc)]
    values = {
        f"hr20{suffix}": float(hit.mean()),
        f"ndcg20{suffix}": float(np.where(hit, 1 / np.log2(rank + 1), 0.0).mean()),
        f"mrr{suffix}": float((1 / rank).mean()),
    }
    return values | ({f"auc{suffix}": float(finite.mean())} if len(finite) else {})


def interval(values: Sequence[float]) -> dict[str, float | None]:
    """Mean over seeds and the half-width of its 95 % interval (Student's t); one seed has no interval."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return {"mean": mean, "ci95": None}
    spread = float(np.std(values, ddof=1) / np.sqrt(len(values)))
    return {"mean": mean, "ci95": float(stats.t.ppf(0.975, len(values) - 1)) * spread}
