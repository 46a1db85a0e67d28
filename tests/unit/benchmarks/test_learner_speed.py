"""The accounting of processor time in the scenario `learner-speed`."""

import time
from types import SimpleNamespace

import pytest

from benchmarks.learner_speed import Parts


def _spend(seconds: float) -> None:
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


def test_a_part_does_not_count_the_time_of_parts_that_it_calls() -> None:
    inner = SimpleNamespace(run=lambda: _spend(0.05))

    def outer_run() -> None:
        _spend(0.02)
        inner.run()

    outer = SimpleNamespace(run=outer_run)
    parts = Parts()
    parts.watch(inner, "run", "inner")
    parts.watch(outer, "run", "outer")
    parts.start()
    outer.run()
    _spend(0.01)
    seconds = parts.stop()
    assert seconds["inner"] == pytest.approx(0.05, abs=0.01)
    assert seconds["outer"] == pytest.approx(0.02, abs=0.01)
    assert seconds["other"] == pytest.approx(0.01, abs=0.01)


def test_time_before_the_start_does_not_count() -> None:
    parts = Parts()
    _spend(0.05)
    parts.start()
    assert sum(parts.stop().values()) < 0.01


def test_calls_return_what_the_method_returns_and_raise_what_it_raises() -> None:
    def fail() -> None:
        raise ValueError("no")

    owner = SimpleNamespace(double=lambda value: 2 * value, fail=fail)
    parts = Parts()
    parts.watch(owner, "double", "double")
    parts.watch(owner, "fail", "fail")
    assert owner.double(3) == 6
    with pytest.raises(ValueError, match="no"):
        owner.fail()
