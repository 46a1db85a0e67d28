"""For any order of counting, growing and publishing, deltas sum to the full counts and states load exactly."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from peft_adapters.ranking.counters import Counters
from peft_adapters.registry.tensor_rules import MATRICES

Batch = list[tuple[int, list[int]]]  # an event's item and the items before it

items = st.integers(0, 11)
batches = st.lists(st.tuples(items, st.lists(items, max_size=7)), max_size=12)
steps = st.lists(st.tuples(batches, st.sampled_from(["go on", "publish", "grow"])), max_size=8)


def count(counters: Counters, batch: Batch) -> None:
    counters.update(np.array([item for item, _ in batch], dtype=np.int64), [before for _, before in batch])


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def probabilities(counters: Counters) -> list[bytes]:
    weights = sparse.csr_array(np.eye(len(counters.events), dtype=np.float32))
    return [counters.matrices[name].probability(weights, smoothing=5.0).toarray().tobytes() for name in MATRICES]


@settings(deadline=None, max_examples=150)
@given(steps)
def test_a_chain_of_deltas_is_exactly_the_full_counts(history: list[tuple[Batch, str]]) -> None:
    learner, worker = Counters(), Counters()
    learner.grow(12)
    worker.apply(learner.full())
    learner.mark_published()
    for batch, then in history:
        count(learner, batch)
        if then == "grow":
            learner.grow(len(learner.events) + 2)
        if then == "publish":
            worker = worker.copy()
            worker.apply(learner.delta())
            learner.mark_published()
            assert same(worker.full(), learner.full())
    from_full = Counters()
    from_full.apply(learner.full())
    assert same(from_full.full(), learner.full())


@settings(deadline=None, max_examples=150)
@given(steps, batches, batches)
def test_a_restored_state_counts_on_as_if_nothing_had_happened(
    history: list[tuple[Batch, str]], first: Batch, second: Batch
) -> None:
    unkilled = Counters()
    unkilled.grow(12)
    for batch, then in history:
        count(unkilled, batch)
        if then == "grow":
            unkilled.grow(len(unkilled.events) + 2)
    restored = Counters()
    restored.load_state_dict({name: value.clone() for name, value in unkilled.state_dict().items()})
    for counters in (unkilled, restored):
        count(counters, first)
        counters.grow(len(counters.events) + 1)
        count(counters, second)
    assert same(restored.state_dict(), unkilled.state_dict())
    assert probabilities(restored) == probabilities(unkilled)


def test_a_restored_state_is_exact_beyond_the_fold_too() -> None:
    """Enough counts that the recent part is merged into the main one, and some after the merge."""
    rng = np.random.default_rng(3)
    unkilled = Counters()
    unkilled.grow(300)
    for events in (900, 900, 40):
        before = [rng.integers(300, size=5).tolist() for _ in range(events)]
        unkilled.update(rng.integers(300, size=events), before)
    restored = Counters()
    restored.load_state_dict({name: value.clone() for name, value in unkilled.state_dict().items()})
    assert len(unkilled.state_dict()["transition.recent.row"]) > 0
    assert len(unkilled.state_dict()["transition.main.row"]) > 0
    assert probabilities(restored) == probabilities(unkilled)
    for counters in (unkilled, restored):
        counters.update(np.arange(300, dtype=np.int64), [[1, 2]] * 300)
    assert same(restored.state_dict(), unkilled.state_dict())
