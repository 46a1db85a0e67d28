"""The pace of a replay, on a clock that moves only when someone sleeps."""

import time

import pytest

from services.operate.replay.pacer import Pacer


class Clock:
    """Time that passes by sleeping, and by `stall`."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def now(self) -> float:
        return self.seconds

    def stall(self, seconds: float) -> None:
        self.seconds += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_rate_is_held(clock: Clock) -> None:
    pacer = Pacer(rate=50, sleep=clock.stall, clock=clock.now)
    moments = []
    for _ in range(101):
        pacer.wait(0)
        moments.append(clock.seconds - 100)
    assert moments == pytest.approx([number / 50 for number in range(101)])


def test_a_speed_up_follows_the_datas_own_time(clock: Clock) -> None:
    pacer = Pacer(speed_up=60, sleep=clock.stall, clock=clock.now)
    moments = []
    for ts_ms in (1_000_000, 1_000_000, 1_060_000, 1_030_000, 1_180_000):
        pacer.wait(ts_ms)
        moments.append(clock.seconds - 100)
    assert moments == pytest.approx([0, 0, 1, 1, 3])


def test_small_delays_do_not_add_up(clock: Clock) -> None:
    pacer = Pacer(rate=10, sleep=clock.stall, clock=clock.now)
    for _ in range(11):
        pacer.wait(0)
        clock.stall(0.05)  # the time it takes to send
    assert clock.seconds - 100 == pytest.approx(1.05)


def test_a_long_stall_is_not_made_up_for_by_a_burst(clock: Clock) -> None:
    pacer = Pacer(rate=10, sleep=clock.stall, clock=clock.now)
    pacer.wait(0)
    clock.stall(60)
    pacer.wait(0)
    assert clock.seconds - 100 == pytest.approx(60)
    for _ in range(10):
        pacer.wait(0)
    assert clock.seconds - 100 == pytest.approx(61)


def test_without_a_pace_nothing_waits(clock: Clock) -> None:
    pacer = Pacer(sleep=clock.stall, clock=clock.now)
    for ts_ms in range(0, 10_000_000, 1_000_000):
        pacer.wait(ts_ms)
    assert clock.seconds == 100


def test_the_real_clock_is_held_too() -> None:
    pacer, began = Pacer(rate=200), time.monotonic()
    for _ in range(41):
        pacer.wait(0)
    assert 0.2 <= time.monotonic() - began < 0.5


@pytest.mark.parametrize(
    ("rate", "speed_up", "message"),
    [
        (0, None, "`rate` must be above 0, got 0"),
        (None, -1, "`speed_up` must be above 0, got -1"),
        (float("nan"), None, "`rate` must be above 0, got nan"),
        (1, 1, "exclude each other, got 1 and 1"),
    ],
)
def test_an_impossible_pace_is_refused(rate: float | None, speed_up: float | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Pacer(rate=rate, speed_up=speed_up)
