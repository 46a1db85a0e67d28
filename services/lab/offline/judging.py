"""Ranks of judged events, and the figures computed from them."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats
from torch import Tensor

from peft_adapters.learning.batches import ShownList
from peft_adapters.learning.evaluation import list_ndcg
from peft_adapters.learning.lists import JudgedLists
from peft_adapters.ranking.calibration import CalibrationBins

CUTOFF = 20
FIRST_EVENTS = 3  # events of an item during which it counts as new
RANDOM_ITEMS = 100  # random items that a new item is compared with

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


def _ints() -> array[int]:
    return array("i")


def _floats() -> array[float]:
    return array("f")


@dataclass(slots=True)
class Ranks:
    """The ranks of one run of one policy, in a few bytes per event.

    Attributes:
        rank: ranks from 1; ties count against the item, and so does a score that is not finite.
        auc: share of other items sold before that score below the item, ties half; NaN if there was none.
        auc_first3: for the first three events of each item, the same share over random items of the whole catalogue.
        first_of_item: whether the item had no earlier event, in the data judged or learnt.
        new_user: whether the user had no earlier event.
        first_index: index of the first judged event in the stream, from 0.
        candidates: size of the ranked catalogue.
        list_ndcg: NDCG@10 of each list in which some items were clicked and some were not.
        calibration: by outcome, predictions against outcomes over all items shown.
    """

    rank: array[int] = field(default_factory=_ints)
    auc: array[float] = field(default_factory=_floats)
    auc_first3: array[float] = field(default_factory=_floats)
    first_of_item: list[bool] = field(default_factory=list)
    new_user: list[bool] = field(default_factory=list)
    first_index: int = 0
    candidates: int = 0
    list_ndcg: array[float] = field(default_factory=_floats)
    calibration: dict[str, CalibrationBins] = field(default_factory=dict)

    def add(self, scores: Tensor, items: Ints, sold: Flags) -> None:
        """Judge events.

        Args:
            scores: [events, catalogue] scores of the published state.
            items: [events] rows of the items bought.
            sold: [catalogue] whether the item had an event before the micro-batch.
        """
        target = scores.gather(1, torch.from_numpy(items)[:, None])
        self.rank.extend((scores.shape[1] - (scores < target).sum(dim=1)).tolist())
        self.candidates = scores.shape[1]
        others = torch.from_numpy(sold).float()
        target_sold = others[torch.from_numpy(items)]
        below = (scores < target).float() @ others
        tied = (scores == target).float() @ others - target_sold
        self.auc.extend(((below + 0.5 * tied) / (others.sum() - target_sold)).tolist())

    def add_first(self, scores: Tensor, items: Ints, *, nth: Ints, index: Ints) -> None:
        """Judge those events that are among the first of their item.

        Args:
            scores: [events, catalogue] scores of the published state.
            items: [events] rows of the items bought.
            nth: [events] number of each event among its item's events, from 1.
            index: [events] index of each event in the stream.
        """
        if scores.shape[1] > 1:
            for row in np.flatnonzero(nth <= FIRST_EVENTS).tolist():
                self.auc_first3.append(auc_among_random(scores[row], int(items[row]), int(index[row])))

    def add_lists(self, judged: JudgedLists, lists: Sequence[ShownList]) -> None:
        """Judge lists by their clicks and purchases."""
        for scores, shown in zip(judged.scores, lists, strict=True):
            if 0 < sum(shown.clicked) < len(shown.clicked):
                self.list_ndcg.append(list_ndcg(scores, shown.clicked))
        for outcome, probability in judged.probabilities.items():
            happened = [was for shown in lists for was in (shown.clicked if outcome == "click" else shown.bought)]
            self.calibration.setdefault(outcome, CalibrationBins()).add(probability, torch.tensor(happened))


def auc_among_random(scores: Tensor, item: int, index: int) -> float:
    """Return the share of random other items that score below an item, ties half.

    The random items depend on the event alone, so that all policies are compared on the same ones.

    Args:
        scores: [catalogue] scores for one event.
        item: row of the item bought.
        index: index of the event in the stream.
    """
    others = len(scores) - 1
    drawn = np.random.default_rng(index).choice(others, size=min(RANDOM_ITEMS, others), replace=False)
    random = scores[torch.from_numpy(drawn + (drawn >= item))]
    return float(((random < scores[item]).float() + 0.5 * (random == scores[item]).float()).mean())


def ndcg(rank: npt.NDArray[np.int32]) -> Floats:
    """Return NDCG@20 of events from the ranks of their items."""
    return np.where(rank <= CUTOFF, 1 / np.log2(rank + 1.0), 0.0)


def hits(rank: npt.NDArray[np.int32]) -> Floats:
    """Return HR@20 of events from the ranks of their items."""
    return (rank <= CUTOFF).astype(np.float64)


def ranks_of(ranks: Ranks) -> npt.NDArray[np.int32]:
    """Return the ranks [events] as an array."""
    return np.array(ranks.rank, dtype=np.int32)


def figures(ranks: Ranks) -> dict[str, float]:
    """Return HR@20, NDCG@20, MRR and AUC over all events and over the slices.

    AUC covers the events where another item was sold before. `auc_first3` is among random items of the whole
    catalogue, over the first three events of each item. If lists were judged, NDCG@10 within lists and the expected
    calibration error of each outcome are there too.
    """
    rank, auc = ranks_of(ranks), np.array(ranks.auc)
    first, new = np.array(ranks.first_of_item), np.array(ranks.new_user)
    values = _of(rank, auc, "")
    for name, slice_ in (("first_of_item", first), ("new_user", new)):
        values[f"events_{name}"] = float(slice_.sum())
        if slice_.any():
            values |= _of(rank[slice_], auc[slice_], f"_{name}")
    if ranks.auc_first3:
        early = np.array(ranks.auc_first3)
        values |= {"events_first3": float(len(early)), "auc_first3": float(early.mean(dtype=np.float64))}
    if ranks.list_ndcg:
        values |= {"lists": float(len(ranks.list_ndcg)), "ndcg10_lists": float(np.mean(np.array(ranks.list_ndcg)))}
    errors = {f"ece_{outcome}": bins.error() for outcome, bins in ranks.calibration.items()}
    return values | {name: error for name, error in errors.items() if error is not None}


def _of(rank: npt.NDArray[np.int32], auc: npt.NDArray[np.float32], suffix: str) -> dict[str, float]:
    finite = auc[np.isfinite(auc)]
    values = {
        f"hr20{suffix}": float(hits(rank).mean()),
        f"ndcg20{suffix}": float(ndcg(rank).mean()),
        f"mrr{suffix}": float((1 / rank).mean()),
    }
    return values | ({f"auc{suffix}": float(finite.mean(dtype=np.float64))} if len(finite) else {})


def interval(values: Sequence[float]) -> dict[str, float | None]:
    """Return the mean over seeds and the half-width of its 95 % interval (Student's t), None with one seed."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return {"mean": mean, "ci95": None}
    spread = float(np.std(values, ddof=1) / np.sqrt(len(values)))
    return {"mean": mean, "ci95": float(stats.t.ppf(0.975, len(values) - 1)) * spread}
