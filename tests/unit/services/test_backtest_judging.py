"""Ranks and figures by hand."""

from math import isnan, log2, sqrt

import numpy as np
import pytest
import torch

from services.backtest.judging import Ranks, figures, interval

ALL_SOLD = np.ones(4, dtype=bool)


def judged(scores: list[list[float]], items: list[int], sold: list[bool] | None = None) -> Ranks:
    ranks = Ranks()
    ranks.add(torch.tensor(scores), np.array(items), ALL_SOLD if sold is None else np.array(sold))
    ranks.first_of_item = [False] * len(items)
    ranks.new_user = [False] * len(items)
    return ranks


def test_rank_one_is_best() -> None:
    assert judged([[0.4, 0.3, 0.2, 0.1]] * 4, [0, 1, 2, 3]).rank == [1, 2, 3, 4]


def test_ties_count_against_the_item() -> None:
    assert judged([[0.5, 0.5, 0.1, 0.5]] * 2, [0, 2]).rank == [3, 4]
    assert judged([[0.0] * 4], [2]).rank == [4]


def test_a_score_that_is_no_number_is_the_worst() -> None:
    nan = torch.nan
    assert judged([[nan, nan, nan, nan]], [0]).rank == [4]
    assert judged([[nan, 0.2, 0.3, 0.1]], [0]).rank == [4]
    assert judged([[nan, 0.2, 0.1, 0.1]], [1]).rank == [2]  # what cannot be compared is taken to be above


def test_candidates_are_the_whole_catalogue() -> None:
    assert judged([[0.0] * 4], [2]).candidates == 4


def test_auc_is_the_share_of_items_sold_before_that_score_below() -> None:
    scores = [[0.4, 0.3, 0.3, 0.1]]
    assert judged(scores, [1]).auc == pytest.approx([(1 + 0.5) / 3])
    assert judged(scores, [1], [True, True, False, True]).auc == pytest.approx([1 / 2])
    assert judged(scores, [1], [True, False, False, False]).auc == [0]
    assert judged(scores, [0], [False, False, True, True]).auc == [1]


def test_no_auc_where_no_other_item_was_sold() -> None:
    ranks = judged([[0.4, 0.3, 0.2, 0.1]], [1], [False, True, False, False])
    assert isnan(ranks.auc[0])
    assert set(figures(ranks)) == {"hr20", "ndcg20", "mrr", "events_first_of_item", "events_new_user"}


def test_figures_by_hand() -> None:
    ranks = Ranks(
        rank=[1, 3, 20, 21],
        auc=[1.0, 0.5, float("nan"), 0.0],
        first_of_item=[False, True, False, True],
        new_user=[False] * 4,
        candidates=100,
    )
    values = figures(ranks)
    assert values["hr20"] == 0.75
    assert values["ndcg20"] == pytest.approx((1 + 1 / log2(4) + 1 / log2(21)) / 4)
    assert values["mrr"] == pytest.approx((1 + 1 / 3 + 1 / 20 + 1 / 21) / 4)
    assert values["auc"] == pytest.approx(0.5)
    assert (values["hr20_first_of_item"], values["events_first_of_item"]) == (0.5, 2)
    assert values["auc_first_of_item"] == pytest.approx(0.25)
    assert values["events_new_user"] == 0
    assert "hr20_new_user" not in values


def test_interval_is_students_t() -> None:
    values = interval([0.1, 0.2, 0.3])
    assert values["mean"] == pytest.approx(0.2)
    assert values["ci95"] == pytest.approx(4.3027 * 0.1 / sqrt(3), rel=1e-4)
    assert interval([0.1]) == {"mean": 0.1, "ci95": None}
    assert interval([0.2, 0.2])["ci95"] == 0
