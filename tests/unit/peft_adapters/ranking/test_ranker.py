"""Scores are weighted sums of features, a frozen ranker never changes, and new items are scored by their text."""

import numpy as np
import pytest
import torch
from tiny_model import paired_stream, random_stream, tiny_learner

from peft_adapters.learning.learner import Learner
from peft_adapters.ranking.ranker import GATE_EVENTS, ROLES, FrozenRanker, Ranker
from peft_adapters.ranking.shoppers import pad
from peft_adapters.settings import FEATURES, LearnerSettings

CONTEXTS = pad([([2, 1, 0], [0, 0, 1]), ([], []), ([5, 9, 5], [1, 2, 2])])


@pytest.fixture
def learner() -> Learner:
    learner = tiny_learner(LearnerSettings(), items=30)
    for seed in range(3):
        learner.learn(learner.observe(random_stream(50, items=30, seed=seed)))
    return learner


def test_empty_ranker_has_a_weight_for_each_feature() -> None:
    ranker = Ranker.empty(8)
    assert ranker.heads.shape == (len(FEATURES),)
    assert len(ranker) == 0
    assert ranker.vectors("query").shape == (0, 8)


def test_growing_keeps_rows_and_adds_blank_ones(learner: Learner) -> None:
    ranker = learner.ranker
    before = {role: rows.clone() for role, rows in ranker.residuals.items()}
    text = ranker.text.clone()
    ranker.grow(33)
    ranker.grow(5)
    assert len(ranker) == len(ranker.counters.events) == 33
    assert torch.equal(ranker.text[:30], text)
    for role in ROLES:
        assert torch.equal(ranker.residuals[role][:30], before[role])
        assert not ranker.residuals[role][30:].any()


def test_gate_lets_the_residual_in_with_evidence() -> None:
    ranker = Ranker.empty(2)
    ranker.grow(3)
    ranker.counters.update(np.array([1] * int(GATE_EVENTS) + [2]), [[]] * 6)
    assert ranker.gate()[:, 0].tolist() == pytest.approx([0, 0.5, 1 / 6])
    ranker.text = torch.tensor([[1.0, 0.0]] * 3)
    ranker.residuals["query"] = torch.tensor([[0.0, 2.0]] * 3)
    vectors = ranker.vectors("query")
    assert vectors[0].tolist() == [1, 0]  # without events: text alone
    torch.testing.assert_close(vectors[1], torch.tensor([0.5**0.5, 0.5**0.5]))
    assert torch.equal(ranker.vectors("candidate"), ranker.text)


def test_score_is_the_weighted_sum_of_the_features(learner: Learner) -> None:
    frozen = FrozenRanker(learner.ranker)
    features = frozen.features(CONTEXTS)
    expected = sum(weight * part for weight, part in zip(learner.ranker.heads, features, strict=True))
    torch.testing.assert_close(frozen.score(CONTEXTS), expected)
    assert features.shape == (len(FEATURES), 3, 30)
    assert len(frozen) == 30


def test_score_of_some_candidates_equals_the_whole_catalogues(learner: Learner) -> None:
    frozen = FrozenRanker(learner.ranker)
    columns = np.array([0, 7, 8, 29])
    torch.testing.assert_close(frozen.score(CONTEXTS, columns), frozen.score(CONTEXTS)[:, columns])


def test_a_request_is_scored_the_same_alone_and_among_others(learner: Learner) -> None:
    frozen = FrozenRanker(learner.ranker)
    together = frozen.score(CONTEXTS)
    for index in range(len(CONTEXTS)):
        alone = frozen.score(pad([(CONTEXTS.items[index][CONTEXTS.ages[index] >= 0].tolist(),
                                   CONTEXTS.ages[index][CONTEXTS.ages[index] >= 0].tolist())]))  # fmt: skip
        torch.testing.assert_close(alone[0], together[index])


def test_scores_what_the_learner_judges(learner: Learner) -> None:
    """A worker's ranker and the learner that published it score a request equally."""
    batch = learner.observe(paired_stream(20, items=30, seed=9))
    torch.testing.assert_close(FrozenRanker(learner.ranker).score(batch.contexts), learner.judge(batch))


def test_a_frozen_ranker_stands_still_while_its_learner_goes_on(learner: Learner) -> None:
    frozen = FrozenRanker(learner.ranker)
    before = frozen.score(CONTEXTS)
    for seed in range(4):
        learner.learn(learner.observe(random_stream(50, items=30, seed=10 + seed)))
    assert torch.equal(frozen.score(CONTEXTS), before)
    assert not torch.equal(FrozenRanker(learner.ranker).score(CONTEXTS), before)


def test_context_rows_are_distinct_and_sorted() -> None:
    assert CONTEXTS.rows().tolist() == [0, 1, 2, 5, 9]
    assert pad([([3], [0]), ([], [])], [[7, 3], [1]]).rows().tolist() == [1, 3, 7]


def test_of_a_large_catalogue_vectors_are_made_in_parts_or_when_asked_for_and_are_the_same(
    learner: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranker = learner.ranker
    whole = {role: ranker.vectors(role) for role in ROLES}
    score = FrozenRanker(ranker).score(CONTEXTS)
    monkeypatch.setattr("peft_adapters.ranking.ranker._VECTORS_CHUNK", 7)
    monkeypatch.setattr("peft_adapters.ranking.ranker.PRECOMPUTED_ITEMS", 7)
    for role in ROLES:
        assert torch.equal(ranker.vectors(role), whole[role])
        assert torch.equal(ranker.vectors(role, np.array([29, 3])), whole[role][[29, 3]])
    assert torch.equal(FrozenRanker(ranker, is_fixed=True).score(CONTEXTS), score)
