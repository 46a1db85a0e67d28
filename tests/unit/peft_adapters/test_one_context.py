"""One shopper at a time gives what a batch gives."""

import numpy as np
import pytest
import torch

from peft_adapters.counters import Counters
from peft_adapters.features import affinity_weights, context_weights, counter_features
from peft_adapters.one_context import OneContext, OwnItems
from peft_adapters.shoppers import Contexts, pad

ITEMS = 60


def counted(rng: np.random.Generator, events: int, counters: Counters | None = None) -> Counters:
    counters = counters or Counters()
    counters.grow(ITEMS)
    for _ in range(events // 50):
        items = rng.integers(ITEMS - 5, size=50)  # the last items were never sold
        counters.update(items, [rng.integers(ITEMS - 5, size=rng.integers(0, 9)).tolist() for _ in items])
        shown = rng.integers(ITEMS, size=30)
        clicked = rng.random(30) < 0.3
        counters.update_shown(shown, clicked, clicked & (rng.random(30) < 0.5), again=np.zeros(30, dtype=bool))
    return counters


def context(rng: np.random.Generator, *, repeats: bool) -> Contexts:
    count = int(rng.integers(0, ITEMS if not repeats else 120))
    items = rng.integers(ITEMS, size=count) if repeats else rng.permutation(ITEMS)[:count]
    ages = np.sort(rng.integers(0, 4, size=count))
    return pad([(items.tolist(), ages.tolist())], [rng.integers(ITEMS, size=rng.integers(0, 9)).tolist()])


@pytest.mark.parametrize("repeats", [False, True])
@pytest.mark.parametrize("events", [0, 100, 3_000])
def test_counter_features_are_those_of_a_batch(events: int, repeats: bool) -> None:
    rng = np.random.default_rng(events)
    counters = counted(rng, events)
    one = OneContext(counters)
    for _ in range(12):
        own = context(rng, repeats=repeats)
        columns = np.sort(rng.permutation(ITEMS)[: rng.integers(0, 20)])
        weights = context_weights(own, ITEMS)
        for chosen in (None, columns):
            expected = counter_features(counters, own, weights, chosen)
            found = torch.from_numpy(one.counter_features(OwnItems(own), chosen))[:, None]
            if repeats:  # added up in another order
                torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
            else:
                torch.testing.assert_close(found, expected, rtol=2e-7, atol=1e-7)


def test_affinity_weights_are_those_of_a_batch_row_by_row() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        own = context(rng, repeats=True)
        rows, weights = OwnItems(own).affinity_weights()
        together = torch.zeros(len(weights), ITEMS).index_add_(1, torch.from_numpy(rows), torch.from_numpy(weights))
        expected = affinity_weights(context_weights(own, ITEMS), np.arange(ITEMS))
        torch.testing.assert_close(together[:, None], expected, rtol=1e-6, atol=1e-7)


def test_a_version_takes_over_what_stayed_the_same_and_nothing_that_did_not() -> None:
    rng = np.random.default_rng(2)
    first = counted(rng, 3_000)
    before = OneContext(first)
    later = counted(rng, 50, first.copy())
    merged = counted(rng, 20_000, later.copy())
    grown = later.copy()
    grown.grow(ITEMS + 3)
    for counters, takes_over in ((later, True), (merged, False), (grown, False)):
        after = OneContext(counters, before)
        assert (after._main is before._main) is takes_over
        own = context(rng, repeats=False)
        expected = counter_features(counters, own, context_weights(own, len(counters.events)), None)
        found = torch.from_numpy(after.counter_features(OwnItems(own), None))[:, None]
        torch.testing.assert_close(found, expected, rtol=2e-7, atol=1e-7)
