"""Recent ids give the same answers as a set and a deque, in constant memory."""

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.recent_ids import RecentIds


@given(st.integers(1, 9), st.lists(st.integers(0, 40) | st.sampled_from([2**64 - 1, 2**63, 16, 32, 64]), max_size=300))
def test_it_answers_as_a_set_and_a_deque_do(limit: int, digests: list[int]) -> None:
    ids, order = RecentIds(limit), deque[int](maxlen=limit)
    for digest in digests:
        digest = digest or 1
        assert ids.add(digest) is (digest not in order)
        if digest not in order:
            order.append(digest)


def test_what_was_put_in_at_once_is_remembered_in_its_order() -> None:
    ids = RecentIds(3)
    ids.update([1, 2, 3, 4])
    assert [ids.add(digest) for digest in (4, 3, 2)] == [False, False, False]
    assert ids.add(1)


@pytest.mark.parametrize("limit", [1, 1_000])
def test_its_memory_does_not_grow(limit: int) -> None:
    ids = RecentIds(limit)
    before = len(ids._table), len(ids._ring)
    ids.update(range(10 * limit))
    assert (len(ids._table), len(ids._ring)) == before
