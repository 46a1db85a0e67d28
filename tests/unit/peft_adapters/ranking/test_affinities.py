"""Affinities and scores of compiled loops, against the same sums written as tensor operations; gradients too."""

import numpy as np
import pytest
import torch
from torch import Tensor

from peft_adapters.learning.step_features import Features, feature_scores
from peft_adapters.ranking import affinities
from peft_adapters.ranking.affinities import Affinities, ContextParts, affinity_features, heads_gradient, weighted_sum
from peft_adapters.ranking.features import affinity_weights, context_weights, pad_features, pair_affinities
from peft_adapters.ranking.shoppers import pad
from peft_adapters.settings import (
    AFFINITIES,
    AFFINITY_FEATURES,
    COUNTER_FEATURES,
    FEATURES,
    NEW_AFFINITIES,
    QUERY_FEATURES,
)

CONTEXTS, ROWS, CANDIDATES, DIM = 4, 6, 7, 8


def _random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _unit(count: int, seed: int) -> Tensor:
    return torch.nn.functional.normalize(_random(count, DIM, seed=seed), dim=1)


@pytest.fixture
def weights() -> Tensor:
    """Return weights [AFFINITIES, contexts, rows]; a context lacks a session, one a last item, and one is empty."""
    weights = _random(len(AFFINITIES), CONTEXTS, ROWS, seed=0).abs()
    weights[:, :, 1] = 0  # a row that no context uses
    weights[0, 1] = 0
    weights[1, 2] = 0
    weights[:, 3] = 0
    weights[0, 0, 3] = 0
    return weights


def _inputs(weights: Tensor, *, with_query: bool) -> tuple[Tensor, ...]:
    query_vector = _random(CONTEXTS, DIM, seed=5) if with_query else None
    if query_vector is not None:
        query_vector[1] = 0  # without a search query
    text_share = torch.rand(CANDIDATES, generator=torch.Generator().manual_seed(4))
    inputs = (weights, _unit(ROWS, 1), _unit(CANDIDATES, 2), _random(DIM, seed=3), text_share)
    return inputs if query_vector is None else (*inputs, query_vector)


def _reference(
    weights: Tensor,
    query: Tensor,
    candidates: Tensor,
    global_preference: Tensor,
    text_share: Tensor,
    query_vector: Tensor | None = None,
) -> Tensor:
    """Return the affinity features as tensor operations, differentiable, [features, contexts, candidates]."""
    similarity = query @ candidates.T
    strength = torch.exp(12 * (similarity - 1))
    products = [part @ similarity for part in weights]
    attention = (weights[0] @ (strength * similarity)) / (weights[0] @ strength + 1e-12)
    features = [
        *products,
        *(3 * product**2 for product in products),
        *(3 * text_share * product for product in products[:3]),
        3 * text_share * attention,
        (candidates @ global_preference).expand(len(attention), -1),
    ]
    if query_vector is not None:
        affinity = query_vector @ candidates.T
        features += [affinity, 3 * affinity**2]
    return torch.stack(features)


def _stacked(own: Affinities) -> Tensor:
    return torch.stack([feature.expand_as(own.attention) for feature in own.features()])


@pytest.mark.parametrize("with_query", [False, True])
def test_features_are_those_of_the_tensor_operations(weights: Tensor, with_query: bool) -> None:
    inputs = _inputs(weights, with_query=with_query)
    torch.testing.assert_close(_stacked(affinity_features(*inputs)), _reference(*inputs))


def test_affinities_are_dot_products_with_the_weighted_mean_and_their_squares() -> None:
    contexts = pad([([2, 1, 0, 0, 3], [0, 0, 1, 1, 2]), ([], [])], [[3, 0], []])
    weights = context_weights(contexts, 4)
    global_preference = torch.tensor([0.5, 0.0, -1.0, 2.0])
    text_share = torch.tensor([1.0, 0.5, 0.25, 0.0])
    dense = affinity_weights(weights, np.array([0, 1, 2, 3]))
    features = affinity_features(dense, torch.eye(4), torch.eye(4), global_preference, text_share).features()
    assert len(features) == len(AFFINITY_FEATURES) - len(QUERY_FEATURES)  # without search queries
    named = dict(zip(AFFINITY_FEATURES, features, strict=False))
    for index, name in enumerate(NEW_AFFINITIES):
        torch.testing.assert_close(named[f"{name}_new"], 3 * text_share * features[index])
    for index, part in enumerate((weights.session, weights.history, weights.last, weights.passed)):
        product = torch.from_numpy(part.toarray())
        torch.testing.assert_close(features[index], product)
        torch.testing.assert_close(features[index + len(AFFINITIES)], 3 * product**2)
    torch.testing.assert_close(features[-1], global_preference)


def test_attention_prefers_the_session_item_closest_to_the_candidate(weights: Tensor) -> None:
    _, query, candidates, global_preference, text_share = _inputs(weights, with_query=False)
    features = affinity_features(weights, query, candidates, global_preference, text_share).features()
    attention = dict(zip(AFFINITY_FEATURES, features, strict=False))["session_attention_new"]
    for context, candidate in ((0, 2), (2, 6)):
        similar = query @ candidates[candidate]
        strength = weights[0, context] * torch.exp(12 * similar)
        expected = 3 * text_share[candidate] * (strength * similar).sum() / strength.sum()
        torch.testing.assert_close(attention[context, candidate], expected)
    assert attention[1].abs().sum() == 0


@pytest.mark.parametrize("with_query", [False, True])
def test_pairs_have_the_affinities_of_their_context_and_candidate(weights: Tensor, with_query: bool) -> None:
    inputs = _inputs(weights, with_query=with_query)
    _, query, candidates, global_preference, text_share, *query_vector = inputs
    owner, which = torch.tensor([0, 0, 2, 1]), torch.tensor([4, 1, 0, 6])
    pairs = pair_affinities(
        weights, owner, query, candidates[which], global_preference, text_share[which], *query_vector
    )
    torch.testing.assert_close(pairs, _stacked(affinity_features(*inputs))[:, owner, which])


@pytest.mark.parametrize("with_query", [False, True])
def test_scores_are_the_weighted_sum_of_all_features(weights: Tensor, with_query: bool) -> None:
    own = affinity_features(*_inputs(weights, with_query=with_query))
    counted, heads = _random(len(COUNTER_FEATURES), CONTEXTS, CANDIDATES, seed=6), _random(len(FEATURES), seed=7)
    features = pad_features(torch.cat([counted, _stacked(own)]))
    torch.testing.assert_close(weighted_sum(heads, counted, own), torch.einsum("fen,f->en", features, heads))
    gradient = _random(CONTEXTS, CANDIDATES, seed=8)
    torch.testing.assert_close(
        heads_gradient(gradient, counted, own), torch.einsum("fen,en->f", features, gradient), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("with_query", [False, True])
def test_gradients_are_those_of_the_tensor_operations(weights: Tensor, with_query: bool) -> None:
    _, query, candidates, global_preference, text_share, *query_vector = _inputs(weights, with_query=with_query)
    counted, heads = _random(len(COUNTER_FEATURES), CONTEXTS, CANDIDATES, seed=6), _random(len(FEATURES), seed=7)
    parameters = [tensor.requires_grad_() for tensor in (heads, query, candidates, global_preference)]
    parts = ContextParts(weights)
    similarity = parts.vectors(query) @ candidates.T
    products, attention, similarities = affinities.mix(parts, similarity)
    preference = candidates @ global_preference
    query_affinity = query_vector[0] @ candidates.T if with_query else None
    own = Affinities(products, attention, preference, text_share, query_affinity)
    scores = feature_scores(heads, Features(counted, own, similarity, similarities))
    reference = _reference(weights, query, candidates, global_preference, text_share, *query_vector)
    expected = torch.einsum("fen,f->en", pad_features(torch.cat([counted, reference])), heads)
    torch.testing.assert_close(scores, expected)
    gradient = _random(CONTEXTS, CANDIDATES, seed=8)
    own_gradients = torch.autograd.grad(scores, parameters, gradient)
    for one, other in zip(own_gradients, torch.autograd.grad(expected, parameters, gradient), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_contexts_without_any_item_have_no_affinity_but_the_preference() -> None:
    inputs = _inputs(torch.zeros(len(AFFINITIES), CONTEXTS, ROWS), with_query=False)
    features = affinity_features(*inputs).features()
    assert not any(feature.any() for feature in features[:-1])
    torch.testing.assert_close(features[-1], inputs[2] @ inputs[3])
