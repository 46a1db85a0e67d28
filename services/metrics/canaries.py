"""Metrics of canary trials: click-through by arm and the sequential test between them."""

from prometheus_client import CollectorRegistry, Counter, Gauge

from peft_adapters.registry.rollout import ARMS


class CanaryMetrics:
    """The state of each scenario's canary trial, as one worker counts it.

    Args:
        registry: the registry where the series are declared.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._lists = Gauge(
            "headwater_canary_lists",
            "Lists counted since this worker began to watch the canary.",
            ["scenario", "arm"],
            registry=registry,
        )
        self._click_through = Gauge(
            "headwater_canary_click_through_ratio", "Share of them clicked.", ["scenario", "arm"], registry=registry
        )
        self._p_value = Gauge(
            "headwater_canary_p_value",
            "Always-valid p-value of a lower click-through of the canary; 1 until there are enough shoppers.",
            ["scenario"],
            registry=registry,
        )
        self._rollbacks = Counter(
            "headwater_canary_rollbacks_total",
            "Canaries ended because they were worse.",
            ["scenario"],
            registry=registry,
        )

    def show_arm(self, scenario: str, arm: str, *, lists: int, click_through: float) -> None:
        """Set the counts of one arm of a trial.

        Args:
            scenario: the scenario of the trial.
            arm: `stable` or `canary`.
            lists: the number of lists counted.
            click_through: the share of them that was clicked.
        """
        self._lists.labels(scenario, arm).set(lists)
        self._click_through.labels(scenario, arm).set(click_through)

    def show_p_value(self, scenario: str, p_value: float) -> None:
        """Set the p-value of a trial.

        Args:
            scenario: the scenario of the trial.
            p_value: the always-valid p-value of a worse canary.
        """
        self._p_value.labels(scenario).set(p_value)

    def canary_rolled_back(self, scenario: str) -> None:
        """Count a canary that was ended because it was worse."""
        self._rollbacks.labels(scenario).inc()

    def trial_ended(self, scenario: str) -> None:
        """Remove the series of a trial that has ended."""
        self._p_value.remove(scenario)
        for arm in ARMS:
            self._lists.remove(scenario, arm)
            self._click_through.remove(scenario, arm)
