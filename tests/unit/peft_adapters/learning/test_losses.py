"""The loss of positives: what focus does to it, against the generalised cross-entropy written down."""

import pytest
import torch
from tiny_model import paired_stream, tiny_learner
from torch import Tensor

from peft_adapters.learning.batches import Batch
from peft_adapters.learning.learner import Learner
from peft_adapters.learning.losses import Side, focused, positives_features, positives_losses
from peft_adapters.ranking.features import affinity_features, weighted_sum
from peft_adapters.settings import LearnerSettings


@pytest.fixture
def learner() -> Learner:
    learner = tiny_learner(LearnerSettings(lora=False), items=24)
    learner.learn(learner.observe(paired_stream(200, items=24, seed=0)))
    return learner


def _loss(learner: Learner, batch: Batch, heads: Tensor, focus: float) -> Tensor:
    query = Side(learner.ranker, "query", batch.context_rows)
    candidate = Side(learner.ranker, "candidate", batch.candidates)
    features = positives_features(batch, learner.ranker.global_preference, query, candidate)
    return focused(positives_losses(batch, heads, features, batch.candidates, batch.log_expected), focus).mean()


def _log_probabilities(learner: Learner, batch: Batch, heads: Tensor) -> Tensor:
    ranker = learner.ranker
    affinities = affinity_features(
        batch.affinity_weights,
        ranker.vectors("query", batch.context_rows),
        ranker.vectors("candidate"),
        ranker.global_preference,
        ranker.text_share(),
    )
    scores = weighted_sum(heads, batch.counter_features, affinities)
    return torch.log_softmax(scores, dim=1)[torch.arange(len(batch)), torch.from_numpy(batch.items)]


def test_without_focus_it_is_cross_entropy(learner: Learner) -> None:
    batch = learner.observe(paired_stream(60, items=24, seed=1))
    expected = -_log_probabilities(learner, batch, learner.positives.heads).mean()
    torch.testing.assert_close(_loss(learner, batch, learner.positives.heads, 0.0), expected)


@pytest.mark.parametrize("focus", [0.25, 1.0])
def test_its_gradient_points_where_the_generalised_cross_entropy_points(learner: Learner, focus: float) -> None:
    batch = learner.observe(paired_stream(60, items=24, seed=1))
    heads = learner.positives.heads.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(_loss(learner, batch, heads, focus), [heads])
    written_down = (1 - torch.exp(focus * _log_probabilities(learner, batch, heads))) / focus
    (expected,) = torch.autograd.grad(written_down.mean(), [heads])
    torch.testing.assert_close(gradient / gradient.norm(), expected / expected.norm())
