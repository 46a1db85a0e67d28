"""Features by hand on four items, and equal numbers for a few candidates and the whole catalogue."""

from collections.abc import Sequence
from math import log1p

import numpy as np
import pytest
import torch
from torch import Tensor

from peft_adapters.ranking.counter_features import CounterFeatures
from peft_adapters.ranking.counters import Counters
from peft_adapters.ranking.features import (
    INITIAL_WEIGHTS,
    _use_similarity_matrix,
    affinity_features,
    affinity_weights,
    context_weights,
    pad_features,
    pair_affinities,
    weighted_sum,
)
from peft_adapters.ranking.shoppers import Contexts, pad
from peft_adapters.settings import (
    AFFINITIES,
    AFFINITY_FEATURES,
    COUNTER_FEATURES,
    FEATURES,
    NEW_AFFINITIES,
    QUERY_FEATURES,
)

SMOOTHING = 5.0
# One shopper: items 2 then 1 newest first in this session, 0 and 0 in the one before, 3 two sessions ago, 3 then 0
# passed over; one stranger.
CONTEXTS = pad([([2, 1, 0, 0, 3], [0, 0, 1, 1, 2]), ([], [])], [[3, 0], []])


@pytest.fixture
def counters() -> Counters:
    """Item 3 after items 2 and 1 (newest first), twice; item 0 without earlier items."""
    counters = Counters()
    counters.grow(4)
    counters.update(np.array([3, 3, 0]), [[2, 1], [2, 1], []])
    return counters


def by_name(counters: Counters, contexts: Contexts = CONTEXTS) -> dict[str, Tensor]:
    features = CounterFeatures(counters).features(contexts, None)
    return dict(zip(COUNTER_FEATURES, features, strict=True))


def assert_close(values: Tensor, expected: Sequence[Sequence[float]]) -> None:
    torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.float32))


def test_every_feature_has_a_starting_weight() -> None:
    assert tuple(INITIAL_WEIGHTS) == FEATURES


def test_popularity_is_the_log_of_the_lift_over_chance(counters: Counters) -> None:
    expected = [log1p(4 * share) for share in (1 / 3, 0, 0, 2 / 3)]
    for name in ("popularity_fast", "popularity_slow"):
        assert_close(by_name(counters)[name], [expected] * 2)


def test_transitions_weigh_the_newest_items(counters: Counters) -> None:
    features = by_name(counters)
    from_last = 100 * 2 / (2 + SMOOTHING)  # 2 was followed by 3 twice
    assert_close(features["transition"], [[0, 0, 0, log1p(from_last)], [0] * 4])
    # Skips: 1 and 2 were each followed by 3 twice, weights 1 and 0.6 scaled to 1.
    assert_close(features["skip_transition"], [[0, 0, 0, log1p(from_last)], [0] * 4])


def test_cooccurrence_with_session_and_history(counters: Counters) -> None:
    features = by_name(counters)
    # Rows 1 and 2 have two pairs each, all with 3; row 3 has four, two with 1 and two with 2; row 0 has none.
    assert_close(features["session_cooccurrence"], [[0, 0, 0, log1p(100 * 2 / (2 + SMOOTHING))], [0] * 4])
    weight_of_3 = 0.98**2 / (1 + 0.98 + 0.98**2)
    lift = log1p(100 * weight_of_3 * 2 / (4 + SMOOTHING))
    assert_close(features["history_cooccurrence"], [[0, lift, lift, 0], [0] * 4])


def test_neighbours_count_whichever_came_first(counters: Counters) -> None:
    # 2 and 1 stood beside 3 twice each, and nobody else; 3 beside them four times in all.
    beside = log1p(100 * 2 / (2 + SMOOTHING))
    assert_close(by_name(counters)["neighbour_cooccurrence"], [[0, 0, 0, beside], [0] * 4])
    after_3 = by_name(counters, pad([([3], [0])]))
    assert_close(after_3["neighbour_cooccurrence"], [[0, *[log1p(100 * 2 / (4 + SMOOTHING))] * 2, 0]])
    assert_close(after_3["transition"], [[0] * 4])


def test_the_sessions_lift_is_over_the_root_of_popularity(counters: Counters) -> None:
    probability, share = 2 / (2 + SMOOTHING), 2 / 3 + SMOOTHING / 3  # of 3 beside 1 or 2; two of three events
    expected = log1p(10 * probability / share**0.5)
    assert_close(by_name(counters)["session_lift"], [[0, 0, 0, expected], [0] * 4])


def test_what_was_never_sold_is_marked(counters: Counters) -> None:
    assert by_name(counters)["never_sold"].tolist() == [[0, 1, 1, 0]] * 2


def test_repeats_last_basket_and_session(counters: Counters) -> None:
    features = by_name(counters)
    assert_close(features["repeat"], [[log1p(2), 0, 0, log1p(1)], [0] * 4])
    assert_close(features["last_basket"], [[1, 0, 0, 0], [0] * 4])
    assert_close(features["in_session"], [[0, 1, 1, 0], [0] * 4])


def test_context_weights_sum_to_one_and_fall_with_age() -> None:
    weights = context_weights(CONTEXTS, 4)
    total = 1 + 0.9
    assert_close(torch.from_numpy(weights.session.toarray()), [[0, 0.9 / total, 1 / total, 0], [0] * 4])
    assert weights.last.toarray().tolist() == [[0, 0, 1, 0], [0] * 4]
    for part in (weights.session, weights.near, weights.history, weights.last):
        np.testing.assert_allclose(part.sum(axis=1), [1, 0], rtol=1e-6)


def test_between_sessions_the_last_item_still_counts() -> None:
    weights = context_weights(pad([([2, 1], [1, 1])]), 4)
    assert weights.session.nnz == 0
    assert weights.last.toarray().tolist() == [[0, 0, 1, 0]]


def test_no_context_at_all_is_no_error(counters: Counters) -> None:
    nobody = pad([([], [])])
    assert by_name(counters, nobody)["in_session"].tolist() == [[0] * 4]
    assert CounterFeatures(counters).features(pad([]), None).shape == (13, 0, 4)


def random_state(seed: int) -> tuple[Counters, Contexts]:
    rng = np.random.default_rng(seed)
    counters = Counters()
    counters.grow(40)
    counters.update(rng.integers(40, size=500), [rng.integers(40, size=6).tolist() for _ in range(500)])
    rows = [(rng.integers(40, size=size).tolist(), sorted(rng.integers(4, size=size).tolist())) for size in range(9)]
    return counters, pad(rows)


@pytest.mark.parametrize("seed", range(3))
def test_some_columns_equal_the_whole_catalogues_columns(seed: int) -> None:
    counters, contexts = random_state(seed)
    whole = CounterFeatures(counters).features(contexts, None)
    columns = np.array([0, 3, 4, 11, 26, 39])
    assert torch.equal(CounterFeatures(counters).features(contexts, columns), whole[:, :, columns])
    assert CounterFeatures(counters).features(contexts, np.array([], dtype=np.int64)).shape == (13, 9, 0)


def test_features_are_finite_before_anything_was_counted() -> None:
    counters = Counters()
    counters.grow(4)
    features = CounterFeatures(counters).features(CONTEXTS, None)
    assert bool(torch.isfinite(features).all())


def test_the_newest_of_what_was_passed_over_weighs_most() -> None:
    assert_close(
        torch.from_numpy(context_weights(CONTEXTS, 4).passed.toarray()), [[0.97 / 1.97, 0, 0, 1 / 1.97], [0] * 4]
    )


def test_affinities_are_dot_products_with_the_weighted_mean_and_their_squares() -> None:
    weights = context_weights(CONTEXTS, 4)
    rows = np.array([0, 1, 2, 3])
    global_preference = torch.tensor([0.5, 0.0, -1.0, 2.0])
    text_share = torch.tensor([1.0, 0.5, 0.25, 0.0])
    features = affinity_features(
        affinity_weights(weights, rows), torch.eye(4), torch.eye(4), global_preference, text_share
    )
    assert len(features) == len(AFFINITY_FEATURES) - len(QUERY_FEATURES)  # without search queries
    named = dict(zip(AFFINITY_FEATURES, features, strict=False))
    for index, name in enumerate(NEW_AFFINITIES):
        torch.testing.assert_close(named[f"{name}_new"], 3 * text_share * features[index])
    for index, part in enumerate((weights.session, weights.history, weights.last, weights.passed)):
        product = torch.from_numpy(part.toarray())
        torch.testing.assert_close(features[index], product)
        torch.testing.assert_close(features[index + len(AFFINITIES)], 3 * product**2)
    assert_close(features[-1], global_preference.tolist())


def _random_affinities() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(len(AFFINITIES), 3, 5, generator=generator)
    weights[0, 1] = 0  # an empty session
    query, candidates = (
        torch.nn.functional.normalize(torch.randn(count, 8, generator=generator), dim=1) for count in (5, 7)
    )
    return weights, query, candidates, torch.randn(8, generator=generator), torch.rand(7, generator=generator)


@pytest.mark.parametrize("which", [True, False])
def test_both_ways_to_affinities_come_to_the_same(which: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    affinities = _random_affinities()
    expected = affinity_features(*affinities)
    monkeypatch.setattr("peft_adapters.ranking.features._use_similarity_matrix", lambda *_, **__: which)
    for one, other in zip(affinity_features(*affinities), expected, strict=True):
        torch.testing.assert_close(one, other)


def test_affinities_go_by_way_of_what_is_fewer() -> None:
    assert _use_similarity_matrix((4, 128, 144), session_rows=138, dim=384)  # a batch, whose events share items
    assert not _use_similarity_matrix((4, 1, 80), session_rows=20, dim=384)  # one shopper with a long history
    assert _use_similarity_matrix((4, 1, 20), session_rows=20, dim=384)  # one with none


def test_attention_listens_to_what_of_the_session_is_closest_to_the_candidate() -> None:
    weights, query, candidates, global_preference, text_share = _random_affinities()
    features = affinity_features(weights, query, candidates, global_preference, text_share)
    attention = dict(zip(AFFINITY_FEATURES, features, strict=False))["session_attention_new"]
    for context, candidate in ((0, 2), (2, 6)):
        similar = query @ candidates[candidate]
        strength = weights[0, context] * torch.exp(12 * similar)
        expected = 3 * text_share[candidate] * (strength * similar).sum() / strength.sum()
        torch.testing.assert_close(attention[context, candidate], expected)
    assert attention[1].abs().sum() == 0


def test_pairs_have_the_affinities_of_their_context_and_candidate() -> None:
    weights, query, candidates, global_preference, text_share = _random_affinities()
    whole = torch.stack(
        [own.expand(3, 7) for own in affinity_features(weights, query, candidates, global_preference, text_share)]
    )
    owner, which = torch.tensor([0, 0, 2, 1]), torch.tensor([4, 1, 0, 6])
    pairs = pair_affinities(weights, owner, query, candidates[which], global_preference, text_share[which])
    torch.testing.assert_close(pairs, whole[:, owner, which])


def test_searches_have_the_product_of_their_vector_and_its_square_and_nobody_else_has() -> None:
    weights, query, candidates, global_preference, text_share = _random_affinities()
    query_vector = torch.randn(3, 8, generator=torch.Generator().manual_seed(2))
    query_vector[1] = 0  # without a search query
    without = affinity_features(weights, query, candidates, global_preference, text_share)
    features = affinity_features(weights, query, candidates, global_preference, text_share, query_vector)
    assert all(torch.equal(one, other) for one, other in zip(without, features, strict=False))
    product, square = features[len(without) :]
    torch.testing.assert_close(product, query_vector @ candidates.T)
    torch.testing.assert_close(square, 3 * product**2)
    assert not product[1].any()
    owner, which = torch.tensor([0, 2, 1]), torch.tensor([4, 0, 6])
    pairs = pair_affinities(
        weights, owner, query, candidates[which], global_preference, text_share[which], query_vector
    )
    torch.testing.assert_close(pairs[-2:], torch.stack([product, square])[:, owner, which])


def test_features_that_are_left_out_are_zero() -> None:
    few = torch.rand(len(FEATURES) - len(QUERY_FEATURES), 2, 3, generator=torch.Generator().manual_seed(1))
    whole = pad_features(few)
    assert torch.equal(whole[: len(few)], few)
    assert whole.shape == (len(FEATURES), 2, 3)
    assert not whole[len(few) :].any()
    assert pad_features(whole) is whole
    heads = torch.rand(len(FEATURES), generator=torch.Generator().manual_seed(2))
    own = len(COUNTER_FEATURES)
    torch.testing.assert_close(
        weighted_sum(heads, few[:own], [*few[own:]]), weighted_sum(heads, whole[:own], [*whole[own:]])
    )


def test_a_weighted_sum_is_that_of_all_features_side_by_side() -> None:
    generator = torch.Generator().manual_seed(1)
    counted = torch.rand(len(COUNTER_FEATURES), 2, 3, generator=generator)
    affinities = [torch.rand(2, 3, generator=generator) for _ in AFFINITY_FEATURES[:-1]]
    affinities.append(torch.rand(3, generator=generator))
    heads = torch.rand(len(FEATURES), generator=generator)
    side_by_side = torch.cat([counted, torch.stack([own.expand(2, 3) for own in affinities])])
    torch.testing.assert_close(weighted_sum(heads, counted, affinities), torch.einsum("fbn,f->bn", side_by_side, heads))
