"""The interval scheduler: gap, share of the time, and pauses after failures."""

import pytest

from services.updater import schedule
from services.updater.schedule import Schedule


class Clock:
    seconds = 1_000.0

    def monotonic(self) -> float:
        return self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(schedule, "time", clock)
    return clock


def test_it_is_due_at_once_and_then_a_gap_after_it_began(clock: Clock) -> None:
    own = Schedule(5.0)
    assert own.is_due()
    clock.seconds += 2.0
    own.done()
    assert not own.is_due()
    clock.seconds += 3.0
    assert own.is_due()


def test_what_takes_long_is_spaced_by_what_it_takes(clock: Clock) -> None:
    own = Schedule(0.5, share=0.25)
    assert own.is_due()
    clock.seconds += 1.0
    own.done()
    clock.seconds += 2.9
    assert not own.is_due()
    clock.seconds += 0.2
    assert own.is_due()


def test_tries_that_fail_are_further_and_further_apart(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "backoff_seconds", lambda: iter((1.0, 4.0)))
    own = Schedule(0.5)
    for pause in (1.0, 4.0):
        assert own.is_due()
        own.failed()
        assert own.is_failing
        clock.seconds += pause - 0.1
        assert not own.is_due()
        clock.seconds += 0.1
    assert own.is_due()
    own.done()
    assert not own.is_failing
    clock.seconds += 0.5
    assert own.is_due()


@pytest.mark.parametrize("own", [Schedule(300.0), Schedule(60.0, share=0.01), Schedule(0.5, share=0.25)])
def test_after_a_failure_the_pause_is_never_longer_than_ten_seconds(clock: Clock, own: Schedule) -> None:
    for _ in range(12):
        clock.seconds += 1_000.0
        assert own.is_due()
        clock.seconds += 90.0  # the failed try itself
        own.failed()
        clock.seconds += 10.0
        assert own.is_due()


def test_after_a_success_the_gap_holds_again(clock: Clock) -> None:
    own = Schedule(300.0)
    assert own.is_due()
    own.failed()
    clock.seconds += 10.0
    assert own.is_due()
    own.done()
    clock.seconds += 299.0
    assert not own.is_due()
