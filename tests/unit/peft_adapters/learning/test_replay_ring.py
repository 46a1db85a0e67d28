"""The ring keeps the newest groups, draws the same ones again, and is restored bit for bit."""

from __future__ import annotations

import numpy as np
import torch

from peft_adapters.learning.replay_ring import ReplayRing


def _groups(*numbers: int) -> dict[str, torch.Tensor]:
    return {"number": torch.tensor(numbers), "values": torch.tensor(numbers)[:, None].float().expand(-1, 3)}


def _kept(ring: ReplayRing) -> set[int]:
    drawn = ring.draw(np.random.default_rng(0), 200)
    assert torch.equal(drawn["values"], drawn["number"][:, None].float().expand(-1, 3))
    return set(drawn["number"].tolist())


def test_the_oldest_groups_make_room() -> None:
    ring = ReplayRing(4)
    ring.add(_groups(0, 1, 2))
    assert (len(ring), _kept(ring)) == (3, {0, 1, 2})
    ring.add(_groups(3, 4))
    assert (len(ring), _kept(ring)) == (4, {1, 2, 3, 4})
    ring.add(_groups(*range(5, 12)))
    assert _kept(ring) == {8, 9, 10, 11}
    ring.clear()
    assert (len(ring), ring.state_dict()) == (0, {})


def test_new_groups_are_taken_once() -> None:
    ring = ReplayRing(4)
    ring.add(_groups(0, 1, 2))
    assert (ring.waiting, ring.take_new()["number"].tolist(), ring.waiting) == (3, [0, 1, 2], 0)
    ring.add(_groups(3))
    ring.add(_groups(4))
    restored = ReplayRing(4)
    restored.load_state_dict(ring.state_dict())
    assert (restored.waiting, restored.take_new()["number"].tolist()) == (2, [3, 4])
    ring.add(_groups(*range(5, 12)))
    assert ring.take_new()["number"].tolist() == [8, 9, 10, 11]


def test_a_restored_ring_goes_on_as_the_saved_one() -> None:
    for count in (2, 7):
        ring, restored = ReplayRing(4), ReplayRing(4)
        for number in range(count):
            ring.add(_groups(number))
        restored.add(_groups(99))
        restored.load_state_dict(ring.state_dict())
        for each in (ring, restored):
            each.add(_groups(100, 101))
        drawn, again = (each.draw(np.random.default_rng(1), 50) for each in (ring, restored))
        assert all(torch.equal(drawn[name], again[name]) for name in drawn)
        assert ring.state_dict().keys() == restored.state_dict().keys()
    restored.load_state_dict({})
    assert len(restored) == 0
