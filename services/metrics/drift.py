"""Metrics of drift: alarms, the raised learning rate, and the end of each alarm."""

from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge

from peft_adapters.learning.drift import DETECTORS, Ending


class DriftMetrics:
    """Alarms of the drift detectors and the learner's response.

    Args:
        registry: the registry where the series are declared.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._alarms = Counter(
            "headwater_drift_alarms_total", "Alarms of rising losses.", ["detector"], registry=registry
        )
        for detector in DETECTORS:
            self._alarms.labels(detector)
        self._rate_factor = Gauge(
            "headwater_drift_rate_factor", "Factor on the learning rates; 1 without an alarm.", registry=registry
        )
        self._rate_factor.set(1)
        self._recovering = Gauge(
            "headwater_drift_recovering", "1 from an alarm until losses have recovered, else 0.", registry=registry
        )
        self._recovery_events = Gauge(
            "headwater_drift_recovery_events",
            "Events from the start of the newest ended alarm to its end.",
            registry=registry,
        )
        self._ended = Counter(
            "headwater_drift_ended_total",
            "Ended alarms: losses have recovered, or have settled at a higher level.",
            ["how"],
            registry=registry,
        )
        for ending in get_args(Ending):
            self._ended.labels(ending)

    def alarm_raised(self, detector: str) -> None:
        """Count an alarm of a detector."""
        self._alarms.labels(detector).inc()

    def alarm_ended(self, ending: Ending, *, events: int) -> None:
        """Count the end of an alarm.

        Args:
            ending: whether losses have recovered or settled at a higher level.
            events: the number of events since the alarm.
        """
        self._ended.labels(ending).inc()
        self._recovery_events.set(events)

    def show(self, *, rate_factor: float, recovering: bool) -> None:
        """Set the response to drift.

        Args:
            rate_factor: the factor on the learning rates.
            recovering: whether an alarm has not ended yet.
        """
        self._rate_factor.set(rate_factor)
        self._recovering.set(recovering)
