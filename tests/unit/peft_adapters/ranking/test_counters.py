"""Counts by hand, and copies that never change."""

import numpy as np
import pytest
import torch
from scipy import sparse

from peft_adapters.earlier_formats import SINCE_0_2, bundle_of_0_2
from peft_adapters.ranking.counters import HALF_LIVES_EVENTS, NOW_HALF_LIFE_EVENTS, Counters, SparseCounts
from peft_adapters.registry.tensor_rules import MATRICES


def array(*rows: int) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    return np.array(rows, dtype=np.int64)


def dense(counters: Counters, name: str) -> "np.ndarray[tuple[int, int], np.dtype[np.float32]]":
    triples = counters.matrices[name].triples()
    matrix = np.zeros((len(counters.events), len(counters.events)), dtype=np.float32)
    np.add.at(matrix, (triples["row"].numpy(), triples["column"].numpy()), triples["count"].numpy())
    return matrix


@pytest.fixture
def counters() -> Counters:
    """Item 2 after items 1, 0 (newest first); item 3 with nothing before; item 2 after itself."""
    counters = Counters()
    counters.grow(4)
    counters.update(array(2, 3, 2), [[1, 0], [], [2]])
    return counters


def test_popularity_and_events(counters: Counters) -> None:
    assert counters.events.tolist() == [0, 0, 2, 1]
    assert counters.popularity.tolist() == [[0, 0, 2, 1]] * 2
    counters.update(array(0), [[]])
    kept = [0.5 ** (1 / half_life) for half_life in HALF_LIVES_EVENTS]
    np.testing.assert_allclose(counters.popularity, [[1, 0, 2 * share, share] for share in kept], rtol=1e-6)


def test_popularity_halves_in_its_half_life(counters: Counters) -> None:
    counters.update(np.zeros(int(HALF_LIVES_EVENTS[0]), dtype=np.int64), [[]] * int(HALF_LIVES_EVENTS[0]))
    assert counters.popularity[0, 2] == pytest.approx(1.0)


def test_transitions_come_from_the_newest_item_alone(counters: Counters) -> None:
    expected = np.zeros((4, 4))
    expected[1, 2] = expected[2, 2] = 1
    np.testing.assert_array_equal(dense(counters, "transition"), expected)


def test_skip_transitions_come_from_the_five_newest() -> None:
    counters = Counters()
    counters.grow(8)
    counters.update(array(7), [[6, 5, 4, 3, 2, 1, 0]])
    assert dense(counters, "skip_transition")[:, 7].tolist() == [0, 0, 1, 1, 1, 1, 1, 0]


def test_cooccurrence_is_symmetric(counters: Counters) -> None:
    expected = np.zeros((4, 4))
    expected[0, 2] = expected[2, 0] = expected[1, 2] = expected[2, 1] = 1
    expected[2, 2] = 2  # once from each side
    np.testing.assert_array_equal(dense(counters, "cooccurrence"), expected)


def test_conditional_probability_by_hand(counters: Counters) -> None:
    weights = sparse.csr_array(np.array([[0.25, 0.75, 0, 0]], dtype=np.float32))
    probability = counters.matrices["cooccurrence"].probability(weights, smoothing=5.0).toarray()
    np.testing.assert_allclose(probability, [[0, 0, (0.25 / 6 + 0.75 / 6), 0]], rtol=1e-6)


def test_probability_is_the_same_before_and_after_the_recent_part_is_folded_in() -> None:
    rng = np.random.default_rng(0)
    small, folded = SparseCounts(50), SparseCounts(50)
    rows, columns = rng.integers(50, size=2_000), rng.integers(50, size=2_000)
    folded.add(rows, columns, np.ones(2_000, dtype=np.float32))  # above the merge threshold at once
    for start in range(0, 2_000, 100):
        part = slice(start, start + 100)
        small.add(rows[part], columns[part], np.ones(100, dtype=np.float32))
    weights = sparse.csr_array(np.eye(50, dtype=np.float32))
    np.testing.assert_allclose(
        small.probability(weights, smoothing=5.0).toarray(),
        folded.probability(weights, smoothing=5.0).toarray(),
        rtol=1e-5,
    )


def test_nothing_counted_is_no_probability() -> None:
    counts = SparseCounts(3)
    assert (
        counts.probability(sparse.csr_array(np.eye(3, dtype=np.float32)), smoothing=5.0).toarray().tolist()
        == [[0] * 3] * 3
    )


def test_growing_keeps_counts_and_adds_zeros(counters: Counters) -> None:
    before = {name: dense(counters, name) for name in MATRICES}
    counters.grow(6)
    assert counters.events.tolist() == [0, 0, 2, 1, 0, 0]
    for name, matrix in before.items():
        np.testing.assert_array_equal(dense(counters, name), np.pad(matrix, (0, 2)))
    counters.grow(3)
    assert len(counters.events) == 6
    counters.update(array(5), [[4]])
    assert dense(counters, "transition")[4, 5] == 1


def test_a_copy_stands_still(counters: Counters) -> None:
    copy = counters.copy()
    full, state = copy.full(), copy.state_dict()
    kept = {name: value.clone() for name, value in (full | state).items()}
    counters.grow(9)
    counters.update(array(8, 0), [[7], [1, 2]])
    assert len(copy.events) == 4
    assert all(torch.equal(kept[name], value) for name, value in (copy.full() | copy.state_dict()).items())
    assert all(torch.equal(kept[name], value) for name, value in (full | state).items())


def test_delta_holds_only_what_came_since_the_mark(counters: Counters) -> None:
    counters.mark_published()
    assert all(len(counters.delta()[f"{name}.row"]) == 0 for name in MATRICES)
    counters.update(array(0), [[3]])
    delta = counters.delta()
    assert (delta["transition.row"].tolist(), delta["transition.column"].tolist()) == ([3], [0])
    assert delta["events"].tolist() == [1, 0, 2, 1]


def test_an_empty_batch_changes_nothing(counters: Counters) -> None:
    before = counters.full()
    counters.update(array(), [])
    assert all(torch.equal(before[name], value) for name, value in counters.full().items())


def test_what_is_forgotten_weighs_less_beside_what_comes(counters: Counters) -> None:
    before = counters.copy()
    counters.decay(2)
    assert counters.events.tolist() == [0, 0, 0.5, 0.25]
    assert counters.popularity.tolist() == [[0, 0, 0.5, 0.25]] * 2
    for name in MATRICES:
        np.testing.assert_array_equal(dense(counters, name), dense(before, name) / 4)
    counters.update(array(0), [[1]])
    context = sparse.csr_array(([1.0], ([0], [1])), shape=(1, 4))
    shares = counters.matrices["transition"].probability(context, smoothing=0.0).toarray()
    np.testing.assert_allclose(shares, [[0.8, 0, 0.2, 0]], rtol=1e-6)  # one event now, and one that is a quarter


def test_a_delta_cannot_say_what_was_forgotten(counters: Counters) -> None:
    assert not counters.rewritten
    counters.decay(1)
    assert counters.rewritten
    counters.mark_published()
    assert not counters.rewritten


def test_the_order_of_a_session_is_counted_and_cooccurrence_follows_from_it(counters: Counters) -> None:
    followed = np.zeros((4, 4))
    followed[0, 2] = followed[1, 2] = followed[2, 2] = 1
    np.testing.assert_array_equal(dense(counters, "followed"), followed)
    np.testing.assert_array_equal(dense(counters, "cooccurrence"), followed + followed.T)
    copy = Counters()
    copy.apply(counters.full())
    np.testing.assert_array_equal(dense(copy, "cooccurrence"), followed + followed.T)
    assert not any("cooccurrence" in name for name in counters.full())


def test_repeats_and_popularity_of_now() -> None:
    counters = Counters()
    counters.grow(3)
    counters.update(array(1, 1, 0), [[]] * 3, np.array([False, True, False]))
    assert counters.repeated.tolist() == [0, 1, 0]
    counters.update(array(2), [[]])
    assert counters.repeated.tolist() == [0, 1, 0]
    share = 0.5 ** (1 / NOW_HALF_LIFE_EVENTS)
    np.testing.assert_allclose(counters.popularity_now, [share, 2 * share, 1], rtol=1e-6)


def test_events_since_the_first_and_the_newest_event_of_an_item() -> None:
    counters = Counters()
    counters.grow(4)
    counters.update(array(0, 1, 0, 2), [[]] * 4)
    assert counters.events_since_first.tolist() == [4, 3, 1, 0]
    assert counters.events_since_last.tolist() == [2, 3, 1, 0]
    counters.update(array(1, 3, 1), [[]] * 3)
    assert counters.events_since_first.tolist() == [7, 6, 4, 2]
    assert counters.events_since_last.tolist() == [5, 1, 4, 2]
    counters.decay(1)
    assert counters.events_since_last.tolist() == [5, 1, 4, 2]  # times, not counts
    assert counters.repeated.tolist() == [0, 0, 0, 0]


def test_counts_of_release_0_2_prefer_no_order(counters: Counters) -> None:
    state = {
        name: value
        for name, value in counters.state_dict().items()
        if name not in SINCE_0_2 and not name.startswith("followed.")
    }
    restored = Counters()
    restored.load_state_dict(state)
    for name in ("transition", "skip_transition", "neighbour", "cooccurrence"):
        np.testing.assert_array_equal(dense(restored, name), dense(counters, name))
    np.testing.assert_array_equal(dense(restored, "followed"), dense(counters, "cooccurrence") / 2)
    assert [getattr(restored, name).tolist() for name in SINCE_0_2] == [[0] * 4] * len(SINCE_0_2)
    restored.update(array(3), [[2]])
    assert dense(restored, "followed")[2, 3] == 1


def test_a_bundle_of_release_0_2_has_the_counts_of_today(counters: Counters) -> None:
    old = {name: value for name, value in counters.full().items() if not name.startswith("followed.")}
    old = {name: value for name, value in old.items() if name not in SINCE_0_2}
    old |= {f"cooccurrence.{key}": value for key, value in counters.matrices["cooccurrence"].triples().items()}
    heads = {"weights": torch.ones(1)}
    groups = bundle_of_0_2({"heads": heads, "counters": old})
    assert groups["heads"] == heads
    assert groups["counters"].keys() == counters.full().keys()
    assert bundle_of_0_2(groups) == groups
    copy = Counters()
    copy.apply(groups["counters"])
    np.testing.assert_array_equal(dense(copy, "cooccurrence"), dense(counters, "cooccurrence"))
