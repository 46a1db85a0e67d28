"""Lexical search by BM25, and fusion of rankings."""

import numpy as np
import pytest

from peft_adapters.ranking.lexical import LexicalIndex
from peft_adapters.ranking.retrieval import reciprocal_rank_fusion, top_k

TEXTS = ["Red mug", "blue MUG, large", "red lamp", "", "an oak table of the finest oak"]


def ranked(query: str) -> list[int]:
    scores = LexicalIndex(TEXTS).scores(query)
    return [place for place in top_k(scores, len(TEXTS)).tolist() if scores[place] > 0]


def test_what_has_more_and_rarer_words_of_a_query_comes_first() -> None:
    assert ranked("red mug")[0] == 0
    assert sorted(ranked("red mug")) == [0, 1, 2]
    assert ranked("OAK") == [4]
    assert ranked("large red") == [1, 0, 2], "`large` is rarer than `red`"
    assert ranked("mug?!") == [0, 1]


@pytest.mark.parametrize("query", ["teapot", "", "?!", "\U0001f600"])
def test_words_that_no_text_has_find_nothing(query: str) -> None:
    assert ranked(query) == []


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("lapm", [2]),  # neighbours swapped
        ("lagre", [1]),
        ("mgu", []),  # too short to tell
        ("redmug", [0, 1, 2]),  # two words in one
        ("tabel lamp", [2, 4]),
        ("finestof", [4]),  # two edits of a long word
        ("lamp 350", [2]),
    ],
)
def test_misspelt_words_are_bridged(query: str, found: list[int]) -> None:
    assert sorted(ranked(query)) == found


def test_a_word_that_texts_have_is_never_replaced() -> None:
    index = LexicalIndex(["red lamp", "red lamb"])
    assert (index.scores("lamp") > 0).tolist() == [True, False]
    assert (index.scores("lam p") > 0).tolist() == [False, False]


def test_numbers_are_never_replaced() -> None:
    assert not LexicalIndex(["saw 4000", "saw 5000"]).scores("4001").any()


def test_few_words_of_an_endless_query_are_bridged() -> None:
    index = LexicalIndex(["lamp"])
    index.scores(" ".join(f"lamq{chr(97 + number % 26)}" for number in range(400)))
    assert len(index._spelling._found) <= 8


@pytest.mark.parametrize("texts", [[], [""], ["", "?"]])
def test_texts_without_words_can_be_indexed(texts: list[str]) -> None:
    index = LexicalIndex(texts)
    assert len(index) == len(texts)
    assert index.scores("red").tolist() == [0.0] * len(texts)


def test_best_gives_the_highest_in_order_and_never_what_is_ruled_out() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        scores = rng.integers(0, 5, size=20).astype(np.float32)
        scores[rng.random(20) < 0.3] = -np.inf
        for count in (1, 4, 20, 30):
            expected = [place for place in np.argsort(-scores, kind="stable").tolist() if np.isfinite(scores[place])]
            assert top_k(scores, count).tolist() == expected[:count]
    assert top_k(np.full(3, -np.inf, dtype=np.float32), 2).tolist() == []
    assert top_k(np.zeros(0, dtype=np.float32), 2).tolist() == []


def test_fusion_rewards_what_several_orders_put_high_and_marks_what_none_has() -> None:
    orders = [np.array([3, 1, 2]), np.array([1, 0])]
    scores = reciprocal_rank_fusion(orders, (1.0, 1.0), 5)
    assert scores[1] == pytest.approx(1 / 62 + 1 / 61)
    assert scores[3] == pytest.approx(1 / 61)
    assert scores[4] == -np.inf
    assert top_k(scores, 5).tolist() == [1, 3, 0, 2]
    assert top_k(reciprocal_rank_fusion(orders, (1.0, 0.0), 5), 2).tolist() == [3, 1]
