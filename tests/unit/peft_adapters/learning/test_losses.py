"""The loss of positives: what focus does to it, against the generalised cross-entropy written down."""

import numpy as np
import pytest
import torch
from tiny_model import paired_stream, tiny_learner
from torch import Tensor

from peft_adapters.learning.batches import Batch
from peft_adapters.learning.learner import Learner
from peft_adapters.learning.losses import focused, positives_losses
from peft_adapters.learning.step_features import Side, feature_scores, positives_features
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
    query = Side(learner.ranker, "query", batch.context_rows)
    candidate = Side(learner.ranker, "candidate", np.arange(len(learner.ranker)))
    scores = feature_scores(heads, positives_features(batch, learner.ranker.global_preference, query, candidate))
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


def test_item_vectors_have_the_gradients_of_the_normalised_sum(learner: Learner) -> None:
    rows, ranker = np.array([2, 5, 11]), learner.ranker
    live = ranker.text[torch.from_numpy(rows[1:])].clone().requires_grad_()
    side = Side(ranker, "candidate", rows, live_rows=rows[1:], live=live)
    residual = side.residual.detach().clone().requires_grad_()
    text = torch.cat([ranker.text[rows[:1]], live])
    expected = torch.nn.functional.normalize(text + ranker.gate(rows) * residual, dim=1)
    torch.testing.assert_close(side.vectors, expected)
    gradient = torch.randn(expected.shape, generator=torch.Generator().manual_seed(0))
    own = torch.autograd.grad(side.vectors, [side.residual, live], gradient)
    for one, other in zip(own, torch.autograd.grad(expected, [residual, live], gradient), strict=True):
        torch.testing.assert_close(one, other)
