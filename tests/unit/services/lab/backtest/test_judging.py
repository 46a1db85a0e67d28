"""Ranks and figures by hand."""

from array import array
from math import isnan, log2, sqrt

import numpy as np
import pytest
import torch

from peft_adapters.learning.lists import JudgedLists
from services.lab.offline.judging import RANDOM_ITEMS, Ranks, auc_among_random, figures, interval
from streams.examples import ShownList

ALL_SOLD = np.ones(4, dtype=bool)


def judged(scores: list[list[float]], items: list[int], sold: list[bool] | None = None) -> Ranks:
    ranks = Ranks()
    ranks.add(torch.tensor(scores), np.array(items), ALL_SOLD if sold is None else np.array(sold))
    ranks.first_of_item = [False] * len(items)
    ranks.new_user = [False] * len(items)
    return ranks


def test_rank_one_is_best() -> None:
    assert list(judged([[0.4, 0.3, 0.2, 0.1]] * 4, [0, 1, 2, 3]).rank) == [1, 2, 3, 4]


def test_ties_count_against_the_item() -> None:
    assert list(judged([[0.5, 0.5, 0.1, 0.5]] * 2, [0, 2]).rank) == [3, 4]
    assert list(judged([[0.0] * 4], [2]).rank) == [4]


def test_a_score_that_is_no_number_is_the_worst() -> None:
    nan = torch.nan
    assert list(judged([[nan, nan, nan, nan]], [0]).rank) == [4]
    assert list(judged([[nan, 0.2, 0.3, 0.1]], [0]).rank) == [4]
    assert list(judged([[nan, 0.2, 0.1, 0.1]], [1]).rank) == [2]  # what cannot be compared is taken to be above


def test_candidates_are_the_whole_catalogue() -> None:
    assert judged([[0.0] * 4], [2]).candidates == 4


def test_auc_is_the_share_of_items_sold_before_that_score_below() -> None:
    scores = [[0.4, 0.3, 0.3, 0.1]]
    assert judged(scores, [1]).auc.tolist() == pytest.approx([(1 + 0.5) / 3])
    assert judged(scores, [1], [True, True, False, True]).auc.tolist() == pytest.approx([1 / 2])
    assert judged(scores, [1], [True, False, False, False]).auc.tolist() == [0]
    assert judged(scores, [0], [False, False, True, True]).auc.tolist() == [1]


def test_no_auc_where_no_other_item_was_sold() -> None:
    ranks = judged([[0.4, 0.3, 0.2, 0.1]], [1], [False, True, False, False])
    assert isnan(ranks.auc[0])
    assert set(figures(ranks)) == {"hr20", "ndcg20", "mrr", "events_first_of_item", "events_new_user"}


def test_figures_by_hand() -> None:
    ranks = Ranks(
        rank=array("i", [1, 3, 20, 21]),
        auc=array("f", [1.0, 0.5, float("nan"), 0.0]),
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
    assert "auc_first3" not in values


# ---- an item's first events among random items


def test_only_the_first_three_events_of_an_item_are_judged_among_random_items() -> None:
    """In a catalogue of four, all three others are drawn."""
    ranks = Ranks()
    scores = torch.tensor([[0.4, 0.3, 0.3, 0.1], [0.4, 0.3, 0.3, 0.1], [0.1, 0.2, 0.3, 0.4], [0.0, 0.0, 0.0, 0.0]])
    ranks.add_first(scores, np.array([1, 0, 0, 3]), nth=np.array([1, 3, 4, 2]), index=np.arange(4))
    assert ranks.auc_first3.tolist() == pytest.approx([(1 + 0.5) / 3, 1.0, 0.5])
    ranks.rank, ranks.auc = array("i", [2, 1, 4, 4]), array("f", [0.5] * 4)
    ranks.first_of_item, ranks.new_user = [True, False, False, False], [False] * 4
    values = figures(ranks)
    assert values["events_first3"] == 3
    assert values["auc_first3"] == pytest.approx((0.5 + 1 + 0.5) / 3)


def test_random_items_are_others_all_different_and_follow_from_the_event_alone() -> None:
    item = 70
    below = np.arange(1_000) % 3 == 0  # of all others, a third scores below
    scores = torch.from_numpy(np.where(below, 0.0, 2.0))
    scores[item] = 1.0
    shares = [auc_among_random(scores, item, index) for index in range(300)]
    assert all(share * RANDOM_ITEMS == pytest.approx(round(share * RANDOM_ITEMS)) for share in shares)  # itself: no tie
    assert len(set(shares)) > 10
    assert np.mean(shares) == pytest.approx(1 / 3, abs=0.01)
    assert [auc_among_random(scores, item, index) for index in range(300)] == shares


def test_a_score_that_is_no_number_beats_no_random_item() -> None:
    assert auc_among_random(torch.tensor([torch.nan, 0.1, 0.2]), 0, 0) == 0.0


def test_a_catalogue_of_one_has_nothing_to_compare_with() -> None:
    ranks = Ranks()
    ranks.add_first(torch.tensor([[0.5]]), np.array([0]), nth=np.array([1]), index=np.array([0]))
    assert not ranks.auc_first3


def test_interval_is_students_t() -> None:
    values = interval([0.1, 0.2, 0.3])
    assert values["mean"] == pytest.approx(0.2)
    assert values["ci95"] == pytest.approx(4.3027 * 0.1 / sqrt(3), rel=1e-4)
    assert interval([0.1]) == {"mean": 0.1, "ci95": None}
    assert interval([0.2, 0.2])["ci95"] == 0


def test_probabilities_of_lists_are_judged_by_what_came_of_them() -> None:
    ranks = judged([[0.4, 0.3, 0.2, 0.1]], [0])
    lists = [ShownList("ann", None, 0, ("a", "b"), (0, 1), (True, False), bought=was) for was in ((True, False), ())]
    scores = [torch.tensor([2.0, 1.0])] * 2
    ranks.add_lists(JudgedLists(scores, {}), lists)
    assert not {"ece_click", "ece_purchase"} & set(figures(ranks))
    click, purchase = torch.tensor([0.9, 0.1, 0.9, 0.1]), torch.tensor([0.5, 0.1, 0.5, 0.1])
    ranks.add_lists(JudgedLists(scores, {"click": click, "purchase": purchase}), lists)
    values = figures(ranks)
    assert values["ece_click"] == pytest.approx(0.1)
    assert values["ece_purchase"] == pytest.approx(0.05)
