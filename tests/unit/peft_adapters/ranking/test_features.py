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
    context_weights,
    pad_features,
)
from peft_adapters.ranking.shoppers import Contexts, pad
from peft_adapters.settings import COUNTER_FEATURES, FEATURES, QUERY_FEATURES

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
    features = torch.from_numpy(CounterFeatures.of(counters).features(contexts, None))
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
    assert CounterFeatures.of(counters).features(pad([]), None).shape == (13, 0, 4)


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
    whole = CounterFeatures.of(counters).features(contexts, None)
    columns = np.array([0, 3, 4, 11, 26, 39])
    assert np.array_equal(CounterFeatures.of(counters).features(contexts, columns), whole[:, :, columns])
    assert CounterFeatures.of(counters).features(contexts, np.array([], dtype=np.int64)).shape == (13, 9, 0)


def test_features_are_finite_before_anything_was_counted() -> None:
    counters = Counters()
    counters.grow(4)
    features = torch.from_numpy(CounterFeatures.of(counters).features(CONTEXTS, None))
    assert bool(torch.isfinite(features).all())


def test_the_newest_of_what_was_passed_over_weighs_most() -> None:
    assert_close(
        torch.from_numpy(context_weights(CONTEXTS, 4).passed.toarray()), [[0.97 / 1.97, 0, 0, 1 / 1.97], [0] * 4]
    )


def test_features_that_are_left_out_are_zero() -> None:
    few = torch.rand(len(FEATURES) - len(QUERY_FEATURES), 2, 3, generator=torch.Generator().manual_seed(1))
    whole = pad_features(few)
    assert torch.equal(whole[: len(few)], few)
    assert whole.shape == (len(FEATURES), 2, 3)
    assert not whole[len(few) :].any()
    assert pad_features(whole) is whole
