"""Compiled loops compute what matrices compute, for one shopper as for a batch."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from peft_adapters.ranking import vector_kernels
from peft_adapters.ranking.arrays import IntArray
from peft_adapters.ranking.compiled import compiled
from peft_adapters.ranking.counter_features import CounterFeatures
from peft_adapters.ranking.counter_kernels import SMOOTHING_EVENTS
from peft_adapters.ranking.counters import Counters
from peft_adapters.ranking.features import context_weights
from peft_adapters.ranking.item_rates import click_through
from peft_adapters.ranking.ranker import ROLES, FrozenRanker, Ranker
from peft_adapters.ranking.shoppers import Contexts, pad
from peft_adapters.settings import FEATURES

ITEMS = 60


def counted(rng: np.random.Generator, events: int, counters: Counters | None = None) -> Counters:
    counters = counters or Counters()
    counters.grow(ITEMS)
    for _ in range(events // 50):
        items = rng.integers(ITEMS - 5, size=50)  # the last items were never sold
        counters.update(items, [rng.integers(ITEMS - 5, size=rng.integers(0, 9)).tolist() for _ in items])
        shown = rng.integers(ITEMS, size=30)
        clicked = rng.random(30) < 0.3
        counters.update_shown(shown, clicked, clicked & (rng.random(30) < 0.5), is_correction=np.zeros(30, dtype=bool))
    return counters


def context(rng: np.random.Generator, *, repeats: bool) -> Contexts:
    count = int(rng.integers(0, ITEMS if not repeats else 120))
    items = rng.integers(ITEMS, size=count) if repeats else rng.permutation(ITEMS)[:count]
    ages = np.sort(rng.integers(0, 4, size=count))
    return pad([(items.tolist(), ages.tolist())], [rng.integers(ITEMS, size=rng.integers(0, 9)).tolist()])


def by_matrices(counters: Counters, contexts: Contexts) -> Tensor:
    """Return the features of the whole catalogue by sparse products and dense arrays, [features, contexts, items]."""
    weights, matrices, items = context_weights(contexts, ITEMS), counters.matrices, len(counters.events)
    total = np.maximum(counters.popularity.sum(axis=1), 1.0)
    popular = np.broadcast_to((items * counters.popularity / total[:, None])[:, None], (2, len(contexts), items))
    followed = [
        100 * matrices[name].probability(part, smoothing=SMOOTHING_EVENTS).toarray()
        for name, part in (
            ("transition", weights.last),
            ("skip_transition", weights.near),
            ("cooccurrence", weights.session),
            ("cooccurrence", weights.history),
            ("neighbour", weights.near),
        )
    ]
    seen = np.zeros((4, len(contexts), items))  # in the session, the last basket, the ones before it, any of the past
    for context, (rows, ages) in enumerate(zip(contexts.items.tolist(), contexts.ages.tolist(), strict=True)):
        for row, age in zip(rows, ages, strict=True):
            if age >= 0:
                seen[min(age, 2), context, row] += 1
    lift = 10 * followed[2] / 100 / np.sqrt(counters.popularity[1] / total[1] + SMOOTHING_EVENTS / total[1])
    static_features = np.broadcast_to(np.stack([click_through(counters), counters.events == 0])[:, None], popular.shape)
    logs = np.log1p(np.stack([*popular, *followed, seen[1] + seen[2], lift]))
    return torch.from_numpy(np.stack([*logs, seen[1] > 0, seen[0] > 0, *static_features])).float()


@pytest.mark.parametrize("repeats", [False, True])
@pytest.mark.parametrize("events", [0, 100, 3_000])
def test_loops_give_what_matrices_give(events: int, repeats: bool) -> None:
    rng = np.random.default_rng(events)
    counters = counted(rng, events)
    loops = CounterFeatures.of(counters)
    for _ in range(12):
        own = context(rng, repeats=repeats)
        columns = np.sort(rng.permutation(ITEMS)[: rng.integers(0, 20)])
        whole = by_matrices(counters, own)
        np.testing.assert_allclose(loops.features(own, None), whole.numpy(), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(loops.features(own, columns), whole.numpy()[:, :, columns], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("contexts", "columns"),
    [
        (pad([([ITEMS], [0])]), [1]),
        (pad([([1], [0])], [[ITEMS]]), [1]),
        (pad([([1], [0])]), [1, ITEMS]),
    ],
)
def test_rows_beyond_the_catalogue_are_refused(contexts: Contexts, columns: list[int]) -> None:
    with pytest.raises(IndexError, match=f"rows must be below {ITEMS}, the number of counted items, got {ITEMS}"):
        CounterFeatures.of(counted(np.random.default_rng(0), 100)).features(contexts, np.array(columns))


def test_several_contexts_where_one_is_looked_at_are_refused() -> None:
    frozen = FrozenRanker(ranker_of(torch.Generator().manual_seed(3), counted(np.random.default_rng(3), 100)))
    for contexts in (pad([([1], [0]), ([2], [0])]), pad([])):
        with pytest.raises(ValueError, match=f"exactly one context must be given, got {len(contexts)}"):
            frozen.score_with_probabilities(contexts, np.array([1]))


@pytest.mark.parametrize("events", [100, 3_000])
def test_a_context_is_told_the_same_alone_and_among_others(events: int) -> None:
    rng = np.random.default_rng(events)
    loops = CounterFeatures.of(counted(rng, events))
    alone = [context(rng, repeats=True) for _ in range(9)]
    rows = [(own.items[0].tolist(), own.ages[0].tolist()) for own in alone]
    together = loops.features(pad(rows), None)
    assert np.array_equal(together, np.concatenate([loops.features(own, None) for own in alone], axis=1))


def ranker_of(draw: torch.Generator, counters: Counters) -> Ranker:
    ranker = Ranker.empty(16)
    ranker.grow(ITEMS)
    ranker.text = torch.nn.functional.normalize(torch.randn(ITEMS, 16, generator=draw), dim=1)
    ranker.residuals = {role: torch.randn(ITEMS, 16, generator=draw) for role in ROLES}
    ranker.global_preference = torch.randn(16, generator=draw)
    ranker.counters = counters
    return ranker


@pytest.mark.parametrize("columns", [None, np.array([3, 7, 8, 40])])
@pytest.mark.parametrize("asks", [False, True])
def test_affinities_of_one_shopper_are_those_of_a_batch(columns: IntArray | None, asks: bool) -> None:
    rng, draw = np.random.default_rng(3), torch.Generator().manual_seed(3)
    frozen = FrozenRanker(ranker_of(draw, counted(rng, 500)))
    for _ in range(12):
        own = context(rng, repeats=True)
        both = pad([(own.items[0].tolist(), own.ages[0].tolist()), ([], [])], [own.passed[0].tolist(), []])
        query_vector = torch.nn.functional.normalize(torch.randn(1, 16, generator=draw), dim=1) if asks else None
        one = frozen.features(own, columns, query_vector)
        batch = frozen.features(
            both, columns, None if query_vector is None else torch.cat([query_vector, query_vector])
        )
        torch.testing.assert_close(one, batch[:, :1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("attention", [-3.0, 0.0, 0.5, 8.0])
@pytest.mark.parametrize("count", [1, 5, 40, ITEMS, ITEMS + 1])
def test_the_best_are_those_of_all_scores_whatever_attention_weighs(attention: float, count: int) -> None:
    rng, draw = np.random.default_rng(4), torch.Generator().manual_seed(4)
    ranker = ranker_of(draw, counted(rng, 200))
    ranker.heads[FEATURES.index("session_attention_new")] = attention
    frozen = FrozenRanker(ranker)
    for _ in range(12):
        own = context(rng, repeats=True)
        rows = np.sort(rng.permutation(ITEMS)[: rng.integers(0, ITEMS + 1)])
        expected = frozen.score(own)[0].numpy()[rows]
        found, scores = frozen.top_k(own, rows, count)
        np.testing.assert_array_equal(found, rows[np.argsort(-expected, kind="stable")][:count])
        np.testing.assert_allclose(scores, np.sort(expected)[::-1][:count], rtol=1e-5, atol=1e-6)


def test_what_attention_cannot_lift_among_the_best_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    rng, draw = np.random.default_rng(5), torch.Generator().manual_seed(5)
    ranker = ranker_of(draw, counted(rng, 3_000))
    ranker.heads[FEATURES.index("session_attention_new")] = 0.1
    frozen, looked_at = FrozenRanker(ranker), []

    def note(*arguments: Any) -> None:
        looked_at.append(len(arguments[5]) if arguments[4] else 0)
        kernel(*arguments)

    kernel = vector_kernels.affinity_features
    monkeypatch.setattr(vector_kernels, "affinity_features", note)
    frozen.top_k(context(rng, repeats=True), np.arange(ITEMS), 3)
    assert looked_at[0] == 0
    assert sum(looked_at) < ITEMS / 2


def test_a_function_that_cannot_be_kept_is_compiled_all_the_same() -> None:
    made: dict[str, Any] = {}
    exec(compile("def twice(number):\n    return 2 * number\n", "<no file of its own>", "exec"), made)  # noqa: S102
    assert compiled(made["twice"])(21) == 42
