"""Ranks of judged events, and the figures that follow from them."""

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
FIRST_EVENTS = 3  # of an item: where it is still new
RANDOM_ITEMS = 100  # that an item in its first events is compared with

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


def _ints() -> array[int]:
    return array("i")


def _floats() -> array[float]:
    return array("f")


@dataclass(slots=True)
class Ranks:
    """What one run of one policy was judged by, a small entry an event.

    Attributes:
        rank: 1 is best; ties count against the item, and so does a score that is no number.
        auc: share of other items sold before that score below it, ties half; NaN when there was none.
        auc_first3: of events that are among the first three of their item alone, the same share of random items of the
            whole catalogue.
        first_of_item: no event of the item came before, in the data judged or learnt.
        new_user: no event of the user came before.
        first_index: place of the first judged event in the stream, from 0.
        candidates: size of the catalogue that was ranked.
        list_ndcg: NDCG@10 of each list in which something was clicked and something was not.
        calibration: by outcome, predictions against what came of them, over all that was shown.
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
            scores: [events, catalogue].
            items: [events] rows of what was bought.
            sold: [catalogue] items that had an event before the batch.
        """
        own = scores.gather(1, torch.from_numpy(items)[:, None])
        self.rank.extend((scores.shape[1] - (scores < own).sum(dim=1)).tolist())
        self.candidates = scores.shape[1]
        others = torch.from_numpy(sold).float()
        own_sold = others[torch.from_numpy(items)]
        below = (scores < own).float() @ others
        tied = (scores == own).float() @ others - own_sold
        self.auc.extend(((below + 0.5 * tied) / (others.sum() - own_sold)).tolist())

    def add_first(self, scores: Tensor, items: Ints, *, nth: Ints, index: Ints) -> None:
        """Judge those of some events that are among the first of their item.

        Args:
            scores: [events, catalogue].
            items: [events] rows of what was bought.
            nth: [events] which event of its item each is, from 1.
            index: [events] place of each in the stream.
        """
        if scores.shape[1] > 1:
            for row in np.flatnonzero(nth <= FIRST_EVENTS).tolist():
                self.auc_first3.append(auc_among_random(scores[row], int(items[row]), int(index[row])))

    def add_lists(self, judged: JudgedLists, lists: Sequence[ShownList]) -> None:
        """Judge lists by what was clicked and bought of them."""
        for scores, shown in zip(judged.scores, lists, strict=True):
            if 0 < sum(shown.clicked) < len(shown.clicked):
                self.list_ndcg.append(list_ndcg(scores, shown.clicked))
        for outcome, probability in judged.probabilities.items():
            happened = [was for shown in lists for was in (shown.clicked if outcome == "click" else shown.bought)]
            self.calibration.setdefault(outcome, CalibrationBins()).add(probability, torch.tensor(happened))


def auc_among_random(scores: Tensor, item: int, index: int) -> float:
    """Share of random other items that score below an item, ties half.

    Which ones follows from the event alone, so that all policies are compared on the same.

    Args:
        scores: [catalogue] of one event.
        item: row of what was bought.
        index: place of the event in the stream.
    """
    others = len(scores) - 1
    drawn = np.random.default_rng(index).choice(others, size=min(RANDOM_ITEMS, others), replace=False)
    random = scores[torch.from_numpy(drawn + (drawn >= item))]
    return float(((random < scores[item]).float() + 0.5 * (random == scores[item]).float()).mean())


def ndcg(rank: npt.NDArray[np.int32]) -> Floats:
    """NDCG@20 of events whose item came at a rank."""
    return np.where(rank <= CUTOFF, 1 / np.log2(rank + 1.0), 0.0)


def hits(rank: npt.NDArray[np.int32]) -> Floats:
    """HR@20 of the same."""
    return (rank <= CUTOFF).astype(np.float64)


def ranks_of(ranks: Ranks) -> npt.NDArray[np.int32]:
    """[events] ranks as an array."""
    return np.array(ranks.rank, dtype=np.int32)


def figures(ranks: Ranks) -> dict[str, float]:
    """HR@20, NDCG@20, MRR and AUC, over all events and over the slices; AUC only where another item was sold before.

    `auc_first3` is among random items of the whole catalogue, over the first three events of each item. Where lists
    were judged, NDCG@10 within lists too, and the expected calibration error of each outcome.
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
    """Mean over seeds and the half-width of its 95 % interval (Student's t); one seed has no interval."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return {"mean": mean, "ci95": None}
    spread = float(np.std(values, ddof=1) / np.sqrt(len(values)))
    return {"mean": mean, "ci95": float(stats.t.ppf(0.975, len(values) - 1)) * spread}
