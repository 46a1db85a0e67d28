"""Drift: alarms where losses rise and only there, haste for a while, recovery; and a state that goes on bit for bit."""

import json
import random

import pytest
from structlog.testing import capture_logs

from peft_adapters.learning.drift import BLOCK_EVENTS, DriftMonitor, DriftResponse
from peft_adapters.settings import DriftSettings

BATCH = 50


def losses(level: float, seed: int) -> list[float]:
    rng = random.Random(seed)  # noqa: S311
    return [rng.gauss(level, 2.0) for _ in range(BATCH)]


def watched(watch: DriftMonitor, levels: list[float], *, seed: int = 0) -> list[DriftResponse]:
    return [watch.update(losses(level, seed + index)) for index, level in enumerate(levels)]


STEADY, RISEN = [-4.0] * 100, [-1.0] * 60


@pytest.mark.parametrize("levels", [STEADY, [-0.02 * batch for batch in range(200)], [-1.0] * 60 + [-4.0] * 60])
def test_no_alarm_where_nothing_changes_or_it_gets_better(levels: list[float]) -> None:
    watch = DriftMonitor(DriftSettings())
    assert set(watched(watch, levels)) == {DriftResponse()}
    assert watch.rate_factor == 1


@pytest.mark.parametrize(
    ("detector", "other"),
    [("adwin", {"page_hinkley_threshold": 1e9}), ("page_hinkley", {"adwin_delta": 1e-300})],
)
def test_each_detector_raises_an_alarm_alone(detector: str, other: dict[str, float]) -> None:
    watch = DriftMonitor(DriftSettings.model_validate(other))
    watched(watch, STEADY)
    seen = watched(watch, RISEN, seed=1_000)
    assert {alarm for each in seen for alarm in each.alarms} == {detector}
    assert watch.recovering


def test_rates_are_raised_for_so_many_batches_and_recovery_is_seen() -> None:
    watch = DriftMonitor(DriftSettings(rate_factor=4.0, raised_batches=7, adwin_delta=1e-300))
    watched(watch, STEADY)
    batches = 0
    while not watch.update(losses(-1.0, batches)).alarms:
        batches += 1
    assert batches * BATCH < 20 * BLOCK_EVENTS
    assert watch.rate_factor == 1
    watch.raise_rates()
    factors = [watch.rate_factor]
    seen = []
    for batch in range(40):
        seen.append(watch.update(losses(-4.0, 500 + batch)))
        factors.append(watch.rate_factor)
    assert factors == [4.0] * 7 + [1.0] * 34
    (over,) = [each for each in seen if each.ended]
    assert over.ended == "recovered"
    assert over.events <= 40 * BATCH + BLOCK_EVENTS
    assert not watch.recovering


def test_what_stays_worse_is_taken_as_it_is_in_the_end() -> None:
    watch = DriftMonitor(DriftSettings(recovered_nats=0.0))
    watched(watch, STEADY)
    (over,) = [each for each in watched(watch, [-2.0] * 450, seed=1_000) if each.ended]
    assert (over.ended, over.events >= 10_000) == ("settled", True)


def test_off_it_neither_watches_nor_hurries() -> None:
    watch = DriftMonitor(DriftSettings(enabled=False))
    assert set(watched(watch, STEADY + RISEN)) == {DriftResponse()}
    assert watch.rate_factor == 1


@pytest.mark.parametrize("after", [0, 3, 101, 110, 125])
def test_its_state_goes_on_bit_for_bit(after: int) -> None:
    levels = STEADY + RISEN
    unkilled = DriftMonitor(DriftSettings())
    watched(unkilled, levels[:after])
    resumed = DriftMonitor(DriftSettings())
    resumed.load_state_dict(json.loads(json.dumps(unkilled.state_dict())))
    for batch, level in enumerate(levels[after:]):
        assert resumed.update(losses(level, 77 + batch)) == unkilled.update(losses(level, 77 + batch))
        assert resumed.state_dict() == unkilled.state_dict()
    assert unkilled.recovering


def test_the_fields_of_another_release_of_river_are_not_trusted() -> None:
    watch = DriftMonitor(DriftSettings())
    watched(watch, STEADY)
    state = watch.state_dict() | {"river": "0.1.0", "adwin": "AAAA"}
    with capture_logs() as lines:
        resumed = DriftMonitor(DriftSettings())
        resumed.load_state_dict(state)
    assert [line["event"] for line in lines] == ["drift_detectors_begin_anew"]
    watched(resumed, STEADY)
